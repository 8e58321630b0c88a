"""A registry that somebody hostile can write to: names, versions, their tags, and what their files hold."""

import contextlib
import functools
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile import refused
from registries import Registry, change

from cones.common.errors import Busy
from cones.inference.open import load
from cones.registry.claims import KEY_TAG
from cones.registry.faults import every_page
from cones.registry.fetch import fetched_concept
from cones.registry.register import _promote
from cones.registry.versions import CHAMPION, ROW_TAG, look_up

pytestmark = pytest.mark.usefixtures("no_other_registry")

NAMES = [
    "", " ", "few ", "../few", "a/b", "few@champion", "few\n", "\x1b[2J", "f" * 10_000, "few\x00", "..", "a:b",
    "models:/few", "a\u202eb",
]  # fmt: skip
OTHER_NAMES = ["v1.2", "fëw", "two words", "-few", "few' OR name = 'x", "%2e%2e", "{few}"]


@pytest.mark.parametrize("name", NAMES, ids=[str(i) for i in range(len(NAMES))])
def test_what_cannot_be_a_name_is_not_asked_for(name: str) -> None:
    refused(lambda: look_up(name), "cannot be the name of a concept")


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_a_name_that_a_registry_can_have_is_looked_up(name: str, registry: Registry) -> None:
    refused(lambda: look_up(name), f"`{name}` is not registered")
    registry.client.create_registered_model(name)
    refused(lambda: look_up(name), f"`{name}` is registered but has no champion")
    refused(lambda: load(f"models:/{name}/1"), "is not in the registry")


CANNOT = [
    "models:/", "models:/@champion", "models:/few@", "models:/few", "models:/few/", "models:/../x@champion",
    "models:/few/../x/1", "models:/few @champion", "models:/few\n@champion", "models:/few@champion\n",
    "models:/few@champion@x", "models:/few/1/2", "models://few/1", "models:/few/-1", "models:/few/1e3",
    "models:/few/٣", "models:/few/1 ", "models:/few/None", "models:/few/Production",
    f"models:/{'a' * 10_000}@champion", f"models:/few/{'9' * 5_000}", "models:/few\x00/1", "models:/few/1?x",
    "models:/few@../../x", "models:/few@\x1b[2J", "models:/m-../../etc", "models:/m-XYZ",
]  # fmt: skip


@pytest.mark.parametrize("uri", CANNOT, ids=[str(i) for i in range(len(CANNOT))])
def test_what_cannot_be_a_version_is_not_asked_for(uri: str) -> None:
    refused(lambda: load(uri), "is no version of a concept; give models:/NAME@champion or models:/NAME/VERSION")


@pytest.mark.parametrize("uri", [
    "models:/few@nothing", "models:/few/99", "models:/nothing/1", "models:/nothing@champion", "models:/m-0123abcd",
    "models:/nothing/latest",
])  # fmt: skip
def test_what_is_not_there_is_no_fault_that_may_pass(uri: str, registry: Registry) -> None:
    refused(lambda: load(uri), uri)


def test_a_champion_that_is_no_version_is_told(registry: Registry) -> None:
    refused(lambda: look_up("few"), "`few` is registered but has no champion")
    number = registry.version("file:///nowhere")
    registry.client.set_registered_model_alias("few", CHAMPION, number)
    change("UPDATE registered_model_aliases SET version = 999")(registry.database)
    refused(lambda: look_up("few"), "the champion of `few` is version 999, which is not there; run `cones register`")
    refused(lambda: load("models:/few@champion"), "models:/few@champion is not in the registry")


SOURCES: dict[str, Callable[[Path], str]] = {
    "nothing": lambda folder: f"{folder}/nowhere", "relative": lambda folder: "../../x",
    "null": lambda folder: "/etc\x00", "s3": lambda folder: "s3://bucket/x", "gs": lambda folder: "gs://bucket/x",
    "sftp": lambda folder: "sftp://127.0.0.1/x", "unknown": lambda folder: "foo://x",
    "web": lambda folder: "http://127.0.0.1:9/x", "run": lambda folder: "runs:/nope/x",
    "server's": lambda folder: "mlflow-artifacts:/x", "dbfs": lambda folder: "dbfs:/x",
    "hdfs": lambda folder: "hdfs://x/y", "other host": lambda folder: "file://otherhost/etc",
    "query": lambda folder: f"file://{folder}?a=../../b",
}  # fmt: skip


@pytest.mark.parametrize("case", SOURCES)
def test_files_that_are_elsewhere_are_one_plain_line(case: str, registry: Registry, tmp_path: Path) -> None:
    number = registry.version(SOURCES[case](tmp_path))
    refused(
        lambda: load(f"models:/few/{number}"),
        f"models:/few/{number} has no concept.safetensors that can be fetched",
    )


def as_folder(path: Path) -> None:
    path.unlink()
    (path / "x").mkdir(parents=True)


def as_link(to: str) -> Callable[[Path], None]:
    def link(path: Path) -> None:
        path.unlink()
        path.symlink_to(to)

    return link


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


FILES = {
    "gone": (Path.unlink, "has no concept.safetensors that can be fetched"),
    "a folder": (as_folder, "has no concept.safetensors"),
    "a link out": (as_link("/etc/passwd"), "has no concept.safetensors"),
    "a link to itself": (as_link("concept.safetensors"), "has no"), "a pipe": (as_pipe, "has no concept.safetensors"),
    "empty": (lambda path: path.write_bytes(b""), "safetensors file"),
    "a pickle": (lambda path: path.write_bytes(b"\x80\x04cos\nsystem\n(S'touch owned'\ntR."), "safetensors file"),
    "text": (lambda path: path.write_text("<html>"), "safetensors file"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_no_concept_are_one_plain_line(case: str, registry: Registry) -> None:
    spoil, told = FILES[case]
    folder = registry.source(f"file-{case}")
    spoil(folder / "artifacts/concept.safetensors")
    number = registry.version(folder.as_uri())
    refused(lambda: load(f"models:/few/{number}"), told)


def test_a_server_of_files_cannot_write_elsewhere(
    registry: Registry, answering: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    number = registry.version(f"{answering}/artifacts/mlflow-artifacts/artifacts/x")
    before = set(tmp_path.parent.iterdir())
    refused(lambda: load(f"models:/few/{number}"), "has no concept.safetensors that can be fetched")
    assert set(tmp_path.parent.iterdir()) == before
    assert not [*tmp_path.iterdir(), *Path("/tmp").glob("evil*")]


OURS = {KEY_TAG: "k", ROW_TAG: "few-cones"}
TAGS: dict[str, dict[str, str]] = {
    "no score": {}, "nan": {"val.accuracy": "nan"}, "infinite": {"val.accuracy": "inf"},
    "text": {"val.accuracy": "very good"}, "empty": {"val.accuracy": ""}, "list": {"val.accuracy": "[1.0]"},
    "digits": {"val.accuracy": "9" * 400}, "another metric": {"val.loss": "0.1"}, "capitals": {"val.Accuracy": "1.0"},
    "unknown task": {"cones.task": "x", "val.accuracy": "1.0"},
    "another task": {"cones.task": "detection", "val.accuracy": "1.0"},
    "no task": {"cones.task": "", "val.accuracy": "1.0"},
}  # fmt: skip


@pytest.mark.parametrize("case", TAGS)
def test_a_version_with_spoilt_tags_is_left_out_and_told(case: str, registry: Registry) -> None:
    good = registry.version("file:///good", **OURS, **{"val.accuracy": "0.5"})
    bad = registry.version("file:///bad", **OURS, **TAGS[case])
    told: list[str] = []
    assert str(_promote(registry.client, "few", told.append)) == good
    assert told == [f"version {bad} of `few` is out of the running: its tags lack a task or its score"]
    assert look_up("few").version == int(good)
    registry.client.set_registered_model_alias("few", CHAMPION, bad)
    refused(
        lambda: look_up("few"),
        f"the champion of `few` is version {bad}, which `cones register` has not made, or which lacks",
    )


ROWS = ["", "\x1b[2J", "a\nb", "../x", "a" * 5000]


@pytest.mark.parametrize("row", ROWS, ids=[str(i) for i in range(len(ROWS))])
def test_a_row_of_another_kind_is_no_champion(row: str, registry: Registry) -> None:
    number = registry.version("file:///x", **{KEY_TAG: "k", ROW_TAG: row, "val.accuracy": "0.5"})
    registry.client.set_registered_model_alias("few", CHAMPION, number)
    refused(lambda: look_up("few"), "which `cones register` has not made")


def test_all_pages_of_versions_and_names_are_looked_at(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of versions has 10,000, of names 100; here both have one."""
    from mlflow import MlflowClient

    scores = ["0.5", "0.9", "0.4", "0.3"]
    numbers = [registry.version("file:///x", **OURS, **{"val.accuracy": score}) for score in scores]
    for name in ("search_model_versions", "search_registered_models"):
        monkeypatch.setattr(MlflowClient, name, functools.partialmethod(getattr(MlflowClient, name), max_results=1))
    assert len(registry.client.search_model_versions("name = 'few'")) == 1
    assert str(_promote(registry.client, "few")) == numbers[1]
    with contextlib.suppress(Exception):
        registry.client.create_registered_model("zebra")
    refused(lambda: look_up("zebrra"), "`zebrra` is not registered; did you mean `zebra`?")


def test_a_search_without_end_and_an_alias_that_does_not_stay_end(registry: Registry, monkeypatch) -> None:
    class Page(list):
        token = "again"

    monkeypatch.setattr("cones.registry.faults.MOST_PAGES", 50)
    refused(lambda: list(every_page(lambda *arguments, page_token: Page(["x"]), "name = 'few'")), "has no end")
    registry.version("file:///x", **OURS, **{"val.accuracy": "0.5"})
    monkeypatch.setattr(type(registry.client), "set_registered_model_alias", lambda *arguments: None)
    with pytest.raises(Busy, match="another program keeps taking the alias `champion` of `few` away"):
        _promote(registry.client, "few")


HOSTILE = """\
import pathlib
pathlib.Path({marker!r}).touch()
import mlflow
class Owned(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input): return []
mlflow.models.set_model(Owned())
"""
MODEL = """\
artifact_path: few
flavors:
  python_function:
    loader_module: {loader}
    python_version: 3.11.0
    model_code_path: owned.py
    code: code
    env: {{conda: conda.yaml, virtualenv: python_env.yaml}}
mlflow_version: 3.17.2
"""


@pytest.mark.parametrize("loader", ["mlflow.pyfunc.model", "owned_module"])
def test_code_of_a_version_is_run_by_mlflow_and_not_by_ours(loader: str, registry: Registry, tmp_path: Path) -> None:
    folder, marker = registry.source(f"hostile-{loader}"), tmp_path / "owned"
    (folder / "code").mkdir()
    (folder / "owned.py").write_text(HOSTILE.format(marker=str(marker)))
    (folder / "code/owned_module.py").write_text(f"import pathlib; pathlib.Path({str(marker)!r}).touch()\n")
    for name in ("python_model.pkl", "concept.pkl", "artifacts/concept.pkl"):
        (folder / name).write_bytes(f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode())
    (folder / "MLmodel").write_text(MODEL.format(loader=loader))
    number = registry.version(folder.as_uri(), **OURS, **{"val.accuracy": "0.9"})
    registry.client.set_registered_model_alias("few", CHAMPION, number)
    assert look_up("few").row == "few-cones"
    for uri in (f"models:/few/{number}", "models:/few@champion"):
        assert load(uri).card.row == f"hostile-{loader}"
        with fetched_concept(uri) as path:
            assert [p.name for p in path.parent.parent.rglob("*") if p.is_file()] == ["concept.safetensors"]
    assert not marker.exists(), "ours runs none of it"
    import mlflow

    with contextlib.suppress(Exception), contextlib.redirect_stderr(io.StringIO()):
        mlflow.pyfunc.load_model(f"models:/few/{number}")
    assert marker.exists(), "MLflow's own loader does, which the README says"
