"""Who is at work on a run of the registry: a tag that names host, process and time, and whether it still holds."""

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

CLAIM_TAG = "cones.claim"
OLDEST = 3600.0
"""Seconds after which a run that another host began is taken for left behind: what it does takes minutes."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


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
