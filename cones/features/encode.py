"""Encoding a concept: its pictures through the image encoder and its names through the text encoder, once."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cones.backbones import base_hash, locate, open_backbone
from cones.common.errors import BackboneError, DataError
from cones.common.escaping import is_plain, shortened
from cones.common.files import content_hash, fresh_folder, write_json
from cones.common.intact import hash_parts
from cones.common.messages import nearest
from cones.concept.card import BaseModelCard
from cones.config.tables import BackboneConfig, ClassificationConcept, DetectionConcept, GenerationConcept, ModelSource
from cones.data.prepared import Split, records_hash
from cones.data.splits import draw_pictures, draw_shots
from cones.features.encoded import Encoded
from cones.features.targets import refuse_maskless
from cones.features.views import encode_objects, encode_split, picture_of
from cones.interfaces.protocols import TextEmbeds
from cones.tasks.generation.sentences import SENTENCES

AnyConcept = ClassificationConcept | DetectionConcept | GenerationConcept


def class_names(concept: AnyConcept, classes: tuple[str, ...]) -> list[str]:
    """What each class is called in a sentence: its own name with spaces for underscores, or what `names` says; a
    subject by its class word. `DataError` for a class that no Concept can name."""
    for name in classes:
        if not (name and len(name) <= 1000 and is_plain(name)):
            raise DataError(
                f"the class {shortened(name)} is empty, longer than 1000 characters, or has control characters or what "
                "turns the direction of text, which no Concept can name; rename it in the data"
            )
    if isinstance(concept, GenerationConcept):
        return [concept.word]
    for given in concept.names:
        if given not in classes:
            raise DataError(
                f"`names` speaks of the class `{given}`, which the data does not have{nearest(given, classes)}"
            )
    return [concept.names.get(c, c.replace("_", " ")) for c in classes]


@dataclass(frozen=True)
class Drawn:
    """The pictures a concept is searched and validated on, as indices into their splits, and its class names."""

    train: Split
    shown: list[int]
    val: Split
    held: list[int]
    names: list[str]
    views: int

    @property
    def picture_views(self) -> int:
        """How many views of pictures there are to encode."""
        return len(self.shown) * self.views + len(self.held)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each picture that has objects."""
        chosen = ((self.train, self.shown), (self.val, self.held))
        return [size for split, rows in chosen for i in rows if (size := split.records[i].size)]

    @property
    def hashes(self) -> dict[str, str]:
        """What was drawn, by the content of the pictures."""
        chosen = {"train": (self.train, self.shown), "val": (self.val, self.held)}
        return {name: records_hash([split.records[i] for i in rows]) for name, (split, rows) in chosen.items()}


def draw(concept: AnyConcept, data: Path) -> Drawn:
    """Draw a concept's pictures from prepared data; `DataError` if a class has fewer than `shots`."""
    train, val = Split.open(data / "train"), Split.open(data / "val")
    if isinstance(concept, GenerationConcept):
        _refuse_other_task(concept, train)
        every = [list(range(len(split.records))) for split in (train, val)]
        return Drawn(train, every[0], val, every[1], class_names(concept, train.classes), concept.views)
    shots, val_shots, at_most = concept.shots, concept.val_shots or concept.shots, concept.val_shots is None
    if isinstance(concept, DetectionConcept):
        for split in (train, val):
            _refuse_other_task(concept, split)
        shown = draw_pictures(train, shots, concept.seed)
        held = draw_pictures(val, val_shots, concept.seed, at_most)
    else:
        _refuse_other_task(concept, train)
        shown = draw_shots(train, concept.shots, concept.seed)
        held = draw_shots(val, val_shots or concept.shots, concept.seed, at_most)
    return Drawn(train, shown, val, held, class_names(concept, train.classes), concept.views)


def _refuse_other_task(concept: AnyConcept, split: Split) -> None:
    """`DataError` for boxes where classes are wanted and the like, and for missing masks."""
    if bool(split.records) and split.records[0].objects is not None:
        holds, tasks = "boxes", ["detection", "segmentation"]
    elif len(split.classes) == 1:
        holds, tasks = "one subject", ["generation"]
    else:
        holds, tasks = "a class a picture", ["classification"]
    if concept.task not in tasks:
        raise DataError(
            f"the data `{concept.data}` has {holds}, for {' or '.join(tasks)}; the concept's task is {concept.task}"
        )
    if concept.task == "segmentation":
        refuse_maskless([picture_of(r, None) for r in split.records], [r.id for r in split.records])


def encode_concept(
    name: str,
    concept: AnyConcept,
    backbone_config: BackboneConfig,
    drawn: Drawn,
    target: Path,
    device: Any = "cpu",
    on_batch: Callable[[int], None] = lambda done: None,
) -> Encoded:
    """Run the image encoder over the drawn pictures' views and the text encoder over the names, once.

    In generation the mean feature of the training pictures to the base model's CLIP is kept as well.
    """
    from safetensors.torch import save

    folder = locate(backbone_config.source, backbone_config.revision)
    backbone = open_backbone(backbone_config.kind, folder, device)
    if concept.task == "segmentation" and not backbone.has_masks:
        raise BackboneError(
            f"`{concept.backbone}` has no mask head, and the concept `{name}` asks for masks; set its task to "
            "detection and add a row `kind: mask_head` to `finetunes`, which trains one and predicts masks"
        )

    began = time.perf_counter()
    with fresh_folder(target) as out:
        if isinstance(concept, GenerationConcept):
            assert backbone_config.clip is not None, "a Stable Diffusion has its CLIP beside it"
            told = _subject(concept, backbone, drawn, out, on_batch, backbone_config.clip, device)
        elif isinstance(concept, DetectionConcept):
            told = _objects(concept, backbone, drawn, out, on_batch)
        else:
            told = _classes(concept, backbone, drawn, out, on_batch)
        special, templates, tensors = told
        seconds = time.perf_counter() - began
        # As bytes, so that a full disk is Python's own error.
        (out / "text.safetensors").write_bytes(save({name: t.cpu().contiguous() for name, t in tensors.items()}))
        about = {
            "concept": name,
            "task": concept.task,
            "classes": list(drawn.train.classes),
            "names": drawn.names,
            "templates": templates,
            "base": BaseModelCard(
                name=concept.backbone,
                kind=backbone_config.kind,
                source=backbone_config.source,
                revision=backbone_config.revision,
                sha256=base_hash(folder),
            ).model_dump(),
            "preprocessing": backbone.preprocessing,
            **special,
            "shots": len(drawn.shown) if isinstance(concept, GenerationConcept) else concept.shots,
            "seed": concept.seed,
            "split_hash": content_hash(drawn.hashes),
            "val_hash": drawn.hashes["val"],
            "hashes": hash_parts(out, ("train", "val", "text.safetensors")),
        }
        write_json(out / "about.json", about)
        write_json(out / "cost.json", {"feature_seconds": round(seconds, 3)})
    return Encoded.open(target)


Told = tuple[dict[str, Any], list[str], dict[str, Tensor]]
"""What is to be known of an encoded concept beside what all have: facts, templates and tensors."""


def _classes(
    concept: ClassificationConcept, backbone: Any, drawn: Drawn, out: Path, on_batch: Callable[[int], None]
) -> Told:
    crops = (concept.views, concept.min_crop, concept.seed)
    encode_split(backbone, drawn.train, drawn.shown, *crops, out / "train", on_batch)
    encode_split(backbone, drawn.val, drawn.held, 1, 1.0, concept.seed, out / "val", on_batch)
    templates = list(concept.templates or drawn.train.templates or ("a photo of a {}.",))
    return {"logit_scale": backbone.logit_scale}, templates, _text(backbone, drawn.names, templates)


def _objects(
    concept: DetectionConcept, backbone: Any, drawn: Drawn, out: Path, on_batch: Callable[[int], None]
) -> Told:
    canvas = backbone.canvas(drawn.sizes)
    encode_objects(backbone, drawn.train, drawn.shown, concept.views, canvas, out / "train", on_batch)
    encode_objects(backbone, drawn.val, drawn.held, 1, canvas, out / "val", on_batch)
    templates = list(drawn.train.templates or ("{}",))
    special = {"score_threshold": concept.score_threshold, "canvas": canvas}
    return special, templates, _text(backbone, drawn.names, templates)


def _text(backbone: Any, names: Sequence[str], templates: Sequence[str]) -> dict[str, Tensor]:
    text = backbone.embed_text(names, templates=templates)
    return {"text": text.embeds[0], "owner": text.owner, **_pooled(text)}


def _pooled(text: TextEmbeds) -> dict[str, Tensor]:
    return {} if text.pooled is None else {"pooled": text.pooled}


def _subject(
    concept: GenerationConcept,
    backbone: Any,
    drawn: Drawn,
    out: Path,
    on_batch: Callable[[int], None],
    config: ModelSource,
    device: Any,
) -> Told:
    folder = locate(config.source, config.revision)
    clip = open_backbone("clip", folder, device)
    images: list[Tensor] = []

    def look(pictures: list[Image.Image]) -> None:
        images.append(clip.encode(clip.pixels(pictures))["image"].float())

    crops = (concept.views, concept.min_crop, concept.seed)
    encode_split(backbone, drawn.train, drawn.shown, *crops, out / "train", on_batch, concept.flip, look)
    encode_split(backbone, drawn.val, drawn.held, 1, 1.0, concept.seed, out / "val", on_batch)
    templates = list(concept.templates or SENTENCES[concept.learns])
    text = backbone.embed_text(drawn.names, templates=templates)
    seen = torch.cat(images).mean(0)
    special = {
        "guidance": concept.guidance,
        "sampling_steps": concept.sampling_steps,
        "clip": {**config.model_dump(), "sha256": base_hash(folder)},
    }
    none = backbone.embed_text([""], templates=[""]).embeds
    return special, templates, {
        "text": text.embeds, "owner": text.owner, "unconditional": none, "seen": seen, **_pooled(text)
    }  # fmt: skip
