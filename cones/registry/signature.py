"""What a registered model takes and gives, as MLflow has it."""

from typing import Any

from cones.tasks.parts import part_of


def signature_of(task: str) -> Any:
    """The columns of a task's tables, in and out."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    schemas = (Schema([ColSpec(kind, name) for name, kind in of.items()]) for of in part_of(task, "infer").COLUMNS)
    return ModelSignature(*schemas)
