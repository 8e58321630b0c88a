"""Several Concepts of one base model made into one, which tells or finds the classes of all of them at once."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cones.common.errors import ConceptError
from cones.common.files import content_hash, file_hash, fresh_file
from cones.common.messages import nearest
from cones.concept.card import JOIN, ConceptCard
from cones.concept.file import WEIGHTS_FILE
from cones.inference.open import OpenConcept


def join(concepts: Sequence[OpenConcept], rename: Mapping[str, str]) -> OpenConcept:
    """One Concept with the classes of two or more, in their order; nothing is searched again.

    `rename` gives classes of the Concepts after the first another label. Each keeps its own context tokens, since its
    embeddings were searched beside them. The lowest score threshold and the largest canvas hold; validation scores are
    not carried over, because the classes now compete.

    Raises `ConceptError` if base model, task, preprocessing or fine-tuned weights differ, if two classes have one
    label, and if the base model does not take so many tokens.
    """
    if len(concepts) < 2:
        raise ConceptError(f"joining takes two Concepts or more, got {len(concepts)}")
    first = concepts[0].card
    if first.task == "generation":
        raise ConceptError(
            f"`{first.concept}` makes pictures and has no classes to join; several concepts stand in one prompt: "
            "`cones generate --also`"
        )
    for other in concepts[1:]:
        _refuse_different(first, other.card)
    whole = [c.card.row for c in concepts if "pooled" in c.tensors]
    if whole:
        raise ConceptError(f"`{whole[0]}` has a vector for its whole text (`pooled`), which no joined text can have")
    seen = [c.card.row for c in concepts if "visual_tokens" in c.tensors]
    if seen:
        raise ConceptError(f"`{seen[0]}` sees pictures by visual tokens of its own, which classes of others do not fit")
    own = [c.card for c in concepts if {"bias", "keys"} & set(c.tensors)]
    if own:
        raise ConceptError(
            f"`{own[0].row}` was found by {own[0].method['name']}, which scores its classes against each other alone; "
            "join rows of a method that searches embeddings, as cones and taskres do"
        )
    conditional = [c.card.row for c in concepts if c.card.needs_text_encoder]
    if conditional:
        raise ConceptError(
            f"`{conditional[0]}` gives each picture a text of its own by context tokens of its own, which classes of "
            "others do not fit"
        )
    cards = [c.card for c in concepts]
    card = _card(cards, _classes(cards, rename))
    embeds, owner = torch.cat([c.tensors["text_embeds"].float() for c in concepts]), _owner(concepts)
    _refuse_too_many(concepts, len(owner))
    tensors = {"text_embeds": embeds, "owner": owner}
    first_one = concepts[0]
    return OpenConcept(card, tensors, first_one.weights_file, first_one.base_folder, first_one.device)


def save_joined(joined: OpenConcept, out: Path) -> None:
    """Write a joined Concept, with the fine-tuned weights beside it where there are any.

    Raises `ConceptError` if other weights stand there already.
    """
    if joined.card.weights_sha256 is not None and joined.weights_file is not None:
        joined.weights()  # refuses weights that are missing or damaged
        beside = out.with_name(WEIGHTS_FILE)
        if not beside.exists():
            with fresh_file(beside) as temporary:
                shutil.copyfile(joined.weights_file, temporary)
        elif file_hash(beside) != joined.card.weights_sha256:
            raise ConceptError(f"{beside} belongs to another Concept; choose another folder with --out")
    joined.save(out)


def refuse_taken(out: Path) -> None:
    """`ConceptError` where something stands already that a joined Concept would take the place of."""
    if out.exists():
        raise ConceptError(f"{out} is there already; remove it, or choose another file with --out")


def _refuse_different(first: ConceptCard, other: ConceptCard) -> None:
    pairs = {
        "base model": (first.base.sha256[:12], other.base.sha256[:12]),
        "task": (first.task, other.task),
        "preprocessing": (first.preprocessing, other.preprocessing),
        "fine-tuned weights": tuple((c.weights_sha256 or "none")[:12] for c in (first, other)),
    }
    for what, (one, two) in pairs.items():
        if one != two:
            raise ConceptError(
                f"`{first.row}` and `{other.row}` cannot be joined: their {what} must be the same, got {one} and "
                f"{two}; join rows that were searched on one base model, for one task"
            )


def _classes(cards: Sequence[ConceptCard], rename: Mapping[str, str]) -> list[str]:
    """The classes of all, each once; `ConceptError` for a clash, and for a renaming of what is not there."""
    later = [name for card in cards[1:] for name in card.classes]
    for old in rename:
        if old not in later:
            raise ConceptError(f"the Concepts after the first have no class `{old}` to rename{nearest(old, later)}")
    classes, owner = list(cards[0].classes), dict.fromkeys(cards[0].classes, cards[0].row)
    for card in cards[1:]:
        for name in (rename.get(c, c) for c in card.classes):
            if name in owner:
                raise ConceptError(
                    f"`{owner[name]}` and `{card.row}` both have the class `{name}`; give the second another label, as "
                    f"--rename {name}=other-{name}, and join more than two one after the other"
                )
            owner[name] = card.row
            classes.append(name)
    return classes


def _owner(concepts: Sequence[OpenConcept]) -> torch.Tensor:
    """Which class of the joined Concept each token belongs to, -1 for context: (T,)."""
    parts, start = [], 0
    for concept in concepts:
        owner = concept.tensors["owner"]
        parts.append(torch.where(owner >= 0, owner + start, owner))
        start += len(concept.card.classes)
    return torch.cat(parts)


def _refuse_too_many(concepts: Sequence[OpenConcept], tokens: int) -> None:
    base = concepts[0].card.base
    most = concepts[0].backbone.sites["text_embeds"].max_tokens
    if most is not None and tokens > most:
        each = " + ".join(str(len(c.tensors["owner"])) for c in concepts)
        raise ConceptError(
            f"together they have {tokens} text tokens ({each}), and {base.name} takes {most}; join fewer of them, or "
            "search rows with fewer tokens a class (`n_tokens`)"
        )


def _card(cards: Sequence[ConceptCard], classes: list[str]) -> ConceptCard:
    first = cards[0]
    canvases = [c.canvas for c in cards if c.canvas is not None]
    thresholds = [c.score_threshold for c in cards if c.score_threshold is not None]
    versions = [c.versions for c in cards]
    return first.model_copy(
        update={
            "concept": "+".join(dict.fromkeys(c.concept for c in cards)),
            "row": "+".join(c.row for c in cards),
            "method": {"name": JOIN, "of": [origin for c in cards for origin in _origins(c)]},
            "site": first.site if len({c.site for c in cards}) == 1 else "text_embeds",
            "classes": classes,
            "names": [name for c in cards for name in c.names],
            "templates": list(dict.fromkeys(t for c in cards for t in c.templates)),
            "score_threshold": min(thresholds, default=None),
            "canvas": (max(h for h, _ in canvases), max(w for _, w in canvases)) if canvases else None,
            "shots": first.shots if len({c.shots for c in cards}) == 1 else None,
            "split_hash": content_hash([c.split_hash for c in cards]),
            "trained_parameters": sum(c.trained_parameters for c in cards),
            "val": {},
            "versions": {k: " and ".join(dict.fromkeys(v[k] for v in versions if k in v)) for k in first.versions},
            "tensors_sha256": None,
        }
    )


def _origins(card: ConceptCard) -> list[dict[str, Any]]:
    """What a card says of itself to the one it is joined into; of a joined one, what those said."""
    if card.method["name"] == JOIN:
        return list(card.method["of"])
    kept = {"concept", "row", "method", "classes", "shots", "seed", "split_hash", "val"}
    return [card.model_dump(mode="json", include=kept)]
