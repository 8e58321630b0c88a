"""What a process says of itself on its flow run: what it is about, that it lives, where it is, and what it is at."""

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import get_client
from prefect.context import get_run_context

from flows.graph import Stage

BEAT, AT, MACHINE, GPU = "cones.beat", "cones.at", "cones.machine", "cones.gpu"
"""Labels: a number that grows while the process lives, and of a worker what it is at, on which machine and GPU."""

COMMIT, GPUS = "cones.commit", "cones.gpus"
"""Labels of a flow at home: the commit that it sends to workers, and a JSON object of its stages that want a GPU, with
the one that each has, or nothing while it waits for one."""

STAGES = "stages"
"""The artefact that says what waits for what."""

BEAT_SECONDS = 10.0
"""How often a process says that it lives, besides whenever its labels change."""


class Signs:
    """The labels of this process's flow run."""

    def __init__(self) -> None:
        self.labels: dict[str, str] = {MACHINE: socket.gethostname()}
        self.changed = threading.Event()
        self._gpus: dict[str, str] = {}
        self._one_at_a_time = threading.Lock()

    def __setitem__(self, label: str, text: str) -> None:
        self.labels = {**self.labels, label: text}
        self.changed.set()

    @contextmanager
    def lending(self, stage: str) -> Iterator[Callable[[str], None]]:
        """In the block, tell which GPU a stage has as the yielded function is told it: "" while it waits for one."""
        try:
            yield lambda device: self._lend(stage, device)
        finally:
            self._lend(stage, None)

    def _lend(self, stage: str, device: str | None) -> None:
        with self._one_at_a_time:
            before = dict(self._gpus)
            self._gpus.pop(stage, None)
            if device is not None:
                self._gpus[stage] = device
            if self._gpus != before:
                self[GPUS] = json.dumps(self._gpus)


def publish_stages(graph: Mapping[str, Stage]) -> None:
    """Put the stages of a flow beside its run, with those that each waits for."""
    rows = [{"stage": s.name, "waits for": ", ".join(s.needs), "wants a GPU": s.gpu} for s in graph.values()]
    create_table_artifact(rows, key=STAGES, description="What this flow brings up to date, and what waits for what.")


def stages_told(data: Any) -> dict[str, Stage]:
    """What `publish_stages` put there, as the server gives it back."""
    lines = json.loads(data) if isinstance(data, str) else data
    told = [(str(x["stage"]), str(x["waits for"]).split(", "), bool(x["wants a GPU"])) for x in lines]
    return {name: Stage(name, tuple(filter(None, needs)), gpu) for name, needs, gpu in told}


@contextmanager
def beating() -> Iterator[Signs]:
    """Say on the flow run that this process lives, and what the yielded labels say."""
    signs, ended, run = Signs(), threading.Event(), get_run_context().flow_run.id

    def beat() -> None:
        count = 0
        with get_client(sync_client=True) as client:
            while not ended.is_set():
                count += 1
                signs.changed.clear()
                with suppress(Exception):  # a server that is away comes back
                    client.update_flow_run_labels(run, {**signs.labels, BEAT: count})
                signs.changed.wait(BEAT_SECONDS)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield signs
    finally:
        ended.set()
        signs.changed.set()
        thread.join(BEAT_SECONDS)
