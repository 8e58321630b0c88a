"""`params.yaml`: the only room that knows all."""
