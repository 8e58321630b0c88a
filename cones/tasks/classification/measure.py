"""Classification: accuracy, macro F1 and AUROC by scikit-learn."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cones.interfaces.pictures import Predictions, mean_loss
from cones.tasks.task import Evaluated, Task


def classification_metrics(scores: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> dict[str, float]:
    """Accuracy, macro F1, one-against-rest macro AUROC and mean cross entropy of probabilities.

    Values are rounded to six places: the last bits depend on the machine. AUROC is left out where a class is missing
    from `labels`.
    """
    from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

    truth, guess, classes = labels.numpy(), scores.argmax(1).numpy(), scores.shape[1]
    known = range(classes)
    found = {
        "accuracy": accuracy_score(truth, guess),
        "macro_f1": f1_score(truth, guess, average="macro", labels=list(known), zero_division=0.0),
        "loss": mean_loss(scores, labels),
    }
    if set(truth.tolist()) == set(known):
        p = scores.double().numpy()
        p = p / p.sum(1, keepdims=True)
        found["auroc"] = (
            roc_auc_score(truth, p[:, 1])
            if classes == 2
            else roc_auc_score(truth, p, multi_class="ovr", labels=list(known))
        )
    return {name: round(float(value), 6) for name, value in found.items()}


def quick_metrics(scores: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> dict[str, float]:
    """What a search validates with at every epoch."""
    return {"accuracy": (scores.argmax(1) == labels).double().mean().item(), "loss": mean_loss(scores, labels)}


def _scores(predictions: Sequence[Predictions]) -> Tensor:
    return torch.cat([p.scores for p in predictions])


MEASURES = {
    "classification": Task(
        lambda p, truth, classes: quick_metrics(_scores(p), truth.labels),
        lambda p, truth, classes: Evaluated(classification_metrics(_scores(p), truth.labels)),
        lambda found: Predictions(found.scores.cpu()),
        1024,
    )
}
