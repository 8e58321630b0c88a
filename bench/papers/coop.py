"""CoOp's few-shot curves with ViT-B/16: 11 data sets at 1, 2, 4, 8 and 16 shots, three seeds each.

    python bench/papers/coop.py --data PATH --weights PATH [--sets dtd eurosat] [--shots 1 16] [--methods coop]

The settings are those of CoOp's COOP.md: 16 context tokens, the class name in the middle or at the end, one context for
all classes or one each (CSC); 50 epochs at 1 shot, 100 at 2 and 4, 200 at 8 and 16, on ImageNet always 50. CoOp's paper
draws these curves with ResNet-50. With ViT-B/16 figures are known of the mean alone, at 1, 4 and 16 shots; those of the
data sets are in no text that is at hand, so that their column says "not known".
"""

from figures import MEAN, Figure
from paper import Table, run

SOURCE = "mean of 11 data sets with ViT-B/16, from this project's notes on the methods, which do not name the table"
METHODS = {
    "zero_shot": {"name": "zero_shot"},
    "coop": {"name": "coop"},
    "coop_middle": {"name": "coop", "class_token_position": "middle"},
    "coop_csc": {"name": "coop", "class_specific": True},
    "coop_middle_csc": {"name": "coop", "class_token_position": "middle", "class_specific": True},
}
IMAGENET_EPOCHS = 50
"""At all numbers of shots (CoOp's COOP.md)."""
TABLE = Table(
    name="coop",
    title="CoOp (Zhou et al. 2022), few-shot classification with CLIP ViT-B/16, test accuracy in %",
    methods=METHODS,
    published={
        (MEAN, "coop", 1): Figure(68.1, SOURCE),
        (MEAN, "coop", 4): Figure(73.6, SOURCE),
        (MEAN, "coop", 16): Figure(79.0, SOURCE),
        (MEAN, "zero_shot", 0): Figure(65.4, SOURCE),
    },
    special={("imagenet", label): {"epochs": IMAGENET_EPOCHS} for label in METHODS if label != "zero_shot"},
)

if __name__ == "__main__":
    run(TABLE)
