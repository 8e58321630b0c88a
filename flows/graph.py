"""DVC's own stage graph: what there is to run, what needs what, and what wants a GPU."""

from collections.abc import Iterable
from dataclasses import dataclass

from cones.common.errors import ConesError
from cones.common.messages import nearest


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml by its address, such as `search@cells-cones`, and the addresses of the stages it needs."""

    name: str
    needs: tuple[str, ...]
    gpu: bool
    """Whether dvc.yaml marks it with `meta: {gpu: true}`."""


def stage_graph(targets: Iterable[str] = ()) -> dict[str, Stage]:
    """The stages of the project you stand in, or only `targets` and what they need; those before come first. Studies
    are run where they are asked for.

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
        found[name] = Stage(name, known, bool((stages[name].meta or {}).get("gpu")))

    for name in wanted:
        visit(name)
    return found
