"""From base to new classes with ViT-B/16 at 16 shots: 11 data sets, three seeds each, and H of the averages.

    python bench/papers/base_to_new.py --data PATH --weights PATH [--sets dtd eurosat] [--methods coop upt]

The first half of the classes is searched for, and both halves are tested, each among its own (CoCoOp, section 4.1).
Published are the averages of CoCoOp's table, and those that UPT's release reports of variants of UPT, each at a number
of epochs: these move H more than what makes the prompts. `upt_shared` puts the same prompts into both encoders. Of
CoOp that release has 82.69, 63.29 and 71.70.
"""

from figures import MEAN, Figure
from paper import Table, run

COCOOP = "CoCoOp (Zhou et al. 2022b), averages, as the README of HiCroPL (arXiv 2507.14976) has them"
RELEASE = "scripts/README.md of UPT's released code, as the fork pedramyamini2023/UPT has it"
INIT = {"n_ctx": 4, "ctx_init": "a photo of a"}
"""Of CoOp in both (their configs)."""
FIGURES = {
    "zero_shot": ((69.34, 74.22, 71.70), COCOOP),
    "coop": ((82.69, 63.22, 71.66), COCOOP),
    "cocoop": ((80.47, 71.69, 75.83), COCOOP),
    "vpt_shallow": ((80.17, 70.06, 74.78), RELEASE),
    "vpt_deep": ((83.64, 67.31, 74.59), RELEASE),
    "upt_shared_10": ((80.40, 74.24, 77.20), RELEASE),
    "upt_shared_200": ((84.35, 64.86, 73.33), RELEASE),
    "upt_10": ((None, None, 76.99), RELEASE),
    "upt_200": ((None, None, 74.20), RELEASE),
}
"""Base, new, H; None where it is not reported."""
SHARED = {"name": "upt", "transform": "none"}
TABLE = Table(
    name="base_to_new",
    title="From base to new classes with CLIP ViT-B/16 at 16 shots, test accuracy in %, and H of the averages",
    protocol="base_to_new",
    shots=(16,),
    methods={
        "zero_shot": {"name": "zero_shot"},
        "coop": {"name": "coop", **INIT},
        "cocoop": {"name": "cocoop"},
        "vpt_shallow": {"name": "vpt_shallow", "n_tokens": 4},
        "vpt_deep": {"name": "vpt_deep", "n_tokens": 4},
        "upt_shared_10": {**SHARED, "epochs": 10},
        "upt_shared_200": {**SHARED, "epochs": 200},
        "upt_10": {"name": "upt", "epochs": 10},
        "upt_200": {"name": "upt", "epochs": 200},
    },
    published={
        (MEAN, method, what): Figure(value, source)
        for method, (values, source) in FIGURES.items()
        for what, value in zip(("base", "new", "H"), values)
        if value is not None
    },
    special={("imagenet", "coop"): {"epochs": 50}},
    differs=("UPT's release does not tell the epochs of VPT: they are 200 here",),
)

if __name__ == "__main__":
    run(TABLE)
