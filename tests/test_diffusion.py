"""Stable Diffusion as a backbone: text, loss, the fixed batch, samples; official layouts and sizes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from t2i_inversion import Inversion
from torch import Tensor
from toys import write_toy_sd

from cones.backbones.sd.sd import HELD_TIMES, Diffusion
from cones.common.errors import BackboneError, ParamsError
from cones.common.files import read_json, write_json
from cones.config.params import parse_method
from cones.features.encoded import Encoded
from cones.features.store import write_features
from cones.interfaces.pictures import Features
from cones.interfaces.randomness import generator_for
from cones.interfaces.texts import TextTokens
from cones.methods.searched import Denoised

TEMPLATES = ("a photo of a {}", "{} on sand", "nothing at all")


@pytest.fixture
def sd(toy_sd: Path) -> Diffusion:
    return Diffusion(toy_sd)


@pytest.fixture
def features(sd: Diffusion) -> Features:
    """The latents of three pictures."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (70, 90, 3), dtype=np.uint8)) for _ in range(3)]
    encoded = {name: tensor.clone() for name, tensor in sd.encode(sd.pixels(pictures)).items()}
    return Features(encoded, torch.zeros(3, dtype=torch.long))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_opening_loads_nothing_and_says_what_it_is(toy_sd: Path, toy_clip: Path) -> None:
    sd = Diffusion(toy_sd)
    width = read_json(toy_clip / "config.json")["text_config"]["hidden_size"]
    assert (sd.sites["text_embeds"].width, sd.sites["text_embeds"].max_tokens, sd.size) == (width, 77, 64)
    assert not {"vae", "unet", "text_encoder", "tokenizer"} & set(vars(sd))


def test_a_name_in_templates_reads_as_in_diffusers_own_pipeline(sd: Diffusion, toy_sd: Path) -> None:
    from diffusers import StableDiffusionPipeline

    found = sd.embed_text(["red gear"], templates=TEMPLATES)
    pipeline = StableDiffusionPipeline.from_pretrained(toy_sd, torch_dtype=torch.float32)
    for i, template in enumerate(TEMPLATES):
        right = pipeline.encode_prompt([template.format("red gear")], "cpu", 1, False)[0]
        assert torch.allclose(found.embeds[i], right[0], atol=1e-5)
    ids = pipeline.tokenizer([t.format("red gear") for t in TEMPLATES[:2]], padding="max_length").input_ids
    word = pipeline.tokenizer("red gear", add_special_tokens=False).input_ids
    for owner, row in zip(found.owner, ids):
        assert [i for i, o in zip(row, owner.tolist()) if o == 0] == word
    assert found.owner[2].eq(-1).all()
    assert sd.text_encoder_calls == 1


def test_vectors_take_the_place_of_a_word_and_get_the_gradient(sd: Diffusion) -> None:
    vectors = sd.word_vectors("red gear").requires_grad_()
    found = sd.embed_text(["anything"], TextTokens(vectors, "name", TEMPLATES))
    assert torch.allclose(found.embeds, sd.embed_text(["red gear"], templates=TEMPLATES).embeds, atol=1e-5)
    found.embeds[:2].square().sum().backward()
    assert vectors.grad is not None
    assert vectors.grad.abs().sum(1).min() > 0


def test_sentences_that_do_not_fit_are_refused(sd: Diffusion) -> None:
    with pytest.raises(
        BackboneError, match=r"with 40 tokens for the concept makes \d+ tokens; this text encoder takes 32"
    ):
        sd.embed_text(["x"], TextTokens(torch.zeros(40, sd.sites["text_tokens"].width), "name", TEMPLATES))


def test_the_loss_is_the_weighted_error_of_the_noise(sd: Diffusion, features: Features, monkeypatch) -> None:
    """With a UNet that says nothing, the loss is the noise's own square times the min-SNR weight."""
    given: list[tuple[Tensor, Tensor]] = []

    class Silent:
        def __call__(self, noisy: Tensor, times: Tensor, text: Tensor):
            given.append((noisy, times))
            return type("Told", (), {"sample": torch.zeros_like(noisy)})

    monkeypatch.setitem(vars(sd), "unet", Silent())
    text = sd.embed_text(["gear"])
    loss = sd.objective()(features, text, seeded(3))
    (noisy, times), generator = given[0], seeded(3)
    shape = noisy.shape
    latents = features.tensors["mean"] + features.tensors["std"] * torch.randn(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)
    kept = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square().mul(-1).add(1).cumprod(0)[times].view(-1, 1, 1, 1)
    assert torch.allclose(noisy, kept.sqrt() * latents * sd.scale + (1 - kept).sqrt() * noise, atol=1e-4)
    snr = (kept / (1 - kept)).flatten()
    expected = (noise.square().mean((1, 2, 3)) * snr.clamp(max=5) / snr).mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-3)


@pytest.fixture
def drawn(sd: Diffusion, monkeypatch) -> list[tuple[Tensor, ...]]:
    """What the loss gives the UNet: latents, noise, timesteps, texts and mask, one tuple a call."""
    given: list[tuple[Tensor, ...]] = []
    monkeypatch.setattr(sd, "_errors", lambda *call: given.append(call) or torch.zeros(len(call[0])))
    return given


def test_stratified_timesteps_hit_every_stratum(sd: Diffusion, features: Features, drawn) -> None:
    text = sd.embed_text(["gear"], templates=("a {}", "the {}", "{}"))
    settings = Denoised(name="x", noise={"copies": 4, "stratified": True})
    sd.objective(settings)(features, text, seeded())
    latents, noise, times, embeds, _ = drawn[-1]
    assert len(latents) == len(noise) == len(times) == len(embeds) == 12
    assert sorted((times * 12 // 1000).tolist()) == list(range(12))
    assert torch.equal(embeds[:4], text.embeds[:1].expand(4, -1, -1))


@pytest.mark.parametrize("stratified", [False, True])
def test_opposite_noise_is_of_one_picture_at_one_timestep(sd: Diffusion, features, drawn, stratified: bool) -> None:
    settings = Denoised(name="x", noise={"copies": 4, "stratified": stratified, "antithetic": True})
    sd.objective(settings)(features, sd.embed_text(["gear"]), seeded())
    latents, noise, times, *_ = drawn[-1]
    assert len(latents) == len(noise) == len(times) == 12
    for one, other in zip(range(0, 12, 2), range(1, 12, 2)):
        assert torch.equal(noise[one], -noise[other])
        assert torch.equal(latents[one], latents[other])
        assert times[one] == times[other]
    assert len({float(n.abs().sum()) for n in noise}) == 6
    means = features.tensors["mean"].repeat_interleave(4, 0) * sd.scale
    nearest = torch.cdist(latents.flatten(1), means.flatten(1)).argmin(1) // 4
    assert nearest.tolist() == [i // 4 for i in range(12)]
    if stratified:
        assert sorted((times[::2] * 6 // 1000).tolist()) == list(range(6))


def test_opposite_noise_takes_pairs_of_copies() -> None:
    with pytest.raises(ParamsError, match=r"`antithetic` pairs the copies of a latent: set `copies` to 2, 4"):
        parse_method({"name": "cones", "noise": {"copies": 3, "antithetic": True}})


def test_fine_tuned_weights_are_merged_before_the_unet_goes_to_its_device(toy_sd: Path) -> None:
    """On the meta device, which no CPU tensor can be added to."""
    plain = Diffusion(toy_sd)
    name = next(n for n, p in plain.unet.named_parameters() if p.ndim == 2)
    out, inner = plain.unet.state_dict()[name].shape
    additions = {f"unet.{name}.lora_A": torch.randn(2, inner), f"unet.{name}.lora_B": torch.randn(out, 2)}
    placed = Diffusion(toy_sd, "meta")
    placed.use_weights(additions, {"lora_scale": 0.5})
    assert all(p.is_meta for p in placed.unet.parameters())
    merged = Diffusion(toy_sd)
    merged.use_weights(additions, {"lora_scale": 0.5})
    product = additions[f"unet.{name}.lora_B"] @ additions[f"unet.{name}.lora_A"]
    assert torch.allclose(merged.unet.state_dict()[name], plain.unet.state_dict()[name] + 0.5 * product)


def test_gradients_reach_the_text_and_no_weight(sd: Diffusion, features: Features) -> None:
    text = sd.embed_text(["gear"])
    text.embeds.requires_grad_()
    sd.objective()(features, text, seeded()).backward()
    assert text.embeds.grad is not None
    assert text.embeds.grad.abs().sum() > 0
    assert not any(p.requires_grad for part in (sd.unet, sd.vae, sd.text_encoder) for p in part.parameters())


def test_the_fixed_batch_is_fixed_and_tells_texts_apart(sd: Diffusion, features: Features) -> None:
    gear, ring = sd.embed_text(["gear"]), sd.embed_text(["ring"])
    whole = sd.predict(features, gear).scores
    assert whole.shape == (3, 1)
    assert (whole < 0).all()
    torch.manual_seed(7)
    one = Features({n: t[1:2] for n, t in features.tensors.items()}, features.views[1:2])
    assert torch.allclose(sd.predict(one, gear).scores, whole[1:2], atol=1e-5)
    assert not torch.allclose(sd.predict(features, ring).scores, whole, atol=1e-6)


def test_the_fixed_timesteps_span_the_schedule(sd: Diffusion, features: Features, monkeypatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(sd, "_errors", lambda a, b, times, *d: seen.append(int(times[0])) or torch.zeros(len(a)))
    sd.predict(features, sd.embed_text(["gear"]))
    assert len(seen) == HELD_TIMES
    assert (seen[0], seen[-1]) == (62, 937)


def test_a_model_that_predicts_velocity_learns_it(toy_sd: Path, toy_clip: Path, tmp_path: Path, features) -> None:
    """As Stable Diffusion 2 does (Salimans and Ho 2022): where all is noise, the velocity is minus the picture."""
    folder = write_toy_sd(tmp_path / "v", toy_clip)
    config = read_json(folder / "scheduler/scheduler_config.json")
    write_json(folder / "scheduler/scheduler_config.json", {**config, "prediction_type": "v_prediction"})
    sd = Diffusion(folder)
    latents, text = features.tensors["mean"] * sd.scale, sd.embed_text(["gear"])
    noise, last = torch.randn(latents.shape, generator=seeded()), torch.full((3,), 999)
    sd.unet = lambda noisy, times, given: type("Told", (), {"sample": -latents})
    kept = float(sd.schedule.alphas_cumprod[-1])
    error = kept**0.5 * noise - ((1 - kept) ** 0.5 - 1) * latents
    weight = kept / (1 - kept) / (kept / (1 - kept) + 1)
    expected = error.square().mean((1, 2, 3)) * weight
    assert torch.allclose(sd._errors(latents, noise, last, text.embeds), expected, atol=1e-6)


def test_samples_depend_on_seed_and_place_and_not_on_what_else_is_made(sd: Diffusion) -> None:
    text, empty = sd.embed_text(["gear"], templates=TEMPLATES), sd.embed_text([""]).embeds
    pictures = sd.sample(text.embeds, empty, seed=4, steps=3)
    assert [p.size for p in pictures] == [(64, 64)] * 3
    alone = sd.sample(text.embeds[:1], empty, seed=4, steps=3)[0]
    other = sd.sample(text.embeds[:1], empty, seed=5, steps=3)[0]
    array = [np.asarray(p).astype(int) for p in (pictures[0], alone, other)]
    assert np.abs(array[0] - array[1]).max() <= 2
    assert np.abs(array[0] - array[2]).max() > 10


def test_pictures_are_cropped_to_the_middle(sd: Diffusion) -> None:
    wide = Image.new("RGB", (128, 64), "black")
    wide.paste((255, 255, 255), (32, 0, 96, 64))
    assert torch.equal(sd.pixels([wide]), torch.ones(1, 3, 64, 64))


def test_the_official_layout_of_a_text_encoder_loads(toy_sd: Path, sd: Diffusion, tmp_path: Path) -> None:
    """Stable Diffusion 1.5's file names its text encoder's weights `text_model.*`, with a table of positions."""
    import shutil

    shutil.copytree(toy_sd, tmp_path / "official")
    path = tmp_path / "official/text_encoder/model.safetensors"
    weights = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in load_file(path).items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(weights, path, metadata={"format": "pt"})
    official = Diffusion(tmp_path / "official").embed_text(["gear"]).embeds
    assert torch.equal(official, sd.embed_text(["gear"]).embeds)


def test_what_is_no_whole_stable_diffusion_is_refused(toy_sd: Path, toy_clip: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(toy_sd, tmp_path / "sd")
    index = tmp_path / "sd/model_index.json"
    write_json(index, {**json.loads(index.read_text()), "_class_name": "FluxPipeline"})
    with pytest.raises(BackboneError, match="holds a `FluxPipeline`, not a `StableDiffusionPipeline`"):
        Diffusion(tmp_path / "sd")
    write_json(index, read_json(toy_sd / "model_index.json"))
    path = tmp_path / "sd/unet/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights.pop("conv_in.weight")
    save_file(weights, path)
    with pytest.raises(BackboneError, match=r"do not fill it: conv_in.weight"):
        _ = Diffusion(tmp_path / "sd").unet
    config = read_json(tmp_path / "sd/unet/config.json")
    write_json(tmp_path / "sd/unet/config.json", {**config, "cross_attention_dim": 99})
    with pytest.raises(BackboneError, match="reads text 99 wide, and its text encoder writes 32"):
        Diffusion(tmp_path / "sd")
    sampler = read_json(toy_sd / "scheduler/scheduler_config.json")
    write_json(tmp_path / "sd/scheduler/scheduler_config.json", {**sampler, "_class_name": "os"})
    write_json(tmp_path / "sd/unet/config.json", config)
    with pytest.raises(BackboneError, match="asks for the sampler `os`"):
        _ = Diffusion(tmp_path / "sd")._pipeline


def test_stable_diffusion_1_5_has_its_own_sizes(tmp_path: Path) -> None:
    """At full size on the meta device: 859,520,964, 83,653,863 and 123,060,480 parameters, as its checkpoints have."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    configs = {
        "unet": {
            "sample_size": 64, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 768,
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "attention_head_dim": 8,
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, "block_out_channels": [320, 640, 1280, 1280],
        },
        "vae": {
            "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
            "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4,
        },
        "text_encoder": {
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "max_position_embeddings": 77,
        },
    }  # fmt: skip
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**configs["unet"]), AutoencoderKL(**configs["vae"])
        text = CLIPTextModel(CLIPTextConfig(**configs["text_encoder"]))
    counts = [sum(p.numel() for p in part.parameters()) for part in (unet, vae, text)]
    assert counts == [859_520_964, 83_653_863, 123_060_480]
    shapes = {name: tuple(t.shape) for name, t in unet.state_dict().items()}
    assert len(shapes) == 686
    assert shapes["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"] == (320, 768)
    assert shapes["mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight"] == (1280, 768)
    for part, config in configs.items():
        write_json(tmp_path / part / "config.json", config)
    write_json(tmp_path / "model_index.json", {"_class_name": "StableDiffusionPipeline"})
    opened = Diffusion(tmp_path)
    assert (opened.size, opened.scale) == (512, 0.18215)
    assert (opened.sites["text_embeds"].width, opened.sites["text_embeds"].max_tokens) == (768, 77)


def test_a_new_row_of_the_table_goes_the_way_of_one_of_its_own_and_the_table_is_put_back(
    sd: Diffusion, features: Features, tmp_path: Path
) -> None:
    tensors = features.tensors
    store = write_features(
        tmp_path, list("abc"), [0] * 3, 2, lambda rows: lambda view: {n: t[list(rows)] for n, t in tensors.items()}
    )
    text = sd.embed_text(["gear"], templates=TEMPLATES)
    encoded = Encoded(tmp_path, {"templates": TEMPLATES[:2]}, store, store, text)
    table = sd.text_encoder.embeddings.token_embedding
    before, ends = table.weight.clone(), []
    for whole in (True, False):
        inversion = Inversion(sd, encoded, "gear", 0.1, None, whole)
        for step in range(3):
            inversion.step(step + 1, generator_for(0, step))
        inversion.close()
        ends.append(inversion.trained.detach()[-1])
    assert torch.allclose(*ends, atol=1e-5)
    assert not torch.allclose(ends[0], sd.word_vectors("gear")[0], atol=0.1)
    assert torch.equal(table.weight, before)
