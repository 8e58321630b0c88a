"""Toy backbones and generated data: the real classes at toy width, no network; tensor shapes checked as tests run."""

import contextlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "DVC_NO_ANALYTICS": "true"}
os.environ["OMP_WAIT_POLICY"] = "passive"  # as stages have it; threads that spin take the cores of what tests start

from jaxtyping import install_import_hook

TENSOR_CODE = [
    f"cones.{room}" for room in ("backbones", "features", "interfaces", "methods", "search.loop", "search.epochs")
]
TENSOR_CODE += [f"cones.tasks.{task}.measure" for task in ("classification", "detection", "generation")]
TENSOR_CODE += ["cones.visuals.objects", "cones.visuals.sheets"]
TENSOR_CODE += ["cones.tasks.intervals", "cones.tasks.detection.froc", "cones.tasks.detection.overlap"]
install_import_hook(TENSOR_CODE, "typecheck.checked")

import psutil
import pytest
import torch
from accelerate import Accelerator
from filelock import FileLock
from PIL import Image
from running import run_here
from waiting import free_port

from cones.backbones.clip.clip import Clip
from cones.backbones.clip.settings import ClipModel
from cones.cli.main import main as command_line
from cones.config.code import COMPILED
from cones.data.prepared import Split
from cones.features.encoded import Encoded
from cones.pretrain import clip_model as tiny
from cones.readers.prepare import prepare
from cones.readers.world import WorldData
from cones.synthetic import world as synthetic
from cones.tasks.classification.settings import ClassificationConcept
from cones.tasks.encode import draw, encode_concept

pytest_plugins = ["finetunes", "generations", "mmcvs", "openings", "registries", "teams", "visuals"]
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background; what tests start inherits it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # workers share the cores

ROOT = Path(__file__).parent.parent
RECORDING = Path(__file__).parent / "recording"
PREFECT_PASSWORD = "tests:of a server of tests"
LONGEST = [
    "faults", "generation_pipeline", "team", "machines", "postgres", "detection_pipeline", "extending", "pipeline",
    "volume_use", "flow", "rerun", "search", "cli",
]  # fmt: skip
"""Files that begin first, the longest of them before the others, so that no worker is left with one at the end; those
that wait for `finished` not two at once."""
PARAMS = """
backbones:
  toy: {kind: clip, source: models/backbones/toy}
data:
  glyphs: {kind: world, source: cones/synthetic, vocabulary: novel, size: 32, train: 6, val: 4, test: 5}
concepts:
  few: {task: classification, backbone: toy, data: glyphs, shots: 4, seed: 0, views: 2}
runs:
  few-zero-shot: {concept: few, method: {name: zero_shot}}
  few-coop: {concept: few, method: {name: coop, n_ctx: 2, epochs: 2}}
  few-cones: {concept: few, method: {name: cones, epochs: 5}}
finetunes: {}
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="session")
def toy_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real CLIPModel of 32-pixel pictures with random weights, its tokenizer and processor, in their own layout."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("toy-clip")
    captions = [synthetic.picture(0, "pretrain", i, 32, synthetic.SHAPES[i % 12]).caption for i in range(60)]
    tiny.train_tokenizer(captions, folder)
    size = len(CLIPTokenizer.from_pretrained(folder))
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, **ends, "vocab_size": size, "projection_dim": 24},
        vision_config={**small, "image_size": 32, "patch_size": 8, "projection_dim": 24},
        projection_dim=24,
        **ends,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    sides = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=sides).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def toy_glip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real GLIP of 64-pixel pictures with a mask head and random weights."""
    from toys import toy_glip_config, write_toy_glip

    return write_toy_glip(tmp_path_factory.mktemp("toy-glip") / "glip", toy_glip_config())


@pytest.fixture(scope="session", params=[False, True], ids=["late", "early"])
def official_glip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One as official ones are: without masks, with late fusion as GLIP-T (a) or early fusion as the others."""
    from glips import write_toy

    return write_toy(tmp_path_factory.mktemp("toy-glip") / "official", early_fuse=request.param, masks=False)


@pytest.fixture
def clip(toy_clip: Path) -> Clip:
    return Clip(toy_clip)


@pytest.fixture(scope="session")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture(scope="session")
def encoded(toy_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """Ten glyphs, three shots in two views, encoded by the toy CLIP."""
    folder = tmp_path_factory.mktemp("encoded")
    prepare(WorldData(kind="world", vocabulary="novel", size=32, train=4, val=3, test=2), folder / "prepared")
    concept = ClassificationConcept(task="classification", backbone="toy", data="glyphs", shots=3, views=2)
    backbone = ClipModel(kind="clip", source=str(toy_clip))
    return encode_concept("few", concept, backbone, draw(concept, folder / "prepared"), folder / "few")


@pytest.fixture
def opened_pictures(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """How often each picture was opened, by its split's folder and its index."""
    counts: Counter[tuple[str, int]] = Counter()
    opening = Split.picture

    def picture(split: Split, index: int) -> Image.Image:
        counts[split.folder.name, index] += 1
        return opening(split, index)

    monkeypatch.setattr(Split, "picture", picture)
    return counts


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """Two classes of eight different pictures each."""
    source = tmp_path / "pictures"
    for label, name in enumerate(("cat", "dog")):
        (source / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (20, 24), (10 * i, 100 * label, 50)).save(source / name / f"{i}.png")
    return source


def without_servers() -> dict[str, str]:
    """The environment without what names servers; MLflow's client sets such variables in a test's process, too."""
    servers = ("MLFLOW_TRACKING", "MLFLOW_REGISTRY", "PREFECT_")
    return {k: v for k, v in os.environ.items() if not k.startswith(servers)}


class Project:
    """A project of its own in a folder, with the shipped graph and code, toy parameters and the toy backbone."""

    def __init__(self, folder: Path, toy_clip: Path) -> None:
        self.folder = folder
        for name in ("cones", "flows", "stages"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("dvc.yaml", ".dvcignore", ".gitignore", "prefect.toml", "prefect.yaml"):
            shutil.copy(ROOT / name, folder / name)
        (folder / ".dvc").mkdir()
        for name in ("config", ".gitignore"):
            shutil.copy(ROOT / ".dvc" / name, folder / ".dvc" / name)
        shutil.copytree(ROOT / ".dvc/plots", folder / ".dvc/plots")
        shutil.copytree(toy_clip, folder / "models/backbones/toy")
        for name in (
            "clip-tiny",
            "glip-tiny",
            "judge-tiny",
            "sd-tiny",
        ):  # outputs of frozen stages: there and committed, as in the shipped one
            shutil.copytree(toy_clip, folder / "models/backbones" / name)
        self.params(PARAMS)
        for command in (
            ["init", "-q"],
            ["add", "-A"],
            ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "x"],
        ):
            subprocess.run(["git", *command], cwd=folder, check=True)

    @staticmethod
    def at(folder: Path) -> "Project":
        """One that is in a folder already."""
        project = Project.__new__(Project)
        project.folder = folder
        return project

    def params(self, text: str) -> None:
        (self.folder / "params.yaml").write_text(text)

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess:
        """Run a program of this environment in the project's folder; its output is text, both streams together."""
        return subprocess.run(
            command, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=self.environment(**environment),
        )  # fmt: skip

    def start(self, log: str, *command: str, **environment: str) -> subprocess.Popen:
        """Start a program there without waiting for it; its output goes into a file beside the project's folder."""
        with (self.folder.parent / log).open("w") as file:
            return subprocess.Popen(
                command, cwd=self.folder, stdout=file, stderr=subprocess.STDOUT, env=self.environment(**environment)
            )

    def beyond_plan(self, stage: str, name: str = "") -> set[str]:
        """The modules of cones that a stage had loaded, when DVC last ran it, and that its plan has no code file of."""
        plan = json.loads((self.folder / "plan" / stage / f"{name}.json" if name else
                           self.folder / "plan" / f"{stage}.json").read_text())["code"]  # fmt: skip
        loaded = (self.folder.parent / "loaded" / (f"{stage}@{name}" if name else stage)).read_text().split()
        assert f"stages/{stage}.py" in plan
        assert len(loaded) > 5
        files = {f"{module.replace('.', '/')}.py" for module in loaded}
        files = {file for file in files if (ROOT / file).is_file()}  # packages hold a docstring
        return {f for f in files if not f.startswith(("cones/common/", "cones/config/"))} - set(plan) - COMPILED

    def log(self, name: str) -> str:
        return (self.folder.parent / name).read_text()

    def environment(self, **more: str) -> dict[str, str]:
        """What a program of this environment sees, and nothing of the servers of whoever runs the tests."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        loaded = {"CONES_LOADED": str(self.folder.parent / "loaded"), "PYTHONPATH": f"{RECORDING}{os.pathsep}{ROOT}"}
        known = {**without_servers(), **loaded, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}
        return {**known, **more}

    def copy(self, folder: Path) -> "Project":
        """The same project, with all that was made in it, in another folder."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Project.at(folder)

    def plan(self) -> subprocess.CompletedProcess:
        return self._script("plan")

    def stage(self, name: str, target: str) -> subprocess.CompletedProcess:
        """Plan, then run a stage's script in this process, with this process's number of threads."""
        planned = self.plan()
        return planned if planned.returncode else self._script(name, target)

    def _script(self, name: str, *arguments: str) -> subprocess.CompletedProcess:
        script = f"stages/{name}.py"
        return run_here(
            self.folder, self.environment(), [script, *arguments], lambda: runpy.run_path(script, run_name="__main__")
        )

    def cones(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """Run the command line in this process."""
        try:
            return run_here(self.folder, self.environment(**environment), ["cones", *arguments], command_line)
        finally:
            if "mlflow" in sys.modules:
                sys.modules["mlflow"].set_tracking_uri(None)


@pytest.fixture
def project(tmp_path: Path, toy_clip: Path) -> Project:
    (tmp_path / "project").mkdir()
    return Project(tmp_path / "project", toy_clip)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, toy_clip: Path) -> Project:
    """A project whose graph has run and that is not registered yet. Copy it before anything is changed in it.

    The workers of a test run share it: whoever needs it first makes it.
    """
    home = tmp_path_factory.getbasetemp()
    home = (home.parent if "PYTEST_XDIST_WORKER" in os.environ else home) / "finished"
    with FileLock(f"{home}.lock"):
        if not (home / "project").exists():
            (home / "making").mkdir(parents=True)
            done = Project(home / "making", toy_clip).run("dvc", "repro")
            assert done.returncode == 0, done.stdout
            (home / "making").rename(home / "project")
    return Project.at(home / "project")


class Server:
    """A server on a free port of this machine, started by `command`, that answers at `health`."""

    def __init__(self, folder: Path, command: list[str], health: str, **environment: str) -> None:
        self.port = free_port()
        self.folder, self.health = folder, f"http://127.0.0.1:{self.port}{health}"
        self.command = [*command, "--host", "127.0.0.1", "--port", str(self.port)]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
        self.environment = {**without_servers(), **quiet, **environment}
        self.process: psutil.Popen | None = None

    def start(self) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with (self.folder / "server.log").open("a") as log:
            self.process = psutil.Popen(
                self.command, cwd=self.folder, stdout=log, stderr=log, env={**self.environment, "PATH": path}
            )
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(self.health, timeout=2):
                return
            time.sleep(0.2)
        raise RuntimeError((self.folder / "server.log").read_text()[-2000:])

    def post(self, path: str, content: object) -> Any:
        """What it answers to JSON."""
        data, kind = json.dumps(content).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, kind)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def stop(self) -> None:
        """End it and what it started."""
        assert self.process is not None
        everything = [*self.process.children(recursive=True), self.process]
        for process in everything:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(everything, timeout=20)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real Prefect server that asks for a password; `environment` of a test's programs names it."""
    folder = tmp_path_factory.mktemp("prefect")
    quiet = {"PREFECT_HOME": str(folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_API_URL": "",
             "PREFECT_SERVER_API_AUTH_STRING": PREFECT_PASSWORD}  # fmt: skip
    server = Server(folder, ["prefect", "server", "start"], "/api/health", **quiet)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def with_prefect(prefect_server: Server) -> dict[str, str]:
    """The environment of a program that uses the Prefect server."""
    url = f"http://127.0.0.1:{prefect_server.port}/api"
    home = str(prefect_server.folder)
    return {"PREFECT_API_URL": url, "PREFECT_HOME": home, "PREFECT_API_AUTH_STRING": PREFECT_PASSWORD}


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with nothing in it, to be copied; making its tables takes seconds."""
    import mlflow

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server with a registry; its address."""
    folder = tmp_path_factory.mktemp("mlflow")
    command = ["mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1",
               "--artifacts-destination", str(folder / "artifacts")]  # fmt: skip
    server = Server(folder, command, "/health")
    server.start()
    yield f"http://127.0.0.1:{server.port}"
    server.stop()
