"""The generated world, by the path that `source` may have in params.yaml; its code is `cones.synthetic`."""
