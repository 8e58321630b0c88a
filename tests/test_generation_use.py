"""Using Concepts of generation: pictures of prompts, export, judges, fine-tuning, and what is refused."""

import base64
import io
import re
import shlex
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from generations import CONES, INVERSION, PROMPTS, Studio
from openings import ONCE
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from typer.testing import CliRunner

from cones.backbones.hub import base_hash
from cones.backbones.sd.sd import Diffusion
from cones.backbones.tuned import with_tuned
from cones.cli.main import app
from cones.common.errors import ConceptError
from cones.concept.file import Concept
from cones.data.prepared import Split
from cones.inference.export import export_embeds
from cones.inference.open import load
from cones.interfaces.base import BaseModelCard
from cones.results.evaluate import evaluate_rows
from cones.results.files import write_evaluation
from cones.tasks.generation.judge import Judges
from cones.tasks.generation.measure import diversity, likeness, obedience
from cones.tasks.generation.prompt import prompt_embeds

ROOT = Path(__file__).parent.parent


def same(a: Image.Image, b: Image.Image) -> bool:
    """Whether two pictures are, but for rounding."""
    return bool(np.abs(np.asarray(a).astype(int) - np.asarray(b)).max() <= 2)


def refuse(*given: object, **more: object) -> None:
    raise AssertionError("the text encoder ran")


@pytest.mark.parametrize("settings", [CONES, INVERSION, {"name": "zero_shot"}])
def test_a_template_needs_no_text_encoder_and_a_prompt_does(studio: Studio, monkeypatch, settings: dict) -> None:
    concept = studio.concept_of(**settings)
    steered = concept.generate("a {} on a blue background", n=1, seed=3)[0]
    template = concept.card.templates[3]
    monkeypatch.setattr(Diffusion, "_told", refuse)
    made = concept.generate(n=2, seed=3)
    assert [p.size for p in made] == [(64, 64)] * 2
    assert same(made[0], concept.generate(n=1, seed=3)[0])
    assert not same(made[0], made[1])
    assert not same(made[0], concept.generate(template, n=1, seed=3)[0])
    assert not same(made[0], steered)
    with pytest.raises(AssertionError, match="the text encoder ran"):
        concept.generate("a {} on a blue background", n=1)


def test_a_new_prompt_has_the_searched_rows_in_its_own_context(studio: Studio) -> None:
    concept, sd = studio.concept_of(**CONES), studio.encoded.backbone()
    found = prompt_embeds(concept, sd, "a {} beside a red {}")
    plain = sd.embed_text(["red flower"], templates=["a {} beside a red {}"])
    own = plain.owner == 0
    assert own.sum() == 4
    assert torch.equal(found[own], concept.tensors["text_embeds"].repeat(2, 1))
    assert torch.allclose(found[~own], plain.embeds[~own], atol=1e-5)


def test_textual_inversion_in_a_prompt_is_its_vectors_at_the_input(studio: Studio) -> None:
    concept, sd = studio.concept_of(**INVERSION), studio.encoded.backbone()
    template = concept.card.templates[0]
    assert torch.allclose(prompt_embeds(concept, sd, template), concept.text.embeds[:1], atol=2e-3)
    other = prompt_embeds(concept, sd, f"{template} ")
    assert torch.allclose(other, concept.text.embeds[:1], atol=2e-3)


def test_several_concepts_stand_in_one_prompt(studio: Studio) -> None:
    first, second = studio.concept_of(**CONES), studio.concept_of(**{**CONES, "n_tokens": 3})
    inverted = studio.concept_of(**INVERSION)
    sd, prompt = studio.encoded.backbone(), "a {} and a {b} by a {c}"
    found = prompt_embeds(first, sd, prompt, {"b": second, "c": inverted})
    assert torch.equal(found[0, 2:4], first.tensors["text_embeds"])
    assert torch.equal(found[0, 6:9], second.tensors["text_embeds"])
    assert len(first.generate(prompt, 1, others={"b": second, "c": inverted})) == 1


def test_many_pictures_open_one_base_model(studio: Studio, toy_sd: Path, tmp_path: Path, openings) -> None:
    base = shutil.copytree(toy_sd, tmp_path / "sd")
    concept, other = (replace(studio.concept_of(**made), base_folder=base) for made in (CONES, INVERSION))
    openings.clear()
    concept.generate(n=1)
    concept.generate("a {} in the snow", 1, seed=2)
    concept.generate("a {} and a {b}", 1, others={"b": other})
    export_embeds(concept, "a {} in the rain", tmp_path / "rain.safetensors")
    files = [str(tmp_path / f"{name}.safetensors") for name in ("first", "other")]
    for one, file in zip((concept, other), files):
        one.save(Path(file))
    words = [
        "generate",
        files[0],
        "--prompt",
        "a {} on a {b}",
        "--also",
        f"b={files[1]}",
        "--base",
        str(base),
        "-n",
        "1",
    ]
    done = CliRunner().invoke(app, [*words, "--device", "cpu", "--steps", "2", "--out", str(tmp_path / "made")])
    assert done.exit_code == 0, done.output
    assert [p.name for p in (tmp_path / "made").iterdir()] == ["00000-000.png"]
    assert openings == {**ONCE, "filled": 3}  # the UNet, the VAE and the text encoder


def test_a_served_request_opens_one_base_model(studio: Studio, toy_sd: Path, tmp_path: Path, openings) -> None:
    import pandas as pd

    from cones.registry.pyfunc import ConceptModel

    studio.concept_of(**CONES).save(tmp_path / "concept.safetensors")
    base = shutil.copytree(toy_sd, tmp_path / "sd")
    openings.clear()
    model = ConceptModel()
    model.load_context(SimpleNamespace(artifacts={"concept": str(tmp_path / "concept.safetensors")}))
    model.concept.base_folder, model.concept.device = base, "cpu"
    asked = pd.DataFrame({"prompt": ["", "a {} in the snow", "a red {}"], "seed": [1, 2, 3]})
    told = pd.concat([model.predict(None, asked), model.predict(None, asked[:1])], ignore_index=True)
    assert openings == {**ONCE, "filled": 3}
    pictures = [Image.open(io.BytesIO(base64.b64decode(p))) for p in told["picture"]]
    again = studio.concept_of(**CONES)
    for line, picture in zip(told.itertuples(), pictures):
        assert same(picture, again.generate(line.prompt or None, 1, seed=line.seed)[0])


def test_what_a_prompt_cannot_hold_is_refused(studio: Studio, tmp_path: Path) -> None:
    concept, whole = studio.concept_of(**CONES), studio.concept_of(**{**CONES, "rows": "all"})
    last = studio.concept_of(**{**CONES, "rows": 4})
    tuned = studio.written(studio.tune(concept, kind="lora"), tmp_path / "tuned")
    assert len(whole.generate(n=1)) == 1
    assert len(last.generate("a {} in the snow", n=1)) == 1
    for first, prompt, others, why in [
        (whole, "a {} in the snow", {}, "searched with `rows: all`, so it is a whole sentence and takes no prompt"),
        (concept, "a {} and a {b}", {"b": last}, "only concepts with `rows: own` can stand beside others"),
        (concept, "a {} and a {b}", {"b": tuned}, "only the first concept's weights can be used"),
        (concept, None, {"b": concept}, "several concepts need a prompt"),
    ]:
        with pytest.raises(ConceptError, match=why):
            first.generate(prompt, 1, others=others)
    with pytest.raises(Exception, match=r"names the concept \{dog\}; there are \{\}"):
        concept.generate("a {dog}", 1)
    with pytest.raises(ConceptError, match="`n` must be 1 or more"):
        concept.generate(n=0)
    with pytest.raises(ConceptError, match="makes pictures and does not judge them; use `generate`"):
        concept.predict([])
    with pytest.raises(ConceptError, match="has no classes to join"):
        concept.join(concept)


def test_embeddings_go_to_plain_diffusers(studio: Studio, toy_sd: Path, tmp_path: Path) -> None:
    """A plain pipeline makes of them what the Concept does."""
    concept = studio.concept_of(**CONES)
    export_embeds(concept, "a {} in the snow", tmp_path / "zorb.safetensors")

    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(toy_sd, text_encoder=None, tokenizer=None)
    embeds = load_file(tmp_path / "zorb.safetensors")
    sampler = {"num_inference_steps": 2, "guidance_scale": 7.5, "height": 64, "width": 64}
    from cones.interfaces.randomness import generator_for

    pipeline.to(torch.float32)
    picture = pipeline(**embeds, **sampler, generator=[generator_for(0, 0)]).images[0]
    assert same(picture, concept.generate("a {} in the snow", n=1, seed=0)[0])
    tuned = studio.written(studio.tune(concept, kind="lora"), tmp_path / "tuned")
    with pytest.raises(ConceptError, match="a plain pipeline lacks its weights"):
        export_embeds(tuned, None, tmp_path / "tuned.safetensors")
    assert not (tmp_path / "tuned.safetensors").exists()


def of_sd_tiny(concept: Concept) -> Concept:
    """The words of a Concept as `sd-tiny` embeds them, whose text encoder is shipped in half precision."""
    folder = ROOT / "models/backbones/sd-tiny"
    base = BaseModelCard(name="sd-tiny", kind="sd", source=str(folder), revision=None, sha256=base_hash(folder))
    sd = Diffusion(folder)
    told, nothing = (sd.embed_text(concept.card.names, templates=[t]) for t in ("a photo of a {}", ""))
    own = told.owner == 0
    tensors = {
        "text_embeds": told.embeds[own], "owner": torch.zeros(int(own.sum()), dtype=torch.long),
        "sentences": told.embeds.half(), "places": own, "unconditional": nothing.embeds,
    }  # fmt: skip
    return Concept(concept.card.model_copy(update={"base": base, "templates": ["a photo of a {}"]}), tensors)


@pytest.mark.parametrize("dtype", ["", "--dtype bfloat16"])
def test_the_lines_of_the_readme_run(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """As they stand there, but for the names of the model and of the Concept; also in half precision."""
    readme, name = (ROOT / "README.md").read_text(), "stable-diffusion-v1-5/stable-diffusion-v1-5"
    snippet = re.search(r"```python\n(from diffusers .*?)```", readme, re.DOTALL)[1]
    command = re.search(r"^    cones (export rex .*)$", readme, re.MULTILINE)[1]
    assert snippet.count(name) == 1
    monkeypatch.chdir(tmp_path)
    of_sd_tiny(studio.concept_of(name="zero_shot")).save(tmp_path / "concept.safetensors")
    words = ["concept.safetensors" if word == "rex" else word for word in shlex.split(f"{command} {dtype}")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    precision = torch.bfloat16 if dtype else torch.float32
    assert f"negative_prompt_embeds [1, 32, 128] in {str(precision).removeprefix('torch.')}" in done.output
    assert {t.dtype for t in load_file("rex.safetensors").values()} == {precision}
    torch.manual_seed(0)
    space: dict = {}
    exec(compile(snippet.replace(name, str(ROOT / "models/backbones/sd-tiny")), "README.md", "exec"), space)
    assert {space["pipeline"].text_encoder.dtype, space["pipeline"].unet.dtype} == {precision}
    assert Image.open("rex.png").size == (64, 64)


def test_what_cannot_be_exported_is_refused(studio: Studio, tmp_path: Path) -> None:
    concept = studio.concept_of(**CONES)
    with pytest.raises(ConceptError, match="`dtype` must be one of float32, float16, bfloat16, got int8"):
        export_embeds(concept, None, tmp_path / "x.safetensors", "int8")
    large = replace(concept, tensors=concept.tensors | {"unconditional": 1e6 * concept.tensors["unconditional"]})
    with pytest.raises(ConceptError, match="too large for float16; export them in float32"):
        export_embeds(large, None, tmp_path / "x.safetensors", "float16")
    assert not list(tmp_path.iterdir())


def test_a_sentence_vector_is_handed_on_or_refused(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """No base model here has one, so it is put beside what they have."""
    concept = studio.concept_of(**CONES)
    pooled = torch.rand(len(concept.tensors["sentences"]), 8)
    beside = replace(concept, tensors=concept.tensors | {"pooled": pooled})
    assert torch.equal(beside.text.pooled, pooled)
    with pytest.raises(ConceptError, match=r"have a sentence vector beside their tokens \(`pooled`\)"):
        beside.generate(n=1)
    told = Diffusion._told
    monkeypatch.setattr(Diffusion, "_told", lambda *given: replace(told(*given), pooled=torch.ones(1, 8)))
    with pytest.raises(ConceptError, match=r"have a sentence vector beside their tokens \(`pooled`\)"):
        concept.generate("a {} in the snow", n=1)


def test_likeness_obedience_and_diversity_of_known_features() -> None:
    a, b = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), dim=1)
    half = 2**-0.5
    assert likeness(torch.stack([a, b]), a[None]) == pytest.approx((1 + half) / 2)
    assert diversity(torch.stack([a, a, a])) == pytest.approx(0, abs=1e-6)
    assert diversity(torch.stack([a, b])) == pytest.approx(1 - half)
    assert obedience(torch.stack([a, b]), torch.stack([b, b])) == pytest.approx((1 + half) / 2)


def test_rows_are_judged_on_test_pictures_by_samples(studio: Studio, tmp_path: Path, opened_pictures: Counter) -> None:
    rows = {"cones": CONES, "inversion": INVERSION, "all": {**CONES, "rows": "all"}}
    paths = {}
    for row, settings in rows.items():
        concept = studio.concept_of(**settings)
        paths[row] = tmp_path / f"{row}.safetensors"
        concept.save(paths[row])
    judges = Judges.of(studio.concept, studio.backbone)
    found = evaluate_rows(paths, studio.folder / "prepared/test", tmp_path, judges=judges)
    # Once to be encoded, once to be compared with, however many rows there are.
    assert opened_pictures == {("test", i): 2 for i in range(3)}
    wanted = {"denoising_loss", "dino", "clip_i", "clip_t", "diversity"}
    assert set(found["cones"].metrics) == set(found["inversion"].metrics) == wanted
    assert set(found["all"].metrics) == wanted - {"clip_t"}
    assert all(np.isfinite(v) for e in found.values() for v in e.metrics.values())
    made = found["cones"].sampled
    assert made is not None
    assert {p: len(v) for p, v in made.pictures.items()} == {"a photo of a {}": 3, **dict.fromkeys(PROMPTS, 2)}
    again = evaluate_rows({"x": paths["cones"]}, studio.folder / "prepared/test", tmp_path, judges=judges)
    assert again["x"].metrics == found["cones"].metrics
    write_evaluation(tmp_path, "generation", found, Split.open(studio.folder / "prepared/test"), "cones")
    assert sorted(p.name for p in (tmp_path / "rows").iterdir()) == ["all.jpg", "cones.jpg", "inversion.jpg"]
    assert len((tmp_path / "plot.csv").read_text().splitlines()) == 1 + 3 + 3 + 1


def test_a_prompt_that_is_the_first_template_leaves_its_samples_as_many(studio: Studio) -> None:
    judges, concept = Judges.of(studio.concept, studio.backbone), studio.concept_of(**CONES)
    template, subject = concept.card.templates[0], [Image.new("RGB", (64, 64), "purple")] * 2
    prompts = replace(judges, prompts=[PROMPTS[0], template], samples=5)
    made = prompts.judge(concept, concept.backbone, subject)
    assert {p: len(v) for p, v in made.pictures.items()} == {template: 5, PROMPTS[0]: 2}
    alone = replace(prompts, prompts=[PROMPTS[0]]).judge(concept, concept.backbone, subject)
    assert alone.metrics | {"clip_t": made.metrics["clip_t"]} == made.metrics
    assert made.metrics["clip_t"] == pytest.approx(sum(of[1] for of in made.of_prompts.values()) / 2, abs=1e-6)


@pytest.mark.parametrize("kind", ["lora", "dreambooth"])
def test_a_fine_tuned_row_is_its_file_and_its_embeddings_stay(studio: Studio, tmp_path: Path, kind: str) -> None:
    start = studio.concept_of(**CONES)
    row = studio.tune(start, kind=kind, lr=1e-3)
    sd = studio.encoded.backbone()
    unet = dict(sd.unet.named_parameters())
    _, layers = sd.lora_layers()
    assert len(layers) == 4 * 2 * 7  # four layers an attention, two attentions in each of seven transformer blocks
    expected = sum(p.numel() for p in unet.values())
    if kind == "lora":
        expected = sum(4 * sum(unet[f"{layer}.weight"].shape) for layer in layers)
    assert row.cost["trained_parameters"] == expected
    for name, tensor in start.tensors.items():
        assert torch.equal(tensor, row.concept.tensors[name])
    concept = studio.written(row, tmp_path)
    tensors, about = concept.weights()
    own = {n.removeprefix("unet."): t for n, t in tensors.items()}
    merged = with_tuned(sd.unet.state_dict(), own, about.get("lora_scale", 1.0))
    opened = concept.open_backbone().unet.state_dict()
    assert all(torch.equal(opened[n], t) for n, t in merged.items())
    assert any(not torch.equal(opened[n], unet[n]) for n in unet)
    assert not same(concept.generate(n=1)[0], start.generate(n=1)[0]) or kind == "lora"
    # LoRA's additions are merged into the weights for the one and not for the other, and both are rounded.
    best = min(x["val_denoising_loss"] for x in row.result.curves)
    assert row.metrics == {"denoising_loss": pytest.approx(best, abs=2e-6)}


def test_class_pictures_are_made_once_and_count(studio: Studio, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("cones.finetuning.diffusion.CACHE", tmp_path)
    start, settings = studio.concept_of(**CONES), {"kind": "dreambooth", "steps": 2}
    without = studio.tune(start, **settings)
    with_prior = studio.tune(start, prior_pictures=3, **settings)
    assert with_prior.result.curves[1]["train_loss"] > without.result.curves[1]["train_loss"]
    with monkeypatch.context() as patch:
        patch.setattr(Diffusion, "sample", refuse)
        assert studio.tune(start, prior_pictures=3, **settings).weights == with_prior.weights
    weightless = studio.tune(start, prior_pictures=3, prior_weight=0.0, **settings)
    assert weightless.result.curves[1]["train_loss"] < with_prior.result.curves[1]["train_loss"]
    path = next((tmp_path / "class-pictures").rglob("*.safetensors"))
    save_file({name: -t for name, t in load_file(path).items()}, path)
    assert studio.tune(start, prior_pictures=3, **settings).weights == with_prior.weights


@pytest.mark.parametrize("kind", ["lora", "dreambooth"])
def test_a_stopped_fine_tuning_resumes_to_the_same_bits(studio: Studio, tmp_path: Path, kind: str) -> None:
    class Stopped(Exception):
        pass

    def stop(line: dict[str, float]) -> None:
        if line["step"] == 2:
            raise Stopped

    settings = {"kind": kind, "steps": 4, "checkpoint_seconds": 0.0, "prior_pictures": 2}
    start, checkpoint = studio.concept_of(**CONES), tmp_path / "state.safetensors"
    whole = studio.tune(start, **settings)
    with pytest.raises(Stopped):
        studio.tune(start, checkpoint, stop, **settings)
    resumed = studio.tune(start, checkpoint, **settings)
    assert resumed.weights == whole.weights
    assert resumed.result.curves == whole.result.curves


def test_a_fine_tuning_can_be_watched(studio: Studio, tmp_path: Path) -> None:
    studio.tune(studio.concept_of(**CONES), kind="lora", sample_every=2, samples=tmp_path / "samples")
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["000000.jpg", "000002.jpg"]


def test_a_start_of_other_pictures_is_refused(studio: Studio) -> None:
    start = studio.concept_of(**CONES)
    other = Concept(start.card.model_copy(update={"split_hash": "0"}), start.tensors)
    with pytest.raises(ConceptError, match="was searched on other pictures or another base model"):
        studio.tune(other, kind="lora")


def test_a_file_without_its_sentences_is_refused(studio: Studio, tmp_path: Path) -> None:
    concept = studio.concept_of(**CONES)
    less = {n: t for n, t in concept.tensors.items() if n != "unconditional"}
    Concept(concept.card, less).save(tmp_path / "less.safetensors")
    with pytest.raises(ConceptError, match="lacks unconditional; it is not a whole Concept"):
        load(tmp_path / "less.safetensors")
