"""The only door to backbones: find a base model's files, check what they are, open them."""

from pathlib import Path
from typing import Any

import cones
from cones.errors import BackboneError, Unreachable
from cones.files import folder_hash

WEIGHTS = ("*.safetensors", "pytorch_model.bin")
TEXTS = ("*.json", "*.txt", "*.model")
TEXT_ENCODER = "text_encoder"
"""The folder in which a GLIP keeps the files of its text encoder."""


def locate(source: str, revision: str | None = None) -> Path:
    """The local folder of a base model.

    `source` is a folder (from where you stand, from the project, or one of the built-in ones that travel with the
    package), or a hub name, fetched at its pinned `revision`.
    """
    package = Path(cones.__file__).parent
    for folder in (Path(source), package.parent / source, package / "builtin" / Path(source).name):
        if (folder / "config.json").is_file():
            return folder
    parts = source.split("/")
    if len(parts) != 2 or source.startswith((".", "models/")):
        raise BackboneError(
            f"there is no base model in {source} (a folder with config.json); give a folder, or a hub name such as "
            "openai/clip-vit-base-patch16 with its revision"
        )
    if revision is None:
        raise BackboneError(f"the hub model {source} needs a `revision`: the 40 hex digits of the commit to use")
    return _fetch(source, revision)


def _fetch(source: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    from huggingface_hub.errors import RevisionNotFoundError as NoRevision

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=[*WEIGHTS, *TEXTS]))
    except (RepositoryNotFoundError, NoRevision):
        raise BackboneError(f"the hub has no model {source} at {revision}; check its name and the commit") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        raise Unreachable(
            f"the hub model {source} at {revision[:8]} cannot be fetched ({type(error).__name__}); check the network, "
            "or download it elsewhere and give its folder as `source`"
        ) from None


def base_hash(folder: Path) -> str:
    """What a base model *is*: the SHA-256 over its weights, configuration and vocabulary files."""
    roots = (folder, folder / TEXT_ENCODER)
    files = {p for root in roots for pattern in (*WEIGHTS, *TEXTS) for p in root.glob(pattern)}
    return folder_hash(folder, files)


def open_backbone(kind: str, folder: Path, device: Any = "cpu", task: str | None = None, **known: Any) -> Any:
    """Open a base model of a kind from its folder for a task, or for all it can do.

    `known` are facts that need no weights to be read again.
    """
    match kind:
        case "clip":
            from cones.backbones.clip import Clip

            return Clip(folder, device, **known)
        case "glip":
            from cones.backbones.glip import Glip

            return Glip(folder, device, draws_masks=task != "detection", **known)
        case _:
            raise BackboneError(f"unknown kind of backbone `{kind}`; there are clip and glip")
