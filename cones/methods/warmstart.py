"""A first embedding from the pictures themselves: Stable Diffusion's text encoder has an image twin, its CLIP.

A linear map from CLIP's pooled text feature to the encoder's output tokens is learned from captions alone, once for a
base model. What it makes of the pictures' mean image feature is where a search can start.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cones.common.kept import kept
from cones.interfaces.protocols import DualEncoder, Paints
from cones.interfaces.texts import TextEmbeds

PHRASES, MOST_WORDS, SEED = 3000, 3, 0
BATCH = 128
RIDGE = 1e-2
"""Of the mean square of the features: it keeps the map from reading more into them than the captions tell."""


def pictured_rows(
    sd: Paints,
    clip: DualEncoder,
    feature: Float[Tensor, " d"],
    template: str,
    rows: str | int,
    hashes: Sequence[str],
    cache: Path,
) -> Float[Tensor, "n e"]:
    """What the mean image feature of some pictures predicts of `rows` of the encoder's output for a template.

    `own` is the last token of what the template is filled with. `hashes` are those of the two models; the map is kept
    under `cache`, and fits these models, this template and these rows.
    """
    from safetensors.torch import load_file, save

    def make(folder: Path) -> None:
        calls = sd.text_encoder_calls
        fitted = fit_map(sd, clip, template, rows)
        sd.text_encoder_calls = calls  # those of a search are counted; this is once for a base model
        (folder / "map.safetensors").write_bytes(save(fitted))

    facts = [*hashes, template, rows, PHRASES, MOST_WORDS, SEED, RIDGE]
    fitted = load_file(kept("text-maps", facts, cache, make) / "map.safetensors")
    texts = fitted["texts"]
    # A picture's feature lies apart from those of texts; seen as a mean of the nearest ones it lies among them
    # (Li et al. 2023, DeCap, section 3.3).
    near = F.softmax(clip.logit_scale * F.normalize(feature.cpu(), dim=-1) @ texts.T, dim=-1)
    seen = F.normalize(near @ texts, dim=-1)
    flat = (seen - fitted["text_mean"]) @ fitted["map"] + fitted["row_mean"]
    return flat.reshape(-1, sd.sites["text_embeds"].width)


@torch.no_grad()
def fit_map(sd: Paints, clip: DualEncoder, template: str, rows: str | int) -> dict[str, Tensor]:
    """The least-squares map of CLIP's text features to rows of the encoder's output, and the features it was fitted on.

    The captions are the template filled with random words of the encoder's own vocabulary.
    """
    phrases = random_phrases(sd.tokenizer)
    texts = torch.cat(
        [clip.embed_text(some, templates=[template]).embeds[0] for some in _parts(phrases)]
    )  # (P, d), of unit length
    texts = F.normalize(texts.float().cpu(), dim=-1)
    told = torch.cat([_rows_of(sd.embed_text([""], templates=_filled(template, some)), some, rows, sd, template)
                      for some in _parts(phrases)])  # fmt: skip
    text_mean, row_mean = texts.mean(0), told.mean(0)
    x, y = texts - text_mean, told - row_mean
    gram = x.T @ x
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    return {
        "map": torch.linalg.solve(gram, x.T @ y).contiguous(),
        "texts": texts,
        "text_mean": text_mean,
        "row_mean": row_mean,
    }


def random_phrases(tokenizer: Any) -> list[str]:
    """One to `MOST_WORDS` whole words of a vocabulary at random, `PHRASES` times."""
    words = sorted(t.removesuffix("</w>") for t in tokenizer.get_vocab() if t.endswith("</w>"))
    words = [w for w in words if w.isalpha() and w.isascii() and len(w) > 2]
    generator = torch.Generator().manual_seed(SEED)
    sizes = torch.randint(1, MOST_WORDS + 1, (PHRASES,), generator=generator).tolist()
    chosen = torch.randint(len(words), (PHRASES, MOST_WORDS), generator=generator).tolist()
    return [" ".join(words[i] for i in row[:size]) for row, size in zip(chosen, sizes)]


def _rows_of(
    text: TextEmbeds, phrases: Sequence[str], rows: str | int, sd: Paints, template: str
) -> Float[Tensor, "p f"]:
    embeds = text.embeds.float().cpu()
    if rows != "own":
        return embeds[:, 0 if rows == "all" else -int(rows) :].flatten(1)
    before = _filled(template.split("{}")[0] + "{}", phrases)
    ends = [len(ids) - 2 for ids in sd.tokenizer(before).input_ids]  # the last token before the end mark
    return embeds[torch.arange(len(embeds)), torch.tensor(ends)]


def _filled(template: str, phrases: Sequence[str]) -> list[str]:
    return [template.replace("{}", phrase) for phrase in phrases]


def _parts(phrases: list[str]) -> list[list[str]]:
    return [phrases[i : i + BATCH] for i in range(0, len(phrases), BATCH)]
