"""What is here and what is missing: versions, device, servers, base models. Nothing is changed or fetched."""

import os
import platform
import re
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import cones
from cones.cli.servers import PASSWORDS, check_passwords
from cones.common.errors import ConesError
from cones.common.escaping import printable, terminal_lines
from cones.common.layout import CACHE, ENCODED
from cones.common.redaction import address, redacted

if TYPE_CHECKING:
    from cones.backbones.settings import ModelSource

PACKAGES = (
    "torch", "transformers", "accelerate", "diffusers", "mmdet", "mmcv-lite", "pycocotools", "monai", "peft",
    "dvc", "mlflow", "prefect",
)  # fmt: skip
PARTS = {
    "glip": ("model.safetensors", "text_encoder/config.json"),
    "sd": ("unet/config.json", "vae/config.json", "text_encoder/config.json", "tokenizer", "scheduler"),
}
"""What a base model's folder has beside its index; a hub model's weights may have several names."""
KINDS = {"sd": ("StableDiffusionPipeline",), "judge": ("vit", "resnet")}
"""What a base model's index calls itself, where that is not its kind."""
LOCKED_PREFECT = (
    "end it and its workers, `cones servers init`, and start them again in this folder: without a password any page in "
    "a browser here can have a worker run its commands"
)
LOCKED_MLFLOW = "start it as docker-compose.yml does: whoever reaches it can change what it hands out"
LEAST_DISK = 5
"""Free gigabytes under which the doctor warns."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what was found, whether that is well (None: it need not be there), and what to do."""

    what: str
    found: str
    well: bool | None = True
    to_do: str = ""


def examine(cache: bool = False) -> Iterator[Finding]:
    """Look at everything that a run needs, one finding at a time; with `cache` at every byte that is kept, too."""
    yield Finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("cones", f"{cones.__version__}, {Path(cones.__file__).parent}")
    yield from _packages()
    yield from _device()
    yield from _project()
    if Path(".dvc").is_dir():
        from cones.cli.doctor_remote import examine_remote

        yield from examine_remote()
    yield from _tracking()
    yield _prefect()
    yield _passwords()
    if cache:
        from cones.cli.damage import damaged_encoded, damaged_entries, damaged_kept

        yield from damaged_entries(Path(".dvc/cache/files/md5"), Path("dvc.lock"))
        yield from damaged_encoded(ENCODED)
        yield from damaged_kept(CACHE)


def _packages() -> Iterator[Finding]:
    pins = Path("requirements.in")
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", pins.read_text(), re.M)) if pins.exists() else {}
    for name in PACKAGES:
        try:
            have = version(name)
        except PackageNotFoundError:
            yield Finding(name, "not installed", False, "make -B .venv/ready")
            continue
        want = pinned.get(name, have)
        same = want in (have, have.split("+")[0])  # a local build of a version is that version
        yield Finding(name, have, same, "" if same else f"{want} is pinned: make -B .venv/ready")


def _device() -> Iterator[Finding]:
    import psutil
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            of = torch.cuda.get_device_properties(i)
            yield Finding(f"GPU {i}", f"{of.name}, {of.total_memory / 2**30:.0f} GiB")
    else:
        hint = "this torch is a CPU build" if torch.version.cuda is None else "the driver shows torch no GPU"
        yield Finding("GPU", f"none ({hint}); everything runs on the CPU", None)
    memory = psutil.virtual_memory()
    yield Finding(
        "CPU", f"{os.cpu_count()} cores, {memory.available / 2**30:.0f} of {memory.total / 2**30:.0f} GiB free"
    )
    free = shutil.disk_usage(".").free / 2**30
    yield Finding("disk", f"{free:.0f} GiB free", free >= LEAST_DISK, "" if free >= LEAST_DISK else "free some space")


def _project() -> Iterator[Finding]:
    from cones.config.params import load_params

    for need in (".git", ".dvc", "dvc.yaml"):
        if not Path(need).exists():
            yield Finding("project", f"no {need} here", False, "stand in a clone of the project")
            return
    try:
        params = load_params()
    except ConesError as error:
        yield Finding("params.yaml", str(error), False, "put it right; `cones check` reads it again")
        return
    yield Finding("params.yaml", f"{len(params.concepts)} concepts, {len(params.rows())} rows")
    used = {c.backbone for c in params.concepts.values()}
    for name, config in params.backbones.items():
        yield _backbone(name, config, config.kind, name in used)
        for helper, model in config.models():
            if model is not config:
                yield _backbone(f"{name}, its {helper}", model, helper, name in used)


def _backbone(name: str, config: "ModelSource", wanted: str, used: bool) -> Finding:
    """Whether a base model lies on this machine, whole and of its kind. One from the hub is not fetched here."""
    from cones.backbones.hub import INDEXES, base_hash, locate
    from cones.backbones.opening import read_config

    what, source = f"backbone {name}", config.source
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        folder = locate(source, config.revision)
        index = next(folder / index for index in INDEXES if (folder / index).is_file())
        about = read_config(index)
        kind = about.get("_class_name", about.get("model_type"))
        lacking = [part for part in PARTS.get(wanted, ()) if not (folder / part).exists()]
        if kind not in KINDS.get(wanted, (wanted,)):
            to_do = "correct `kind` or `source` in params.yaml"
            return Finding(what, f"{folder} holds a `{kind}` model, not a `{wanted}` one", False, to_do)
        if lacking:
            return Finding(what, f"{folder} lacks {', '.join(lacking)}", False, "copy the whole folder again")
        return Finding(what, f"{folder}, SHA-256 {base_hash(folder)[:12]}")
    except ConesError as error:
        if not error.may_pass:
            return Finding(what, str(error), False, "correct `source` in params.yaml")
        to_do = "it is fetched from the hub when it is first used; without a network give a folder as `source`"
        return Finding(what, f"{source} is not on this machine", False if used else None, to_do)
    finally:
        os.environ.pop("HF_HUB_OFFLINE") if before is None else os.environ.update(HF_HUB_OFFLINE=before)


def _tracking() -> Iterator[Finding]:
    from cones.registry.client import tracking_uri

    try:
        uri = tracking_uri()
    except ConesError as error:
        yield Finding("MLflow", str(error), False, "")
        return
    if uri.startswith("http"):
        to_do = "start it, or set MLFLOW_TRACKING_URI; `cones register` catches up later"
        yield _answers("MLflow", uri, "/version", to_do, LOCKED_MLFLOW)
    else:
        here = Path(uri.removeprefix("sqlite:///")).exists()
        yield Finding("MLflow", uri if here else f"{uri}, made by the first `cones register`", True if here else None)


def _prefect() -> Finding:
    os.environ.setdefault("DO_NOT_TRACK", "1")
    try:
        from prefect.settings import get_current_settings
    except ImportError:
        return Finding("Prefect", "not installed", None, "make -B .venv/ready, for flows")
    url = get_current_settings().api.url
    if not url:
        to_do = "for deployments: `cones servers init`, `prefect server start`, then set PREFECT_API_URL=http://127.0.0.1:4200/api"
        return Finding("Prefect", "no server set; a flow starts a temporary one", None, to_do)
    to_do = "start it with `prefect server start`, or unset PREFECT_API_URL"
    return _answers("Prefect", url, "/admin/version", to_do, LOCKED_PREFECT)


def _answers(what: str, url: str, path: str, to_do: str, to_lock: str) -> Finding:
    """Whether a server answers, and asks for a password; one of another machine, or of Prefect, must."""
    shown = address(url)
    try:
        with urllib.request.urlopen(shown.rstrip("/") + path, timeout=3) as answer:
            found = f"{shown} answers ({answer.status}) and asks for no password"
            alone = what == "MLflow" and urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
            return Finding(what, found) if alone else Finding(what, found, False, to_lock)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return Finding(what, f"{shown} answers and asks for a password")
        return Finding(what, f"{shown} does not answer as it should ({error})", False, to_do)
    except (OSError, ValueError, HTTPException) as error:
        return Finding(what, f"{shown} does not answer ({error})", False, to_do)


def _passwords() -> Finding:
    if not os.path.lexists(PASSWORDS):
        return Finding("passwords", f"no {PASSWORDS}; a server needs one", None, "for servers: `cones servers init`")
    try:
        check_passwords()
    except ConesError as error:
        return Finding("passwords", str(error), False, "do that, then start the servers again")
    return Finding("passwords", f"in {PASSWORDS}, for you alone")


def show(findings: Iterator[Finding]) -> bool:
    """Print findings, then what to do about them, without passwords; whether all that must be there is."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout)
    table = Table("", "", "found", box=None, pad_edge=False, show_header=False)
    table.columns[2].overflow = "fold"
    seen = list(findings)
    for finding in seen:
        mark = {True: "[green]ok[/]", False: "[red]no[/]", None: "[yellow]--[/]"}[finding.well]
        found = Text(terminal_lines(redacted(finding.found)))
        table.add_row(mark, Text(printable(finding.what)), found)
    console.print(table)
    for finding in seen:
        if finding.to_do:
            print(printable(redacted(f"{finding.what}: {finding.to_do}")))
    return all(finding.well is not False for finding in seen)
