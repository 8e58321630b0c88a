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
from typing import Any

import mlflow
from mlflow.pyfunc import PythonModel

BOX = ("path", "label", "score", "x1", "y1", "x2", "y2", "height", "width", "mask")


class ConceptModel(PythonModel):
    """Loads the Concept beside it, with its fine-tuned weights if it has some; the base model is found by its name and
    checked by its hash at the first request, and stays open for all that follow. It is fetched only where the
    params.yaml of the folder that the server stands in names it."""

    def load_context(self, context):  # no type hints: MLflow would take them for a schema
        from cones.concept.file import Concept

        self.concept = Concept.load(context.artifacts["concept"])

    def predict(self, context, model_input, params=None):
        import pandas as pd

        if self.concept.card.task == "generation":
            asked = zip(model_input["prompt"].fillna(""), model_input["seed"])
            lines = [(prompt, seed, self._picture(prompt or None, int(seed))) for prompt, seed in asked]
            return pd.DataFrame(lines, columns=["prompt", "seed", "picture"])
        paths = [str(p) for p in model_input["path"]]
        found: list[Any] = self.concept.predict(paths)
        if self.concept.card.task == "classification":
            return pd.DataFrame({"path": paths, "label": [p.label for p in found], "score": [p.score for p in found]})
        lines = [line for path, one in zip(paths, found) for line in self._lines(path, one)]
        table = pd.DataFrame(lines, columns=list(BOX))
        return table.astype(dict.fromkeys(("score", "x1", "y1", "x2", "y2"), float) | {"height": int, "width": int})

    def _picture(self, prompt, seed):
        buffer = io.BytesIO()
        self.concept.generate(prompt, 1, seed)[0].save(buffer, "PNG")
        return base64.b64encode(buffer.getvalue()).decode()

    @staticmethod
    def _lines(path, found):
        masks = found.regions or [""] * len(found)
        for label, score, box, mask in zip(found.labels, found.scores.tolist(), found.boxes.tolist(), masks):
            yield (path, label, score, *box, *found.size, mask)


mlflow.models.set_model(ConceptModel())
