"""The Concept as an MLflow pyfunc model: MLflow runs this file (models from code), so nothing is pickled.

MLflow runs it as it stands in the version, or whatever else whoever can write to the registry put there in its place.
`cones predict`, `cones serve` and `cones.load` run no code of a version.

Input: a table with a column `path` of picture files. Output in classification: `path`, `label` and `score`, a line a
picture in their order. In detection and segmentation: a line for each box that reaches the Concept's score threshold,
the best first in each picture, with `path`, `label`, `score`, `x1`, `y1`, `x2`, `y2` in pixels, `height` and `width` of
the picture, and `mask`, the text of COCO's compressed run lengths, empty in detection. A picture in which nothing is
found has no line. In generation the input has columns `prompt`, with `{}` for the concept, empty for its first
template, and `seed`; the output adds `picture`, a PNG in base64.
"""

import base64
import io

import mlflow
from mlflow.pyfunc import PythonModel


class ConceptModel(PythonModel):
    """Loads the Concept beside it, with its fine-tuned weights if it has some; the base model is found by its name and
    checked by its hash at the first request, and stays open for all that follow. It is fetched only where the
    params.yaml of the folder that the server stands in names it."""

    def load_context(self, context):  # no type hints: MLflow would take them for a schema
        from cones.inference.open import load

        self.concept = load(context.artifacts["concept"])

    def predict(self, context, model_input, params=None):
        import pandas as pd

        if self.concept.card.task == "generation":
            asked = zip(model_input["prompt"].fillna(""), model_input["seed"])
            lines = [(prompt, seed, self._picture(prompt or None, int(seed))) for prompt, seed in asked]
            return pd.DataFrame(lines, columns=["prompt", "seed", "picture"])
        from cones.tasks.parts import part_of

        infer = part_of(self.concept.card.task, "infer")
        columns = infer.COLUMNS[1]
        paths = [str(p) for p in model_input["path"]]
        lines = [line for path, one in zip(paths, self.concept.predict(paths)) for line in infer.lines(path, one)]
        numbers = {name: {"double": float, "long": int}[kind] for name, kind in columns.items() if kind != "string"}
        return pd.DataFrame(lines, columns=list(columns)).astype(numbers)

    def _picture(self, prompt, seed):
        buffer = io.BytesIO()
        self.concept.generate(prompt, 1, seed)[0].save(buffer, "PNG")
        return base64.b64encode(buffer.getvalue()).decode()


mlflow.models.set_model(ConceptModel())
