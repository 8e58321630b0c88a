"""This project's code as a wheel, for a registered model to bring along: no package index has it."""

import base64
import hashlib
import importlib.metadata
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

import cones
from cones.common.errors import TrackingError
from cones.common.files import content_hash, file_hash
from cones.config.tables import KINDS


def write_wheel(folder: Path) -> Path:
    """Write the code that runs here as a wheel into a folder; its path.

    The version has a hash of the code as its local part, so two states of the code never share an environment. The
    same code gives the same bytes. Built-in base models are left out: a Concept names its own and knows its hash, and
    a version in the registry stays small. Needs no build backend and no source tree: what is installed is a package
    and its metadata already.
    """
    package = Path(cones.__file__).parent
    files = {f"cones/{p.relative_to(package).as_posix()}": p for p in _code_files(package)}
    code = content_hash({name: file_hash(path) for name, path in files.items()})
    version = f"{cones.__version__}+code{code[:12]}"
    about = f"cones-{version}.dist-info"
    contents = {name: path.read_bytes() for name, path in files.items()}
    contents[f"{about}/METADATA"] = "\n".join(_metadata(version)).encode() + b"\n"
    contents[f"{about}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: cones\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    contents[f"{about}/entry_points.txt"] = b"[console_scripts]\ncones = cones.cli.main:main\n"
    contents[f"{about}/RECORD"] = "".join(_record(contents, f"{about}/RECORD")).encode()
    wheel = folder / f"cones-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name)  # of 1980, so that equal code is equal bytes
            entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return wheel


def requirements(wheel: str, kind: str) -> list[str]:
    """What pip is to install for a Concept on a kind of base model: the wheel, a path, with the extra that it needs,
    and each direct requirement in the version that is installed here."""
    extra = KINDS[kind].extra
    lines = [f"{wheel}[{extra}]" if extra else wheel]
    for text in _distribution().requires or ():
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate({"extra": extra}):
            lines += _pin(needed.name)
    return lines


def _pin(package: str) -> Iterator[str]:
    """A package as it is installed here, without the build's name (`+cpu`), which no index knows."""
    try:
        yield f"{package}=={Version(importlib.metadata.version(package)).public}"
    except importlib.metadata.PackageNotFoundError:
        yield from ()  # an extra that this machine lacks: the wheel's own bounds choose


def _code_files(package: Path) -> Iterator[Path]:
    for path in sorted(package.rglob("*")):
        inside = path.relative_to(package).parts
        if path.is_file() and inside[0] != "builtin" and "__pycache__" not in inside:
            yield path


def _distribution() -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution("cones")
    except importlib.metadata.PackageNotFoundError:
        raise TrackingError("`cones` is not installed here; `pip install --no-deps --editable .` installs it") from None


def _metadata(version: str) -> Iterator[str]:
    """The fields that pip reads, as they are installed here."""
    installed = _distribution().metadata
    yield from ("Metadata-Version: 2.1", "Name: cones", f"Version: {version}")
    for field in ("Summary", "Requires-Python", "Provides-Extra", "Requires-Dist"):
        yield from (f"{field}: {value}" for value in installed.get_all(field, []))


def _record(contents: dict[str, bytes], record: str) -> Iterable[str]:
    for name, content in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        yield f"{name},sha256={digest},{len(content)}\n"
    yield f"{record},,\n"
