"""What `cones clean` takes for stale, and what it leaves."""

import importlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import PARAMS
from filelock import FileLock
from typer.testing import CliRunner

from cones.cli.clean import find_stale, remove_stale
from cones.cli.main import app
from cones.common.errors import Busy
from cones.common.layout import FLOW_LOCK, REGISTER_LOCK, lock_of, stage_lock
from cones.common.process import lock
from cones.config.params import Params, load_params
from cones.config.plan import write_plan
from cones.search.checkpoint import row_checkpoint

ABOUT = {"concept": "few", "task": "classification", "seed": 0}
GONE = 2**22 + 1
"""A process id above all that Linux gives."""


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """A project to stand in, whose concept is encoded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(PARAMS)
    write("encoded/few/about.json", json.dumps(ABOUT))
    return load_params()


def write(path: str | Path, content: str = "x" * 1000, days_ago: float = 0) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    then = time.time() - days_ago * 86400
    os.utime(path, (then, then))
    os.utime(path.parent, (then, then))
    return path


def stale(params: Params, **how: bool) -> dict[str, bool]:
    """The paths that are stale, and whether each is kept."""
    return {str(entry.path): entry.kept for entry in find_stale(params, 30, **how)}


def test_checkpoints_of_rows_as_they_are_stay_and_others_go(params: Params) -> None:
    """Those of an edited row, and of rows as other code searched them."""
    ours = {row: write(row_checkpoint(run, ABOUT)) for row, run in params.runs.items()}
    aside = write(ours["few-coop"].with_name("damaged-state.safetensors"))
    for name in ("0123456789abcdef/state.safetensors", "0123456789abcdef/samples/000002.jpg", "locks/flow.lock"):
        write(f"checkpoints/{name}")
    assert stale(params) == {"checkpoints/0123456789abcdef": False, str(aside): False}
    Path("params.yaml").write_text(PARAMS.replace("name: cones, epochs: 5", "name: cones, epochs: 6"))
    edited = load_params()
    assert str(ours["few-cones"].parent) in stale(edited)
    assert len(remove_stale(edited, 30)) == 3
    assert stale(edited) == {}
    assert sorted(Path("checkpoints").glob("*/*.safetensors")) == sorted(
        ours[row] for row in ("few-coop", "few-zero-shot")
    )


def test_checkpoints_that_may_be_of_a_row_that_is_not_encoded_are_kept(params: Params) -> None:
    write("checkpoints/0123456789abcdef/state.safetensors")
    Path("encoded/few/about.json").unlink()
    assert stale(params) == {"checkpoints/0123456789abcdef": True}
    assert remove_stale(params, 30) == []
    write("encoded/few/about.json", json.dumps(ABOUT))
    assert stale(params) == {"checkpoints/0123456789abcdef": False}


def test_nothing_is_removed_while_a_process_works(params: Params) -> None:
    write("checkpoints/0123456789abcdef/state.safetensors")
    kept = Path("cache/test-features/0123456789abcdef.lock")
    stages = (stage_lock(*x) for x in (("prepare", "glyphs"), ("encode", "few"), ("evaluate", "few")))
    for held in (lock_of("few-coop"), lock_of("a-row-of-before"), FLOW_LOCK, REGISTER_LOCK, *stages, kept):
        held.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(held), pytest.raises(Busy, match=f"`{held.stem}` is being worked on by another process"):
            remove_stale(params, 30)
    assert list(stale(params)) == ["checkpoints/0123456789abcdef"]
    assert len(remove_stale(params, 30)) == 1


def test_what_begins_while_things_are_removed_is_refused(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no process has made the file of its lock yet."""
    write("checkpoints/0123456789abcdef/state.safetensors")
    free = []

    def remove(folder: Path) -> None:
        for path in (FLOW_LOCK, REGISTER_LOCK, lock_of("few-coop"), stage_lock("encode", "few")):
            with suppress(Busy), lock(path, "it"):
                free.append(path)

    monkeypatch.setattr("cones.cli.clean.shutil.rmtree", remove)
    assert len(remove_stale(params, 30)) == 1
    assert free == []


@pytest.mark.parametrize(("stage", "name"), [("prepare", "glyphs"), ("encode", "few"), ("evaluate", "few")])
def test_a_stage_holds_its_lock(params: Params, monkeypatch: pytest.MonkeyPatch, stage: str, name: str) -> None:
    module = importlib.import_module(f"stages.{stage}")
    write_plan(params)
    monkeypatch.setattr(module, "STAGE_WAIT", 0)
    if stage == "encode":
        monkeypatch.setattr("cones.tasks.encode.draw", lambda *arguments: SimpleNamespace(picture_views=0))
    path = stage_lock(stage, name)
    path.parent.mkdir(parents=True)
    with FileLock(path), pytest.raises(Busy, match=f"`{name}` is being worked on by another process"):
        module.main(name)


def test_what_lies_in_a_stale_folder_is_listed_and_removed_with_it(params: Params) -> None:
    """As `kill -9` leaves it while a checkpoint is written."""
    write(f"checkpoints/0123456789abcdef/.state.safetensors.{GONE}.tmp", days_ago=1)
    (found,) = find_stale(params, 30)
    assert (str(found.path), found.size) == ("checkpoints/0123456789abcdef", 1000)
    assert remove_stale(params, 30) == [found]
    kept = Path("searched/few/few-old")
    inner = write(kept / f".metrics.json.{GONE}.tmp", days_ago=1)
    assert stale(params) == {str(inner): False, str(kept): True}, "what is in a folder that is kept goes alone"


def test_caches_go_by_their_last_use(params: Params) -> None:
    """By the newest file of an entry; what a person keeps under `cache` is not looked at."""
    old = write("cache/test-features/one/image.npy", days_ago=31)
    write("cache/test-features/two/image.npy", days_ago=31)
    write("cache/test-features/two/about.json", days_ago=29)
    write("cache/class-pictures/three.safetensors", days_ago=40)
    write("cache/class-pictures/four.safetensors")
    write("cache/bccd-cells/five.png", days_ago=400)
    for name in ("one.lock", "two.lock"):
        write(f"cache/test-features/{name}", "", days_ago=31)
    os.utime(old.parent, (old.stat().st_mtime,) * 2)
    assert set(stale(params)) == {"cache/test-features/one", "cache/class-pictures/three.safetensors"}
    assert find_stale(params, 30)[-1].why == "not used for 31 days"
    assert "cache/test-features/two" in {str(entry.path) for entry in find_stale(params, 28)}


def test_temporary_files_of_processes_that_are_gone_go(params: Params) -> None:
    """Not those of running ones, nor those that were written to a moment ago, perhaps from inside a container."""
    write(f"searched/few/.few-coop.{GONE}.tmp/metrics.json", days_ago=1)
    write(f".params.yaml.{GONE}.tmp", days_ago=1)
    write(f"searched/few/.few-cones.{os.getpid()}.tmp/metrics.json", days_ago=1)
    write(f"searched/few/.few-zero-shot.{GONE}.tmp/metrics.json")
    assert set(stale(params)) == {f".params.yaml.{GONE}.tmp", f"searched/few/.few-coop.{GONE}.tmp"}


def test_results_of_rows_that_are_gone_are_shown_and_removed_if_asked(params: Params) -> None:
    for path in ("data/prepared/glyphs", "searched/few/few-coop", "evaluated/few"):
        write(f"{path}/file")
    old = ["data/prepared/old", "encoded/old", "searched/old", "searched/few/few-old", "evaluated/old"]
    for path in old:
        write(f"{path}/file")
    assert stale(params) == dict.fromkeys(old, True)
    assert remove_stale(params, 30) == []
    assert [str(entry.path) for entry in remove_stale(params, 30, rows=True)] == old
    assert stale(params) == {}
    assert Path("searched/few/few-coop/file").exists()


def test_the_command_shows_asks_and_removes(params: Params) -> None:
    run = CliRunner()
    assert run.invoke(app, ["clean"]).output == "nothing is stale\n"
    folder = write("checkpoints/0123456789abcdef/state.safetensors").parent
    write("searched/few/few-old/file")
    shown = run.invoke(app, ["clean"], input="n\n", env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "checkpoints/0123456789abcdef" in shown.output
    assert "a checkpoint that no row goes on from" in shown.output
    assert "Remove 1.0 kB?" in shown.output
    assert folder.exists()
    assert run.invoke(app, ["clean", "--yes"]).output.endswith("removed 1, 1.0 kB\n")
    assert not folder.exists()
    assert Path("searched/few/few-old").exists()
    assert run.invoke(app, ["clean", "--yes", "--rows"]).output.endswith("removed 1, 1.0 kB\n")
    assert not Path("searched/few/few-old").exists()


def test_hostile_names_of_folders_are_shown_as_they_are_and_links_are_not_followed(params: Params) -> None:
    """Square brackets are a style to rich; a terminal acts on what is not printable."""
    write("data/prepared/[red] \x1b[2J/manifest.json")
    mine = write("mine/picture.png")
    Path("searched/few").mkdir(parents=True)
    Path("searched/few/gone").symlink_to(mine.parent.absolute())
    done = CliRunner().invoke(app, ["clean", "--rows", "--yes"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.exception
    assert r"data/prepared/[red] \x1b[2J" in done.output
    assert "\x1b" not in done.output
    assert not any(Path(gone).exists() for gone in ("data/prepared/[red] \x1b[2J", "searched/few/gone"))
    assert mine.exists()


def test_rows_of_a_concept_that_is_a_link_are_left(params: Params) -> None:
    mine = write("elsewhere/old/picture.png")
    Path("searched").mkdir()
    Path("searched/few").symlink_to(Path("elsewhere").absolute())
    assert stale(params, rows=True) == {}
    assert remove_stale(params, 30, rows=True) == []
    assert mine.exists()
