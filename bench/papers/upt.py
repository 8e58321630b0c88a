"""UPT (arXiv 2210.07225) against CoOp and VPT with ViT-B/16: 11 data sets at 1, 2, 4, 8 and 16 shots, three seeds each.

    python bench/papers/upt.py --data PATH --weights PATH [--sets dtd eurosat] [--shots 1 16] [--methods coop upt]

The settings are the paper's: four prompts for each encoder, deep ones for pictures, made by one self-attention layer,
200 epochs; VPT has four prompts as well. Of its few-shot figures what is at hand is how much better UPT is than others.
Its averages on base and new classes are in base_to_new.py.
"""

from figures import Gap
from paper import Table, run

GAIN = "a summary of the paper at second hand: over 1 to 16 shots, mean of 11 data sets"
TABLE = Table(
    name="upt",
    title="UPT (Zang et al. 2022), few-shot classification with CLIP ViT-B/16, test accuracy in %",
    methods={
        "zero_shot": {"name": "zero_shot"},
        "coop": {"name": "coop"},
        "vpt_shallow": {"name": "vpt_shallow", "n_tokens": 4},
        "vpt_deep": {"name": "vpt_deep", "n_tokens": 4},
        "upt": {"name": "upt"},
    },
    published={},
    gaps=(Gap("upt", "coop", "+0.48 to +3.19", GAIN), Gap("upt", "vpt_deep", "+0.89 to +2.70", GAIN)),
    special={("imagenet", "coop"): {"epochs": 50}},
)

if __name__ == "__main__":
    run(TABLE)
