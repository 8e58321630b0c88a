"""What runs where, since when, on which GPU, and what waits for what, by the Prefect server: `cones status`."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

os.environ.setdefault("DO_NOT_TRACK", "1")  # read when prefect is imported

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_CLIENT_MAX_RETRIES,
    get_current_settings,
    temporary_settings,
)
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cones.common.errors import ConesError
from cones.common.escaping import one_line, printable
from cones.common.process import plain_errors
from cones.common.redaction import address, redacted
from cones.common.system_errors import Away
from flows.running import Run, Work, running

ANSWER_SECONDS, RETRIES = 10.0, 2
"""How long to wait for an answer, and how often to ask again a server that is too busy for one."""


@contextmanager
def asking() -> Iterator[SyncPrefectClient]:
    """A client of the Prefect server that is set; `ConesError` for what is wrong with it."""
    url = get_current_settings().api.url
    if not url:
        raise ConesError(
            "no Prefect server is set, so that nobody can be asked: `export PREFECT_API_URL=http://127.0.0.1:4200/api` "
            "names that of docs/team.md. A flow that was started without one tells what it does on its own terminal"
        )
    where = address(url)
    try:
        with (
            temporary_settings({PREFECT_API_REQUEST_TIMEOUT: ANSWER_SECONDS, PREFECT_CLIENT_MAX_RETRIES: RETRIES}),
            get_client(sync_client=True) as client,
        ):
            yield client
    except PrefectHTTPStatusError as error:
        code = error.response.status_code
        if code in (401, 403):
            raise ConesError(
                f"the Prefect server at {where} asks for a password, and this is not it: stand in a folder with the "
                "`.env` of the machine that runs it, or set PREFECT_API_AUTH_STRING"
            ) from None
        told = f"answers with status {code}: what stands in PREFECT_API_URL has to be a Prefect server's /api"
        raise (Away if code >= 500 else ConesError)(f"the Prefect server at {where} {told}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Away(
            f"the Prefect server at {where} does not answer ({one_line(error, 160)}): `prefect server start` starts it "
            "on its machine, `ssh -f -N -L 4200:127.0.0.1:4200 HOST` reaches it from another; or correct "
            "PREFECT_API_URL"
        ) from None
    except (ValueError, TypeError, LookupError) as error:
        raise ConesError(
            f"what answers at {where} is no Prefect server of this release ({type(error).__name__}): correct "
            "PREFECT_API_URL"
        ) from None


def as_json(runs: list[Run]) -> str:
    """A list of the flow runs; times are in UTC, as ISO 8601."""
    return json.dumps([_plain(asdict(run)) for run in runs], indent=2)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(of) for name, of in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(of) for of in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds")
    return redacted(value) if isinstance(value, str) else value


def as_lines(runs: list[Run]) -> Iterator[str]:
    for run in runs:
        yield told(", ".join([_head(run), *_facts(run)]))
        for work in run.work:
            where = [w for w in (f"on {work.machine}" * bool(work.machine), _gpu(work)) if w]
            parts = [f"  {work.name}: {work.state}", *where, _began(work.since), _waits(work)]
            yield told(", ".join(part for part in parts if part))


def as_table(runs: list[Run]) -> Table:
    table = Table("", "state", "machine", "GPU", "since", "waits for")
    for column in (0, 5):
        table.columns[column].overflow = "fold"
    for run in runs:
        state = ", ".join([run.state, *_counts(run)])
        _add(table, "bold", _head(run), state, run.machine, "", since(run.since), _asks(run))
        for work in run.work:
            waits = ", ".join(work.waits_for)
            _add(table, "", f"  {work.name}", work.state, work.machine, work.gpu, since(work.since), waits)
        table.add_section()
    return table


def _add(table: Table, style: str, *cells: str) -> None:
    table.add_row(*(Text(told(cell), style=style) for cell in cells))


def told(text: str) -> str:
    """Words of the server on one line, without passwords."""
    return printable(redacted(text))


def since(moment: datetime | None) -> str:
    """When, in the local time, and how long ago."""
    if moment is None:
        return ""
    local, seconds = moment.astimezone(), max(0, (datetime.now(UTC) - moment).total_seconds())
    day = "" if local.date() == datetime.now().date() else f"{local:%Y-%m-%d} "
    ago = f"{seconds:.0f} s" if seconds < 60 else f"{seconds // 3600:.0f}:{seconds % 3600 // 60:02.0f} h"
    return f"{day}{local:%H:%M} ({ago})"


def _head(run: Run) -> str:
    return f"{run.flow} {run.name}"


def _facts(run: Run) -> list[str]:
    where = [f"on {run.machine}"] if run.machine else []
    return [part for part in (run.state, *_counts(run), *where, _began(run.since), _asks(run)) if part]


def _began(moment: datetime | None) -> str:
    return f"since {since(moment)}" if moment else ""


def _counts(run: Run) -> list[str]:
    done = [f"{run.done} of {run.stages} stages done"] if run.stages else []
    return done + ([f"{run.failed} failed or not begun for it"] if run.failed else [])


def _asks(run: Run) -> str:
    if not run.pool:
        return ""
    return f"pool {run.pool}, {run.online} worker{'s' if run.online != 1 else ''} online"


def _gpu(work: Work) -> str:
    return f"GPU {work.gpu}" if work.gpu else ""


def _waits(work: Work) -> str:
    return f"for {' and '.join(work.waits_for)}" if work.waits_for else ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="cones status", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print a JSON list of the flow runs")
    asked = parser.parse_args()
    with plain_errors():
        with asking() as client:
            runs = running(client)
        console = Console(file=sys.stdout)
        if asked.json:
            print(as_json(runs))
        elif not runs:
            print("nothing runs")
        elif console.is_terminal:
            console.print(as_table(runs))
        else:
            print("\n".join(as_lines(runs)))


if __name__ == "__main__":
    main()
