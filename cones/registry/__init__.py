"""MLflow: the registry and what is logged."""
