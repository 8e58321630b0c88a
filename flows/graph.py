"""DVC's own stage graph: what there is to run, what needs what, and what wants a GPU."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cones.common.errors import ConesError
from cones.common.messages import nearest
from cones.config.params import Params


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml by its address, such as `search@cells-cones`, and the addresses of the stages it needs."""

    name: str
    needs: tuple[str, ...]
    gpu: bool
    """Whether dvc.yaml marks it with `meta: {gpu: true}`."""
    processes: int = 1
    """Of its row, each of which wants a GPU."""


def processes_of(params: Params) -> dict[str, int]:
    """The stages of rows that several processes work on, and how many."""
    every = {row: getattr(settings, "processes", 1) for row, settings in params.rows().items()}
    stage = {row: "finetune" if row in params.finetunes else "search" for row in every}
    return {f"{stage[row]}@{row}": count for row, count in every.items() if count > 1}


def stage_graph(targets: Iterable[str] = (), processes: Mapping[str, int] | None = None) -> dict[str, Stage]:
    """The stages of the project you stand in, or only `targets` and what they need; those before come first. Studies
    are run where they are asked for. `processes` as `processes_of` has them.

    Frozen stages are left out: their outputs are committed. Raises `ConesError` for a target that is no stage.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            graph = repo.index.graph
            stages = {s.addressing: s for s in graph.nodes}
            needs = {s.addressing: {n.addressing for n in graph.successors(s)} for s in graph.nodes}
    except DvcException as error:
        raise ConesError(f"DVC cannot read its graph here: {error}; run this from the project's folder") from None
    wanted = list(targets) or [name for name in stages if ":" not in name]
    for name in wanted:
        if name not in stages:
            raise ConesError(f"`{name}` is not a stage of dvc.yaml{nearest(name, stages)}")
    found: dict[str, Stage] = {}

    def visit(name: str) -> None:
        if name in found or stages[name].frozen:
            return
        for need in sorted(needs[name]):
            visit(need)
        known = tuple(n for n in sorted(needs[name]) if not stages[n].frozen)
        wants_gpu = bool((stages[name].meta or {}).get("gpu"))
        found[name] = Stage(name, known, wants_gpu, (processes or {}).get(name, 1))

    for name in wanted:
        visit(name)
    return found
