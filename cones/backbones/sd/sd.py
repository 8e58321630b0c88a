"""Stable Diffusion through diffusers' `StableDiffusionPipeline`: any folder in that layout, frozen.

Opening one reads its configuration only. The parts load when they are first used, so that a search on kept latents
loads no autoencoder and, for ConES, no text encoder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from pydantic import BaseModel
from torch import Tensor, nn

from cones.backbones.hub import PART_WEIGHTS
from cones.backbones.opening import opening, read_config, refuse_larger, refuse_misfit
from cones.backbones.sd.settings import FAMILY
from cones.backbones.sd.text import Sentences, encode_sentences
from cones.backbones.tuned import with_tuned
from cones.common.errors import BackboneError
from cones.interfaces.pictures import Features, Predictions
from cones.interfaces.protocols import Loss, Site, refuse_missing_sites
from cones.interfaces.randomness import generator_for
from cones.interfaces.texts import TextEmbeds, TextTokens

PIPELINE = "StableDiffusionPipeline"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""The linear layers of an attention, by the ends of their names."""
MIN_SNR = 5.0
"""Gamma of min-SNR weighting (Hang et al. 2023)."""
HELD_TIMES, HELD_SEED = 8, 1234
"""Timesteps a picture, and the noise's seed, of the fixed batch that a search is judged by (Voronov et al. 2023)."""
MOST_SIDE = 4096
"""Pixels of a picture's side."""
GUIDANCE, SAMPLING_STEPS = 7.5, 30


@dataclass(frozen=True)
class Noising:
    """How a training step draws noise: `copies` of each latent, at timesteps spread evenly over the batch where
    `stratified`; where `antithetic` the copies are pairs of one latent at one timestep with opposite noise."""

    copies: int = 1
    stratified: bool = False
    antithetic: bool = False


class Diffusion:
    """A frozen Stable Diffusion. A picture is the mean and spread of its latent; text is the encoder's whole output."""

    family = FAMILY

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        self.folder, self.device = folder, torch.device(device)
        self.text_encoder_calls, self.has_masks = 0, False
        self._tuned: dict[str, Tensor] = {}
        self._lora_scale = 1.0
        made = read_config(folder / "model_index.json").get("_class_name")
        if made != PIPELINE:
            raise BackboneError(f"{folder} holds a `{made}`, not a `{PIPELINE}`")
        self.configs = {part: read_config(folder / part / "config.json") for part in ("text_encoder", "unet", "vae")}
        with opening(folder):
            self._read_sizes()

    def _read_sizes(self) -> None:
        """The widths of its sites, which must be of one model, and the size of its pictures."""
        folder, text, unet = self.folder, self.configs["text_encoder"], self.configs["unet"]
        if text["hidden_size"] != unet["cross_attention_dim"]:
            raise BackboneError(
                f"the UNet in {folder} reads text {unet['cross_attention_dim']} wide, and its text encoder writes "
                f"{text['hidden_size']}: they do not belong together"
            )
        length = text["max_position_embeddings"]
        self.sites = {
            "text_tokens": Site(text["hidden_size"], max_tokens=length - 2),
            "text_embeds": Site(text["hidden_size"], max_tokens=length),
        }
        if not 8 <= self.size <= MOST_SIDE:
            raise BackboneError(
                f"the model in {folder} makes pictures of {self.size} pixels a side, not 8 to {MOST_SIDE}"
            )

    @torch.inference_mode(False)
    def _part(self, cls: Any, name: str) -> Any:
        """A part with its weights in single precision, frozen; the UNet with the fine-tuned ones over its own.
        Gradients can pass through it, also where inference mode uses it first."""
        _quietly()
        folder, config = self.folder / name, self.configs[name]
        with opening(folder):
            refuse_larger(lambda: _without_weights(cls, config), folder, PART_WEIGHTS)
            model, report = cls.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True, use_safetensors=True
            )
        lost = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        if lost:
            raise BackboneError(f"the weights in {self.folder / name} do not fill it: {', '.join(lost[:5])}")
        if name == "unet":
            self._tune(model)
        return model.eval().requires_grad_(False).to(self.device)

    @cached_property
    def vae(self) -> Any:
        from diffusers import AutoencoderKL

        return self._part(AutoencoderKL, "vae")

    @cached_property
    def unet(self) -> Any:
        from diffusers import UNet2DConditionModel

        return self._part(UNet2DConditionModel, "unet")

    def part(self, name: str) -> nn.Module:
        """One of its parts by the name of its folder, loaded if it is not yet."""
        return getattr(self, name)

    def lora_layers(self) -> tuple[str, list[str]]:
        """Low-rank additions go to the linear layers of the UNet's attention (Ruiz et al. 2023 with Hu et al. 2021)."""
        ends = tuple(f".{end}" for end in ATTENTION)
        linear = (name for name, layer in self.unet.named_modules() if isinstance(layer, nn.Linear))
        return "unet", [name for name in linear if f".{name}".endswith(ends)]

    def use_weights(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Put fine-tuned weights of the UNet, named `unet.*`, over its own when it loads.

        `<name>.lora_A` (r, in) and `<name>.lora_B` (out, r) are added to a weight as B A times `about["lora_scale"]`.
        """
        strange = [name for name in tensors if not name.startswith("unet.")]
        if strange:
            raise BackboneError(f"the fine-tuned weights hold {', '.join(strange[:5])}, which no UNet has")
        self._tuned = {name.removeprefix("unet."): tensor for name, tensor in tensors.items()}
        self._lora_scale = about.get("lora_scale", 1.0)
        for name in ("unet", "_pipeline"):
            self.__dict__.pop(name, None)

    def _tune(self, unet: Any) -> None:
        """Merge the fine-tuned weights, where they lie, before the UNet goes to its device."""
        if not self._tuned:
            return
        try:
            unet.load_state_dict(with_tuned(unet.state_dict(), self._tuned, self._lora_scale))
        except RuntimeError as error:
            first = " ".join(str(error).split()[:40])
            raise BackboneError(f"the fine-tuned weights are not of the UNet in {self.folder}: {first}") from None

    @cached_property
    def text_encoder(self) -> Any:
        from transformers import CLIPTextModel

        return self._part(CLIPTextModel, "text_encoder")

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import CLIPTokenizer

        folder, text = self.folder / "tokenizer", self.configs["text_encoder"]
        with opening(folder):
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        return refuse_misfit(tokenizer, text.get("vocab_size", 49408), text["max_position_embeddings"], folder)

    @cached_property
    def schedule(self) -> Any:
        """The forward process that the model was trained with."""
        from diffusers import DDPMScheduler

        read_config(self.folder / "scheduler/scheduler_config.json")
        with opening(self.folder / "scheduler"):
            return DDPMScheduler.from_pretrained(self.folder / "scheduler", local_files_only=True)

    @property
    def size(self) -> int:
        """Side of the pictures it makes, in pixels."""
        vae, unet = self.configs["vae"], self.configs["unet"]
        return 2 ** (len(vae["block_out_channels"]) - 1) * unet["sample_size"]

    @property
    def scale(self) -> float:
        """What latents are multiplied by before they are noised."""
        return float(self.configs["vae"].get("scaling_factor", 0.18215))

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What is done to a picture before it is encoded, as a Concept records it."""
        return {"crop": [self.size, self.size], "mean": 0.5, "std": 0.5, "resample": "bicubic"}

    def pixels(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "b 3 h w"]:
        """Resize and centre-crop pictures, and bring them to [-1, 1]."""
        import numpy as np
        from PIL import ImageOps

        side = (self.size, self.size)
        fitted = [ImageOps.fit(p.convert("RGB"), side, Image.Resampling.BICUBIC) for p in pictures]
        return torch.stack([torch.from_numpy(np.asarray(p).copy()).permute(2, 0, 1) / 127.5 - 1 for p in fitted])

    def cells(self, masks: Sequence[Image.Image]) -> Float[Tensor, "b 1 y x"]:
        """The share of each of a latent's cells that a picture's mask covers, after the same crop; nowhere zero in all
        of a picture."""
        import numpy as np
        from PIL import ImageOps

        side = self.size // 2 ** (len(self.configs["vae"]["block_out_channels"]) - 1)
        fitted = [ImageOps.fit(m.convert("L"), (side, side), Image.Resampling.BOX) for m in masks]
        shares = torch.stack([torch.from_numpy(np.asarray(m).copy())[None] / 255 for m in fitted])
        covers = shares.sum((1, 2, 3), keepdim=True) > 0  # a crop may miss the subject
        return torch.where(covers, shares, torch.ones_like(shares))

    @torch.inference_mode()
    def encode(
        self, pixels: Float[Tensor, "b 3 h w"], visual_tokens: Float[Tensor, "l m v"] | None = None
    ) -> Mapping[str, Float[Tensor, "b c y x"]]:
        """Mean and standard deviation of each picture's latent; `BackboneError` for visual tokens."""
        if visual_tokens is not None:
            refuse_missing_sites({"visual_tokens"}, self)
        found = self.vae.encode(pixels.to(self.device)).latent_dist
        return {"mean": found.mean, "std": found.std}

    def embed_text(
        self, names: Sequence[str], tokens: TextTokens | None = None, templates: Sequence[str] = ("{}",)
    ) -> TextEmbeds:
        """The encoder's output for the concept in each template (S, T, d): its name, or `tokens` in its place, whose
        own templates then count; gradients reach them."""
        self.text_encoder_calls += 1
        if tokens is not None:
            sentences = Sentences.build(self.tokenizer, tokens.templates or templates, {"": tokens.vectors.shape[-2]})
            return self._told(sentences, [tokens.vectors])
        with torch.no_grad():
            return self._told(Sentences.build(self.tokenizer, templates, {"": names[0]}))

    @torch.no_grad()
    def embed_prompt(self, prompt: str, concepts: Mapping[str, Float[Tensor, "_ d"]]) -> TextEmbeds:
        """The encoder's output for a prompt with the vectors of concepts where it names them; `{}` has no name."""
        self.text_encoder_calls += 1
        gaps = {name: len(vectors) for name, vectors in concepts.items()}
        return self._told(Sentences.build(self.tokenizer, [prompt], gaps), list(concepts.values()))

    def _told(self, sentences: Sentences, vectors: Sequence[Tensor] = ()) -> TextEmbeds:
        embeds = encode_sentences(self.text_encoder, sentences, vectors)
        mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        return TextEmbeds(embeds, mask, sentences.owner.to(embeds.device))

    def word_vectors(self, words: str) -> Float[Tensor, "n d"]:
        """The token-table rows of some words, to start a concept's own from."""
        ids = self.tokenizer(words, add_special_tokens=False, return_tensors="pt").input_ids[0]
        return self.text_encoder.embeddings.token_embedding(ids.to(self.device)).clone()

    def objective(self, settings: BaseModel | None = None) -> Loss:
        """The denoising loss (Rombach et al. 2022, equation 2) on random noise, with min-SNR weights.

        Settings may say how the `noise` is drawn, and that `gradient_checkpointing` keeps fewer of the UNet's
        activations, which are then computed again where a gradient needs them.
        """
        told = getattr(settings, "noise", None)
        noising = Noising() if told is None else Noising(**told.model_dump())
        if getattr(settings, "gradient_checkpointing", False):
            self.unet.enable_gradient_checkpointing()
        return partial(self._loss, noising)

    def _loss(
        self, noising: Noising, features: Features, text: TextEmbeds, generator: torch.Generator | None = None
    ) -> Float[Tensor, ""]:
        copies, pairs = noising.copies, 2 if noising.antithetic else 1
        each = copies // pairs
        mean, std = (features.tensors[name].repeat_interleave(each, 0) for name in ("mean", "std"))

        def normal() -> Tensor:
            return features.draw(lambda n: torch.randn((n, *mean.shape[1:]), generator=generator), each).to(mean)

        latents = (mean + std * normal()) * self.scale
        noise = normal()
        times = features.draw(lambda n: self._times(n, noising.stratified, generator), each)
        if noising.antithetic:
            latents, times = latents.repeat_interleave(2, 0), times.repeat_interleave(2)
            noise = torch.stack([noise, -noise], 1).flatten(0, 1)
        embeds = text.embeds if len(text.embeds) == 1 else text.embeds.repeat_interleave(copies, 0)
        mask = features.tensors.get("mask")
        mask = None if mask is None else mask.repeat_interleave(copies, 0)
        return self._errors(latents, noise, times, embeds, mask).mean()

    @torch.no_grad()
    def predict(self, features: Features, text: TextEmbeds) -> Predictions:
        """Minus the denoising loss of each picture on fixed noise at fixed timesteps, as its one score: how well the
        text explains it."""
        latents = features.tensors["mean"] * self.scale
        generator = generator_for(HELD_SEED)
        steps = len(self.weights)
        total = torch.zeros(len(latents), device=self.device)
        for i in range(HELD_TIMES):
            noise = torch.randn(latents[:1].shape, generator=generator).to(latents).expand_as(latents)
            times = torch.full((len(latents),), int((i + 0.5) * steps / HELD_TIMES), device=self.device)
            total += self._errors(latents, noise, times, text.embeds, features.tensors.get("mask"))
        return Predictions(-total[:, None] / HELD_TIMES)

    @cached_property
    def weights(self) -> Float[Tensor, " s"]:
        """The min-SNR weight of the loss at each timestep."""
        kept = self.schedule.alphas_cumprod.to(self.device)
        snr = kept / (1 - kept)
        by_velocity = self.schedule.config.prediction_type == "v_prediction"
        return snr.clamp(max=MIN_SNR) / (snr + 1 if by_velocity else snr)

    def _times(self, count: int, stratified: bool, generator: torch.Generator | None) -> Int[Tensor, " b"]:
        """Random timesteps; stratified, one in each of `count` equal stretches, in random order."""
        steps = len(self.weights)
        if not stratified:
            return torch.randint(steps, (count,), generator=generator).to(self.device)
        stretch = torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
        return (stretch * (steps / count)).long().clamp(max=steps - 1).to(self.device)

    def _errors(
        self,
        latents: Float[Tensor, "b c y x"],
        noise: Tensor,
        times: Int[Tensor, " b"],
        embeds: Tensor,
        mask: Float[Tensor, "b 1 y x"] | None = None,
    ) -> Float[Tensor, " b"]:
        """The weighted squared error of each latent, in what the UNet was trained to predict; where a mask says."""
        noisy = self.schedule.add_noise(latents, noise, times)
        told = self.unet(noisy, times, embeds.expand(len(latents), -1, -1)).sample
        by_velocity = self.schedule.config.prediction_type == "v_prediction"
        target = self.schedule.get_velocity(latents, noise, times) if by_velocity else noise
        errors = (told.float() - target).square().mean(1, keepdim=True)
        if mask is None:
            return errors.mean((1, 2, 3)) * self.weights[times]
        return (errors * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)) * self.weights[times]

    @torch.no_grad()
    def sample(
        self,
        embeds: Float[Tensor, "b t d"],
        unconditional: Float[Tensor, "1 t d"],
        seed: int,
        steps: int = SAMPLING_STEPS,
        guidance: float = GUIDANCE,
        first: int = 0,
    ) -> list[Image.Image]:
        """A picture for each text; the i-th one's noise comes from (seed, first + i), whatever else is made with it."""
        generators = [generator_for(seed, first + i) for i in range(len(embeds))]
        found = self._pipeline(
            prompt_embeds=embeds.to(self.device),
            negative_prompt_embeds=unconditional.expand_as(embeds).to(self.device),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            height=self.size,
            width=self.size,
        )
        return list(found.images)

    @cached_property
    def _pipeline(self) -> Any:
        """diffusers' own sampling loop, without a text encoder and with the folder's own sampler."""
        _quietly()
        import diffusers

        name = str(read_config(self.folder / "scheduler/scheduler_config.json").get("_class_name"))
        sampler = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
        if not (isinstance(sampler, type) and issubclass(sampler, diffusers.SchedulerMixin)):
            raise BackboneError(f"{self.folder} asks for the sampler `{name}`, which diffusers does not have")
        with opening(self.folder / "scheduler"):
            scheduler = sampler.from_pretrained(self.folder / "scheduler", local_files_only=True)
        pipeline: Any = diffusers.StableDiffusionPipeline(
            vae=self.vae, unet=self.unet, text_encoder=None, tokenizer=None, safety_checker=None, scheduler=scheduler,
            feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def _without_weights(cls: Any, config: Mapping[str, Any]) -> Any:
    """A part as its configuration has it, in transformers' way or in diffusers'."""
    made = getattr(cls, "config_class", None)
    return cls.from_config(dict(config)) if made is None else cls(made.from_dict(dict(config)))


def _quietly() -> None:
    """Keep transformers from a bar a part, and from telling at each import that torchvision is not there."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
