"""The built-in Stable Diffusion: what is committed makes what a caption says, as its judge sees it."""

from pathlib import Path

from cones.backbones.judge import Judge
from cones.backbones.sd.sd import Diffusion
from cones.synthetic.world import COLOURS, SHAPES, with_article

BACKBONES = Path(__file__).parent.parent / "models/backbones"


def test_samples_are_what_their_captions_say() -> None:
    sd, judge = Diffusion(BACKBONES / "sd-tiny"), Judge(BACKBONES / "judge-tiny")
    asked = [(colour, shape) for colour, shape in zip(list(COLOURS) * 2, SHAPES)]
    captions = [f"a photo of {with_article(f'{colour} {shape}')}" for colour, shape in asked]
    text = sd.embed_text([""], templates=captions)
    made = sd.sample(text.embeds, sd.embed_text([""], templates=[""]).embeds, seed=0, steps=20, guidance=4.0)
    told = judge.names(made)
    right = sum((t["colour"], t["name"]) == wanted for t, wanted in zip(told, asked))
    assert right >= 8, list(zip(told, asked))


def test_its_text_encoder_is_that_of_clip_tiny() -> None:
    """So `init: image` can be measured: what CLIP sees and what the diffusion model is told share one encoder."""
    import torch
    from transformers import CLIPModel, CLIPTextModel

    own = CLIPTextModel.from_pretrained(BACKBONES / "sd-tiny/text_encoder", dtype=torch.float32).state_dict()
    clip = CLIPModel.from_pretrained(BACKBONES / "clip-tiny", dtype=torch.float32).text_model.state_dict()
    assert set(own) == set(clip)
    assert all(torch.equal(own[name], clip[name]) for name in own)


def test_its_files_are_small_and_hold_no_code() -> None:
    files = [p for name in ("sd-tiny", "judge-tiny") for p in (BACKBONES / name).rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files if "sd-tiny" in str(p)) < 8.5e6
    assert {p.suffix for p in files} <= {".json", ".safetensors", ".txt"}
