"""What a registered model takes and gives."""

from typing import Any


def signature_of(task: str) -> Any:
    """What `registry.pyfunc` takes and gives: paths of pictures, and a line for each of them or for each box found; in
    generation prompts with seeds, and a picture for each."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    if task == "generation":
        asked = [ColSpec("string", "prompt"), ColSpec("long", "seed")]
        return ModelSignature(Schema(asked), Schema([*asked, ColSpec("string", "picture")]))
    columns = {"path": "string", "label": "string", "score": "double"}
    if task != "classification":
        columns |= dict.fromkeys(("x1", "y1", "x2", "y2"), "double")
        columns |= {"height": "long", "width": "long", "mask": "string"}
    return ModelSignature(Schema([ColSpec("string", "path")]), Schema([ColSpec(t, n) for n, t in columns.items()]))
