"""Where a local registry keeps its database and files, and what was registered before the project was moved."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from cones.common.errors import TrackingError


def make_database(uri: str) -> None:
    """Make a local database that is not there yet, whole or not at all: MLflow never finishes tables that it has half
    made."""
    import mlflow
    from sqlalchemy.engine import make_url

    address = make_url(uri) if uri.startswith("sqlite:///") else None
    database = address.database if address else None
    if not address or not database or database.startswith(("file:", ":memory:")) or (path := Path(database)).exists():
        return
    # A folder of its own each time, as MLflow keeps connections by their path.
    with TemporaryDirectory(f".{os.getpid()}.tmp", f".{path.name}.", path.parent) as folder:
        temporary = Path(folder) / path.name
        made = str(address.set(database=str(temporary)))
        mlflow.MlflowClient(made, made).search_experiments()
        try:
            os.link(temporary, path)  # one that another process has made meanwhile stays
        except OSError:  # also where there are no such links
            if not path.exists():
                temporary.replace(path)


def home_of(name: str) -> Path | None:
    """The folder that a local registry keeps the files of a concept in, beside its database; None for a server."""
    import mlflow

    uri = mlflow.get_tracking_uri()
    if not uri.startswith("sqlite:///"):
        return None
    return Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts" / name


def moved_from(uri: str, name: str) -> Path | None:
    """The folder as `home_of` that a URI of MLflow points into, if it is that of another place; else None.

    MLflow notes where files are for good, so a project that was moved or copied points to where it came from.
    """
    home, address = home_of(name), urlparse(uri)
    if home is None or address.scheme not in ("", "file"):
        return None
    path = Path(url2pathname(address.path))
    folders = (folder for folder in (path, *path.parents) if folder.parts[-2:] == ("mlartifacts", name))
    return next((folder for folder in folders if folder != home), None)


def version_moved_from(client: Any, version: Any) -> Path | None:
    """Where the files of a version are, if they are in another place than this registry's; see `moved_from`."""
    if home_of(version.name) is None:
        return None
    return moved_from(client.get_model_version_download_uri(version.name, version.version), version.name)


def refuse_moved(client: Any, version: Any) -> None:
    """`TrackingError` for a version whose files are noted in another place."""
    old = version_moved_from(client, version)
    if old is not None:
        raise TrackingError(
            f"version {version.version} of `{version.name}` was registered in another place, and its files are noted "
            f"in {old}: this project was moved or copied; `cones register` registers its rows again here"
        )
