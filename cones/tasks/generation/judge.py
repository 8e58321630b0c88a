"""What a Concept of generation is worth by pictures made with it: likeness to the subject, obedience to prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cones.backbones import open_backbone
from cones.backbones.hub import locate
from cones.backbones.judge import Judge
from cones.backbones.sd.settings import DiffusionModel
from cones.concept.file import Concept
from cones.interfaces.protocols import DualEncoder, Paints
from cones.tasks.generation.measure import diversity, likeness, obedience
from cones.tasks.generation.prompt import prompt_embeds, sampled
from cones.tasks.generation.sentences import PROMPTS
from cones.tasks.generation.settings import GenerationConcept
from cones.tasks.task import Sampled


@dataclass(frozen=True)
class Judges:
    """Two models that had no part in a search, what to ask of a Concept, and how often."""

    dino: Judge
    clip: DualEncoder
    prompts: Sequence[str]
    samples: int
    seed: int

    @staticmethod
    def of(concept: GenerationConcept, config: DiffusionModel, device: Any = "cpu") -> "Judges":
        """Those beside a concept's base model."""
        assert config.judge is not None, "a Stable Diffusion has a judge beside it"
        assert config.clip is not None, "and its CLIP"
        dino = Judge(locate(config.judge.source, config.judge.revision), device)
        clip = cast(DualEncoder, open_backbone("clip", locate(config.clip.source, config.clip.revision), device))
        return Judges(dino, clip, concept.prompts or PROMPTS, concept.samples, concept.seed)

    def judge(self, concept: Concept, backbone: Paints, subject: Sequence[Image.Image]) -> Sampled:
        """Sample the first template and each prompt, and measure `dino`, `clip_i`, `clip_t` and `diversity`.

        Every Concept gets the same noise. Likeness and diversity are those of the first template's pictures; `clip_t`
        is that of the prompts', with the class word in the concept's place, and is left out for a Concept that takes no
        prompt.
        """
        word, template = concept.card.names[0], concept.card.templates[0]
        steered = concept.card.method.get("rows") != "all"
        few = max(2, self.samples // 4)
        prompts = [p for p in self.prompts if steered and p != template]
        asked = {template: self.samples, **dict.fromkeys(prompts, few)}
        pictures: dict[str, list[Image.Image]] = {}
        told: dict[str, tuple[float, float]] = {}
        seen = {"dino": self.dino.features(subject), "clip_i": self._clip(subject)}
        metrics: dict[str, float] = {}
        for place, (prompt, n) in enumerate(asked.items()):
            text = prompt_embeds(concept, backbone, prompt)
            made = sampled(concept, backbone, text, n, self.seed, first=1000 * place)
            judged, clip = self.dino.features(made), self._clip(made)
            said = F.normalize(self.clip.embed_text([word], templates=[prompt]).embeds[0].cpu(), dim=-1)
            pictures[prompt] = made
            told[prompt] = (likeness(judged, seen["dino"]), obedience(clip, said.expand(len(made), -1)))
            if not place:
                metrics = {
                    "dino": told[prompt][0],
                    "clip_i": likeness(clip, seen["clip_i"]),
                    "diversity": diversity(judged),
                }
        if steered:
            metrics["clip_t"] = sum(told[p][1] for p in self.prompts) / len(self.prompts)
        return Sampled(pictures, {name: round(value, 6) for name, value in metrics.items()}, told)

    @torch.inference_mode()
    def _clip(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        return F.normalize(self.clip.encode(self.clip.pixels(pictures))["image"].float().cpu(), dim=-1)
