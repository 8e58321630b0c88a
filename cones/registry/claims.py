"""Who is at work on a run of the registry: a tag that names host, process and time, and whether it still holds."""

import json
import os
import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

from cones.common.errors import Busy
from cones.registry.faults import every_page

KEY_TAG = "cones.key"
"""Of what a run or a version holds: a hash."""
CLAIM_TAG = "cones.claim"
OLDEST = 3600.0
"""Seconds after which a run that another host began is taken for left behind: what it does takes minutes."""
WAIT = 120.0
"""Seconds to wait for another process that logs the same content."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
Made = TypeVar("Made")


def made_once(
    client: Any, what: str, key: str, experiment: str, known: Callable[[], Made | None], make: Callable[[], Made | None]
) -> tuple[Made, bool]:
    """What is `known` of the content with a key, also if another process makes it just now, else what `make` makes of
    it, which is None where another process was first; and whether it is new. `Busy` if another one takes too long."""
    deadline = time.monotonic() + WAIT
    while True:
        # Before what is known: what has made it by then is seen there, and no run that ends in between is taken for
        # left behind.
        runs = runs_of(client, key, experiment)
        held = [run for run in runs if is_held(run)]
        found = known()
        if found is not None:
            return found, False
        if held and time.monotonic() > deadline:
            raise Busy(f"`{what}` is being registered by {holder(held[0])}")
        for run in runs:
            if run not in held:
                client.delete_run(run.info.run_id)  # it was never finished
        found = None if held else make()
        if found is not None:
            return found, True
        time.sleep(random.uniform(0.5, 1.5))  # two that met go on at different times


def runs_of(client: Any, key: str, experiment: str) -> list[Any]:
    """The runs of the content with a key."""
    return list(every_page(client.search_runs, [experiment], f"tags.`{KEY_TAG}` = '{key}'"))


def taken_back(client: Any, identity: str, key: str, experiment: str, known: Callable[[], Any | None]) -> bool:
    """Whether this process's run is given up, as another one has begun the same, or has just done it.

    Each claims its run first and looks then, so of two at least one sees the other.
    """
    import mlflow

    others = (run for run in runs_of(client, key, experiment) if run.info.run_id != identity)
    if not any(map(is_held, others)) and known() is None:
        return False
    mlflow.end_run("KILLED")
    client.delete_run(identity)
    return True


def claim() -> str:
    """This process's claim, for a run that it begins."""
    process = psutil.Process()
    return json.dumps({"host": _host(), "process": process.pid, "started": process.create_time(), "at": time.time()})


def _host() -> str:
    """This machine, since it was started; containers that do not see each other's processes are different ones.

    By the name alone two machines may be one; so they may by the namespace, which of the system's own processes has the
    same number everywhere.
    """
    space = Path("/proc/self/ns/pid")
    known = [os.readlink(space)] if space.exists() else []
    known += [BOOT_ID.read_text().strip()] if BOOT_ID.exists() else []
    return " ".join([socket.gethostname(), *known])


def is_held(run: Any) -> bool:
    """Whether a process may be at work on an MLflow run.

    None is on a run that has ended, nor on one whose process is gone from this host. Of another host that cannot be
    seen: there, and where a run has no claim, it counts until it is `OLDEST` seconds old.
    """
    if run.info.status not in ("RUNNING", "SCHEDULED"):
        return False
    told = _claim_of(run)
    if told.get("host") == _host():
        with suppress(psutil.Error):
            process = psutil.Process(told["process"])
            return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - told["started"]) < 5
        return False
    return time.time() - run.info.start_time / 1000 < OLDEST


def holder(run: Any) -> str:
    """Who is at work on a run and what to do about it, for a message."""
    told, who = _claim_of(run), "another program"
    if told:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(told["at"]))
        who = f"process {told['process']} on {told['host'].split()[0]} since {since}"
    return (
        f"{who}, in MLflow's run {run.info.run_id}; wait for it or end it, and if it is gone already, delete that run: "
        f"`mlflow runs delete --run-id {run.info.run_id}`"
    )


def _claim_of(run: Any) -> dict[str, Any]:
    """What a run's tag says; nothing where there is none, or another program's."""
    try:
        told = json.loads(run.data.tags.get(CLAIM_TAG, "{}"))
        return {"host": str(told["host"]), "process": int(told["process"]), "started": float(told["started"]),
                "at": float(told["at"])}  # fmt: skip
    except (ValueError, TypeError, KeyError):
        return {}
