"""The shape of the code: who may import what, and whether dvc.yaml lists the files that each stage runs."""

import ast
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
FENCES = {
    "prefect": {"flows/", "cones/cli/doctor.py"},
    "mlflow": {"cones/registry/"},
    "mmdet": {"cones/backbones/glip/", "cones/pretrain/glip_model.py"},
    "mmengine": {"cones/backbones/glip/", "cones/pretrain/glip_model.py"},
    "mmcv": {"cones/backbones/glip/", "cones/pretrain/glip_model.py"},
    "pycocotools": {"cones/tasks/detection/", "cones/visuals/objects.py", "cones/data/", "cones/features/targets.py"},
    "diffusers": {"cones/backbones/sd/", "cones/pretrain/sd_model.py", "bench/sd_step.py"},
    "monai": {"cones/readers/volumes", "cones/inference/volumes"},
    "peft": {"cones/finetuning/"},
    "transformers": {"cones/backbones/", "cones/pretrain/", "bench/"},
}
# Rooms whose code no stage runs for its result: they word, show and guard; or are what users of a Concept call.
ASIDE = {"common", "inference", "registry", "cli"}
DOORS = ("data", "backbones", "methods", "tasks")


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


def closure(path: Path) -> set[str]:
    """The project's files that running `path` can run, as paths from the root, without the plumbing."""
    seen: set[Path] = set()
    todo = [path]
    while todo:
        here = todo.pop()
        if here in seen:
            continue
        seen.add(here)
        names = {n for n in imports(here) if n.split(".")[0] == "cones"}
        parents = {".".join(n.split(".")[:i]) for n in names for i in range(2, n.count(".") + 1)}
        files = {file_of(n) for n in names | parents} - {None}
        todo += [f for f in files if f != ROOT / "cones/__init__.py" and f.relative_to(ROOT).parts[1] not in ASIDE]
    return {p.relative_to(ROOT).as_posix() for p in seen}


def python_files() -> list[Path]:
    return [p for folder in ("cones", "stages", "bench", "flows") for p in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("library", FENCES)
def test_library_is_used_behind_its_fence_only(library: str) -> None:
    users = [p.relative_to(ROOT).as_posix() for p in python_files() if library in {n.split(".")[0] for n in imports(p)}]
    outside = [u for u in users if not u.startswith(tuple(FENCES[library]))]
    assert not outside


@pytest.mark.parametrize("door", DOORS)
def test_doors_do_not_import_each_other(door: str) -> None:
    for path in (ROOT / "cones" / door).rglob("*.py"):
        used = {n.split(".")[1] for n in imports(path) if n.startswith("cones.")}
        assert not used & {d for d in DOORS if d != door}, path


STAGES = (
    "pretrain-clip",
    "pretrain-glip",
    "pretrain-judge",
    "pretrain-sd",
    "check",
    "prepare",
    "encode",
    "search",
    "finetune",
    "evaluate",
    "report",
)


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_lists_the_code_a_stage_runs(stage: str) -> None:
    entry = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"][stage]
    entry = entry.get("do", entry)
    script = entry["cmd"].split()[1]
    listed = {d for d in entry["deps"] if d.endswith(".py")}
    assert listed == closure(ROOT / script)


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
