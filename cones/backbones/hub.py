"""Base models by their folder, a built-in name or the hub: found, fetched where that is allowed, and hashed."""

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePath

import cones
from cones.common.choices import REVISION
from cones.common.errors import BackboneError, NotFetched, Unreachable
from cones.common.files import folder_hash

WEIGHTS = ("model*.safetensors", "pytorch_model.bin")


TEXTS = ("*.json", "*.txt", "*.model")


PART_WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin")


TEXT_ENCODER = "text_encoder"


PARTS = (TEXT_ENCODER, "unet", "vae", "tokenizer", "scheduler")
"""Folders of a base model that hold parts of it: a GLIP's text encoder, all of a Stable Diffusion."""


INDEXES = ("config.json", "model_index.json")
"""A base model's folder has one of them."""

OPEN_CLIP = "open_clip_config.json"
"""One in open_clip's layout alone has this instead."""


BUILT_IN = PurePath("models/backbones")
"""Where `params.yaml` and the cards of Concepts say that the built-in base models are; a wheel has them inside."""


def locate(source: str, revision: str | None = None, fetch: bool = True) -> Path:
    """The local folder of a base model.

    `source` is a folder (from where you stand, or from the project), `models/backbones/NAME` for one of the built-in
    ones that travel with the package, or a hub name, fetched at its pinned `revision`; without `fetch` the network is
    left alone, and `NotFetched` raised where the hub's cache has it not. Raises `BackboneError` for anything else,
    with the nearest that exists.
    """
    package, path = Path(cones.__file__).parent, Path(source)
    folders = [path, package.parent / path]
    if path.parent == BUILT_IN:
        folders.append(package / "builtin" / path.name)
    for folder in folders:
        if _is_base(folder):
            return folder
        _refuse_open_clip(folder)
    if not _is_hub_name(source):
        raise BackboneError(
            f"there is no base model in {source} (a folder with {' or '.join(INDEXES)}){_nearest(path)}; give a "
            "folder, or a hub name such as openai/clip-vit-base-patch16 with its revision"
        )
    if revision is None:
        raise BackboneError(
            f"the hub model {source} needs a `revision`: the 40 hex digits of the commit to use{_nearest(path, 1.0)}"
        )
    if not re.fullmatch(REVISION, revision):
        raise BackboneError(f"the `revision` of {source} must be the 40 hex digits of a commit, got {revision[:60]!r}")
    found = _fetch(source, revision) if fetch else _fetched(source, revision)
    _refuse_open_clip(found)
    return found


def _is_hub_name(source: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return "/" in source and not source.startswith("models/")


def _is_base(folder: Path) -> bool:
    return any(os.path.isfile(folder / index) for index in INDEXES)


def _refuse_open_clip(folder: Path) -> None:
    if not _is_base(folder) and os.path.isfile(folder / OPEN_CLIP):
        raise BackboneError(
            f"the base model in {folder} is in open_clip's layout; convert it once, by `python -m "
            "cones.backbones.open_clip.convert FOLDER OUT`, where FOLDER has all files of its repository"
        )


def _nearest(path: Path, alike: float = 0.6) -> str:
    """The part of a sentence about a wrong path that names the most similar base model beside it or built in."""
    package = Path(cones.__file__).parent
    near = {f.name: str(BUILT_IN / f.name) for root in (package.parent / BUILT_IN, package / "builtin")
            for f in root.glob("*") if _is_base(f)}  # fmt: skip
    near |= {f.name: str(f) for f in path.parent.glob("*") if _is_base(f)}
    close = difflib.get_close_matches(path.name, near, n=1, cutoff=alike)
    return f", did you mean {near[close[0]]}?" if close else ""


def _fetch(source: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    from huggingface_hub.errors import RevisionNotFoundError as NoRevision

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(_wanted())))
    except (RepositoryNotFoundError, NoRevision):
        raise BackboneError(f"the hub has no model {source} at {revision}; check its name and the commit") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        raise Unreachable(
            f"the hub model {source} at {revision[:8]} cannot be fetched ({type(error).__name__}); check the network, "
            "or download it elsewhere and give its folder as `source`"
        ) from None


def _fetched(source: str, revision: str) -> Path:
    """The folder of a hub model that was fetched before."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        raise NotFetched(
            f"the base model {source} at {revision} is not on this machine, and no params.yaml here names it, so it is "
            "not fetched unasked; if you trust it, say --fetch (in Python `fetch=True`), or give its folder with --base"
        ) from None


def _wanted() -> Iterator[str]:
    """The files of a base model, as patterns: other precisions and single-file checkpoints of a hub model are not."""
    yield from (*WEIGHTS, *TEXTS)
    for part in PARTS:
        yield from (f"{part}/{pattern}" for pattern in (*PART_WEIGHTS, *TEXTS))


def base_files(folder: Path) -> set[Path]:
    """What a base model is made of: its weights, configuration and vocabulary files."""
    return {p for pattern in _wanted() for p in folder.glob(pattern) if p.is_file()}


def base_hash(folder: Path) -> str:
    """What a base model *is*: the SHA-256 over its `base_files`."""
    return folder_hash(folder, base_files(folder))
