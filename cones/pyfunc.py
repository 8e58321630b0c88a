"""The Concept as an MLflow pyfunc model: MLflow runs this file (models from code), so nothing is pickled.

Input: a table with a column `path` of picture files. Output: `path`, `label` and `score`, in the same order.
"""

import mlflow
from mlflow.pyfunc import PythonModel


class ConceptModel(PythonModel):
    """Loads the Concept beside it; the base model is found by its name and checked by its hash."""

    def load_context(self, context):  # no type hints: MLflow would take them for a schema
        from cones.concept import Concept

        self.concept = Concept.load(context.artifacts["concept"])

    def predict(self, context, model_input, params=None):
        import pandas as pd

        paths = [str(p) for p in model_input["path"]]
        found = self.concept.predict(paths)
        return pd.DataFrame({"path": paths, "label": [p.label for p in found], "score": [p.score for p in found]})


mlflow.models.set_model(ConceptModel())
