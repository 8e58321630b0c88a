"""What a task decides, by its name: each task has a folder here with the same files in it.

They are imported by name, so that whoever works on one task runs the code of no other.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cones.common.errors import ConesError
from cones.common.escaping import shortened

if TYPE_CHECKING:
    from cones.tasks.task import Task
    from cones.visuals.parts import TaskReport

Part = Literal[
    "settings", "encode", "measure", "row", "visuals", "report", "infer", "judge", "live", "patients", "attention"
]
SHARED = {"segmentation": "detection"}
"""Tasks that live in the folder of another one."""


def module_of(task: str, part: Part) -> str:
    """The name of the module that holds a part of a task; `ConesError` if there is no such task."""
    if not is_task(task):
        raise ConesError(f"there is no task {shortened(task)}")
    return f"cones.tasks.{SHARED.get(task, task)}.{part}"


def is_task(task: str) -> bool:
    """Whether there is a task of this name."""
    return task.isidentifier() and (Path(__file__).parent / SHARED.get(task, task) / "settings.py").is_file()


def part_of(task: str, part: Part) -> Any:
    """That module."""
    return import_module(module_of(task, part))


def has_part(task: str, part: Part) -> bool:
    """Whether a task has a part that not every task needs."""
    return find_spec(module_of(task, part)) is not None


def task_of(task: str) -> "Task":
    """How predictions of a task are measured."""
    return part_of(task, "measure").MEASURES[task]


def report_of(task: str) -> "TaskReport":
    """How a task shows its results."""
    return part_of(task, "report").REPORTS[task]
