"""Which code files something can run: the import closure of some modules, those inside functions too."""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import cones

PACKAGE = Path(cones.__file__).parent
ASIDE = {"common", "config"}
"""Rooms whose code decides no result: words, guards and paths, and what is compiled into the plan itself."""
COMPILED = {f"cones/{file}" for file in (
    "backbones/settings.py", "data/settings.py", "finetuning/settings.py", "methods/searched.py", "tasks/settings.py"
)}  # fmt: skip
"""Settings that many share: their values stand in the plan, so that a default changes the entries that have it only."""
SHARED = ("results/base.html.jinja", "results/pieces.html.jinja")
DATA_FILES = {
    "results/page.py": ("results/page.html.jinja", *SHARED),
    "results/study_page.py": ("results/study.html.jinja", *SHARED),
}
"""Files that are no code and that a module reads."""


def code_hashes(script: Path, modules: Iterable[str]) -> dict[str, str]:
    """SHA-256, cut to 16 digits, of each file that a stage's script can run with some modules (`cones.methods.coop`),
    by its path from the project; without the rooms `ASIDE`."""
    seen: set[Path] = set()
    todo = [file for module in modules for file in _files_of(module)]
    todo.append(script if script.is_file() else PACKAGE.parent / script)
    while todo:
        file = todo.pop()
        if file not in seen:
            seen.add(file)
            todo += [used for name in imported(file) for used in _files_of(name)]
    named = {_shown(file): file for file in seen}
    named |= {
        f"cones/{more}": PACKAGE / more for file, of in DATA_FILES.items() if f"cones/{file}" in named for more in of
    }
    return {name: _hash(named[name]) for name in sorted(named.keys() - COMPILED)}


@cache
def imported(file: Path) -> frozenset[str]:
    """The modules of `cones` that a file names in its imports; those for type checking alone run nothing."""
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(file.read_bytes())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        todo += ast.iter_child_nodes(node)
    return frozenset(name for name in found if name.startswith("cones."))


@cache
def _files_of(name: str) -> tuple[Path, ...]:
    """The file of a module and those of the packages that it is in; none for what is no module, or stands aside."""
    parts = name.split(".")[1:]
    if not parts or parts[0] in ASIDE:
        return ()
    folders = [PACKAGE.joinpath(*parts[:i], "__init__.py") for i in range(1, len(parts) + 1)]
    module = PACKAGE.joinpath(*parts).with_suffix(".py")
    return tuple(file for file in (*folders, module) if file.is_file())


def _shown(file: Path) -> str:
    if file.is_relative_to(PACKAGE.parent):
        return file.relative_to(PACKAGE.parent).as_posix()
    return file.as_posix()


@cache
def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
