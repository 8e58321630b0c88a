"""The job templates of `deploy/`: whole as the pinned Prefect's own, with GPUs, memory and DVC's cache in them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import prefect.server.api
import pytest
from conftest import ROOT
from jsonschema import Draft202012Validator
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.utilities.templating import apply_values, find_placeholders
from prefect.workers.process import ProcessJobConfiguration
from ruamel.yaml import YAML

from flows.gpus import LOCK_FOLDERS

KINDS = {"process": "prefect", "docker": "prefect-docker", "kubernetes": "prefect-kubernetes"}
OURS = {
    "process": set(),
    "docker": {"repository", "gpu_count", "cache_volume", "shared_folder"},
    "kubernetes": {"repository", "gpu_count", "cache_claim", "shared_memory"},
}
SENT = {"working_dir": ".", "command": "python -m prefect.engine"}
LOCKS = [f"{folder}:{folder}" for folder in LOCK_FOLDERS if folder != Path("/tmp")]


def template(kind: str) -> dict[str, Any]:
    return json.loads((ROOT / f"deploy/{kind}.json").read_text())


def prefects(kind: str) -> dict[str, Any]:
    known = Path(prefect.server.api.__file__).parent / "collections_data/views/aggregate-worker-metadata.json"
    return json.loads(known.read_text())[KINDS[kind]][kind]["default_base_job_configuration"]


def filled(kind: str, **given: Any) -> Any:
    """The job's configuration as a worker computes it."""
    own = template(kind)
    defaults = {name: of["default"] for name, of in own["variables"]["properties"].items() if "default" in of}
    return apply_values(own["job_configuration"], {**defaults, **SENT, **given}, remove_notset=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_has_all_that_prefects_own_has(kind: str) -> None:
    ours, theirs = template(kind), prefects(kind)
    assert theirs["job_configuration"].keys() <= ours["job_configuration"].keys()
    known, own = theirs["variables"]["properties"], ours["variables"]["properties"]
    assert own.keys() - known.keys() == OURS[kind]
    assert known.keys() - own.keys() == ({"volumes"} if kind == "docker" else set())
    for name in own.keys() & known.keys():
        for word in ("type", "enum", "additionalProperties", "items", "allOf", "format"):
            assert own[name].get(word) == known[name].get(word), name
    used = {found.name for found in find_placeholders(ours["job_configuration"])}
    assert used == own.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_prefect_takes_it_and_what_it_fills_in_is_of_the_right_kind(kind: str) -> None:
    own = template(kind)
    WorkPoolCreate(name="x", type=kind, base_job_template=own)
    Draft202012Validator.check_schema(own["variables"])
    defaults = {name: of["default"] for name, of in own["variables"]["properties"].items() if "default" in of}
    Draft202012Validator(own["variables"]).validate({**defaults, **SENT})


def test_a_process_works_in_the_workers_clone() -> None:
    job = ProcessJobConfiguration(**filled("process"))
    assert (str(job.working_dir), job.command) == (".", SENT["command"])
    given = ProcessJobConfiguration(**filled("process", env={"CUDA_VISIBLE_DEVICES": "1"}))
    assert given.env == {"CUDA_VISIBLE_DEVICES": "1"}


def test_a_container_has_the_gpus_the_cache_and_the_machines_locks() -> None:
    from docker.types import HostConfig

    job = filled("docker", gpu_count=2, mem_limit="9g", cache_volume="/fast", repository="https://host/x")
    assert job["mem_limit"] == "9g"
    assert job["volumes"] == [*LOCKS, "/fast:/cache", "/shared:/shared"]
    assert job["container_create_kwargs"]["entrypoint"] == ["in-clone", "https://host/x"]
    asked = HostConfig(version="1.43", device_requests=job["container_create_kwargs"]["device_requests"])
    (gpu,) = asked["DeviceRequests"]
    assert (gpu["Driver"], gpu["Count"], gpu["Capabilities"]) == ("nvidia", 2, [["gpu", "utility"]])
    compose = YAML(typ="safe").load(ROOT / "docker-compose.gpu.yml")["services"]["worker"]
    assert compose["volumes"] == LOCKS
    (device,) = compose["deploy"]["resources"]["reservations"]["devices"]
    assert [device["driver"], device["capabilities"]] == [gpu["Driver"], gpu["Capabilities"][0]]


def test_a_pod_has_the_gpus_the_cache_and_the_nodes_locks() -> None:
    job = filled("kubernetes", gpu_count=2, memory_limit="9Gi", cache_claim="fast", repository="https://host/x")
    pod = job["job_manifest"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"memory": "9Gi", "nvidia.com/gpu": 2}
    assert container["command"] == ["in-clone", "https://host/x"]
    assert container["args"] == SENT["command"]
    volumes = {volume.pop("name"): volume for volume in pod["volumes"]}
    mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounted["/cache"] == {"persistentVolumeClaim": {"claimName": "fast"}}
    assert mounted["/run/lock"]["hostPath"]["path"] == "/run/lock"
    assert mounted["/dev/shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "4Gi"}


def test_a_container_begins_in_a_clone_of_its_own(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HOME": str(tmp_path), "CONES_CACHE": str(tmp_path / "cache")}
    for command in ("git init -q", "dvc init -q", "git -c user.name=t -c user.email=t@t commit -qm x"):
        subprocess.run(command.split(), cwd=origin, env=environment, check=True)
    command = [ROOT / "deploy/in-clone", origin, "sh", "-c", "pwd; echo $PYTHONPATH; dvc cache dir; git status --short"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    clone = str(tmp_path / "clone")
    assert done.stdout.split() == [clone, clone, str(tmp_path / "cache")]
    assert "COPY deploy/in-clone " in (ROOT / "Dockerfile").read_text()
