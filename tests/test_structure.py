"""The shape of the code: who may import what, and whether dvc.yaml lists the files that each stage runs."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from cones.config.code import imported

ROOT = Path(__file__).parent.parent
FENCES = {
    "prefect": {"flows/", "cones/cli/doctor.py"},
    "mlflow": {"cones/registry/"},
    "mmdet": {"cones/backbones/glip/", "cones/pretrain/glip_model.py"},
    "mmengine": {"cones/backbones/glip/", "cones/pretrain/glip_model.py"},
    "mmcv": {"cones/backbones/glip/", "cones/pretrain/glip_model.py"},
    "pycocotools": {"cones/tasks/detection/", "cones/visuals/objects.py", "cones/data/", "cones/features/targets.py"},
    "diffusers": {"cones/backbones/sd/", "cones/pretrain/sd_model.py", "bench/sd_step.py"},
    "monai": {
        "cones/readers/volumes",
        "cones/inference/volumes",
        "cones/tasks/detection/overlap.py",
        "bench/medical.py",
    },
    "pydicom": {"cones/readers/volumes", "cones/inference/volumes"},
    "nibabel": {"cones/readers/volumes", "cones/inference/volumes"},
    "peft": {"cones/finetuning/"},
    "transformers": {"cones/backbones/", "cones/pretrain/", "bench/"},
}
ROOMS = (
    ("common",),
    ("interfaces",),
    ("data", "synthetic", "backbones", "methods", "concept"),
    ("features", "readers", "visuals"),
    ("tasks",),
    ("search",),
    ("finetuning", "pretrain", "study"),
    ("config",),
    ("results",),
    ("registry",),
    ("inference",),
    ("cli",),
)
"""From the lowest up: what stands in a line imports from lines before it, and rooms of one line not from each other."""
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
MOST_LINES = 130


def imports(path: Path) -> set[str]:
    """The modules a file names in its imports, those inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def file_of(module: str) -> Path | None:
    base = ROOT / module.replace(".", "/")
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((c for c in candidates if c.is_file()), None)


def python_files() -> list[Path]:
    return [p for folder in ("cones", "stages", "bench", "flows") for p in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("library", FENCES)
def test_library_is_used_behind_its_fence_only(library: str) -> None:
    users = [p.relative_to(ROOT).as_posix() for p in python_files() if library in {n.split(".")[0] for n in imports(p)}]
    outside = [u for u in users if not u.startswith(tuple(FENCES[library]))]
    assert not outside


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "cones").parts
    return parts[0] if len(parts) > 1 else ""


@pytest.mark.parametrize("room", LEVEL)
def test_imports_run_down_only(room: str) -> None:
    """Imports inside functions too; those for type checking alone run nothing."""
    for path in (ROOT / "cones" / room).rglob("*.py"):
        if path.name == "pyfunc.py":
            continue  # a program of its own, which MLflow runs
        for name in imported(path):
            other = name.split(".")[1]
            if file_of(name) is not None and other != room and other in LEVEL:
                assert LEVEL[other] < LEVEL[room], f"{path.relative_to(ROOT)} imports {name}"


def test_every_room_has_its_place() -> None:
    rooms = {p.name for p in (ROOT / "cones").iterdir() if p.is_dir() and not p.name.startswith("_")} - {"builtin"}
    assert rooms == set(LEVEL)


def test_no_two_files_import_each_other_when_they_are_loaded() -> None:
    def at_load(path: Path) -> set[Path]:
        body = ast.parse(path.read_text()).body
        names = {n.module for n in body if isinstance(n, ast.ImportFrom) and n.module}
        names |= {f"{n.module}.{a.name}" for n in body if isinstance(n, ast.ImportFrom) for a in n.names}
        return {f for f in map(file_of, names) if f is not None}

    graph = {path: at_load(path) for path in (ROOT / "cones").rglob("*.py")}
    TopologicalSorter(graph).prepare()  # which raises CycleError and names the circle


def test_packages_hold_a_docstring_only() -> None:
    """Their code would count as run by whoever runs anything in them."""
    doors = {"cones/__init__.py", "cones/backbones/__init__.py"}
    for path in (ROOT / "cones").rglob("__init__.py"):
        body = ast.parse(path.read_text()).body
        assert path.relative_to(ROOT).as_posix() in doors or len(body) == 1, path


def test_the_graph_is_short_and_lists_no_code() -> None:
    text = (ROOT / "dvc.yaml").read_text()
    assert len(text.splitlines()) <= MOST_LINES
    listed = [line for line in text.splitlines() if re.search(r"cones/\w", line)]
    assert all("stages/pretrain.py, cones/pretrain, cones/synthetic" in line for line in listed)
    assert ".py" not in "".join(line for line in text.splitlines() if "deps" in line and "pretrain" not in line)


def test_servers_for_a_team_listen_on_their_machine_only() -> None:
    services = YAML(typ="safe").load(ROOT / "docker-compose.yml")["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == 2
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_image_is_made_of_files_that_exist_and_are_let_in() -> None:
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    lines = [line.split()[1:-1] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("COPY")]
    for source in (s for sources in lines for s in sources):
        assert (ROOT / source).exists()
        assert any(allowed == source or allowed.startswith(f"{source}/") for allowed in let_in), source
    assert "USER cones" in (ROOT / "Dockerfile").read_text()
