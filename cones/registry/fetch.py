"""Fetching a Concept from MLflow's registry, with its fine-tuned weights; nothing that comes from there is run."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cones.common.errors import TrackingError
from cones.common.files import file_hash
from cones.common.redaction import redacted
from cones.concept.file import WEIGHTS_FILE, Concept
from cones.registry.client import mlflow_client
from cones.registry.faults import existing, is_name, shown
from cones.registry.home import refuse_moved

URI = re.compile(r"models:/(?:(?P<name>[^/@]+)(?:@(?P<alias>[\w.-]+)|/(?P<number>[0-9]{1,9}|latest))|m-[0-9a-f]{1,64})")


@contextmanager
def fetched_concept(uri: str) -> Iterator[Path]:
    """The Concept file of `models:/NAME@ALIAS` or `models:/NAME/VERSION`, which goes when the block ends.

    The weights of a fine-tuned one stand beside it and stay, in a folder of their own under `cache_folder()` that is
    named by their hash: they are fetched once, and are there as long as a Concept uses them.
    """
    named = URI.fullmatch(uri)
    if named is None or not is_name(named["name"] or "m"):
        raise TrackingError(
            f"{shown(uri)} is no version of a concept; give models:/NAME@champion or models:/NAME/VERSION"
        )
    with tempfile.TemporaryDirectory() as folder:
        with mlflow_client() as client:
            version = _pinned(client, named)
            path = _download(version, "concept.safetensors", Path(folder))
            weights = Concept.load(path).card.weights_sha256
            home = None if weights is None else _kept_weights(version, weights)
        if home is None:
            yield path
            return
        with tempfile.NamedTemporaryFile(dir=home, prefix="concept-", suffix=".safetensors") as beside:
            shutil.copyfile(path, beside.name)
            yield Path(beside.name)


def cache_folder() -> Path:
    """Where fetched weights are kept: `cones` in XDG_CACHE_HOME, else in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cones"


def _kept_weights(version: str, sha256: str) -> Path:
    """The folder in the cache that holds the weights of a version, fetched if they are not there or damaged."""
    home = cache_folder() / "weights" / sha256
    target = home / WEIGHTS_FILE
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrackingError(f"{home} cannot be made ({error}); set XDG_CACHE_HOME to another folder") from None
    if not target.is_file() or file_hash(target) != sha256:
        with tempfile.TemporaryDirectory(dir=home) as folder:
            got = _download(version, WEIGHTS_FILE, Path(folder))
            if file_hash(got) != sha256:
                raise TrackingError(f"{version} is damaged in the registry; delete it there, then run `cones register`")
            got.replace(target)
    return home


def _download(version: str, name: str, folder: Path) -> Path:
    """A file of a version, fetched into a folder; nothing else of it is fetched, and nothing run.

    Whoever can write to the registry decides where MLflow fetches from, and so in which way that fails.
    """
    import mlflow

    try:
        artifact = f"{version}/artifacts/{name}"
        path = Path(mlflow.artifacts.download_artifacts(artifact_uri=artifact, dst_path=str(folder)))
    except Exception as error:
        lines = [line for line in redacted(str(error)).splitlines() if line.strip()] or [type(error).__name__]
        if re.search(r"connection|timed out|max retries|\b(429|50[0234])\b", lines[-1], re.I):
            raise
        raise TrackingError(
            f"{version} has no {name} that can be fetched ({shown(lines[-1], '')}); take another version"
        ) from None
    if not path.is_file() or path.is_symlink():
        raise TrackingError(f"{version} has no {name}, but something else of that name; take another version")
    return path


def _pinned(client: Any, named: re.Match[str]) -> str:
    """A match of `URI` by its version, so that an alias that moves meanwhile cannot mix the files of two."""
    uri, name, alias, number = named[0], named["name"], named["alias"], named["number"]
    if name is None or number == "latest":
        return uri
    version = existing(
        lambda: client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    )
    if version is None:
        raise TrackingError(f"{uri} is not in the registry; `cones lookup {name}` shows what is")
    refuse_moved(client, version)
    return f"models:/{name}/{version.version}"
