"""What can be wrong with the registry's address, or with what is there, in one line, with what to do about it."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cones.common.errors import TrackingAway, TrackingError
from cones.common.escaping import is_plain
from cones.common.layout import EVALUATED, SEARCHED
from cones.common.redaction import redacted

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks", "databricks-uc")
ENCODE = "in its user and password write `/`, `?`, `#`, `@`, `:`, `%` and blanks percent-encoded (`@` is %40)"
MOST_PAGES = 10_000
"""Of a search, after which a server that never ends is taken for broken."""
SHOWN = 160
"""Characters of another program's message that are shown."""
LONGEST_NAME = 250

LASTING = (
    (
        "file is not a database|disk image is malformed",
        "its database is damaged: put a copy of it back, or move it away, and `cones register` registers every "
        "finished row in a new one",
    ),
    (
        "out-of-date database schema|can't locate revision|no such (?:table|column)",
        "its database is of another release of MLflow than the one installed here: `make -B .venv/ready` "
        "brings the project's, or copy the database and run `mlflow db upgrade` on it",
    ),
    (
        "readonly database|unable to open database file|permission denied for",
        "its database cannot be opened and written by you: give yourself the right to, in its folder as well",
    ),
    (
        "error code 401|unauthenticated|password authentication failed|access denied for user",
        "it does not know you: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or correct "
        "MLFLOW_TRACKING_URI",
    ),
    ("error code 403|permission_denied|permission denied", "it does not let you do this: ask whoever runs it"),
    (
        "sslerror|certificate verify",
        "its certificate, or that it has one, is not as expected: correct MLFLOW_TRACKING_URI",
    ),
    (
        "error code 40[45]|endpoint_not_found|valid json|failed to parse|redirects|invalid url|invalid_parameter_value",
        "what answers there is no MLflow server, or takes nothing like this: correct MLFLOW_TRACKING_URI",
    ),
)
"""What does not pass by itself: how MLflow and its database say it, and what to do."""


def refuse_address(uri: str) -> None:
    """`TrackingError` for what cannot be a registry's address: no URI, an unknown kind, a folder in place of a file, a
    kind of database whose driver is not installed."""
    scheme = re.match(r"[a-z][a-z0-9-]*", uri)
    kind = scheme[0] if scheme else ""
    if kind not in SCHEMES or not (kind.startswith("databricks") or "://" in uri):
        known = "http://HOST:PORT, sqlite:////PATH/mlflow.db or postgresql://HOST/NAME"
        raise TrackingError(f"MLFLOW_TRACKING_URI is {shown(uri)}, and must be like {known}")
    if re.search(r"[\x00-\x1f\x7f]", uri):
        raise TrackingError(f"MLFLOW_TRACKING_URI has line breaks or control characters in it; {ENCODE}")
    if kind.startswith("http"):
        _refuse_server(uri)
    elif not kind.startswith("databricks"):
        _refuse_database(uri)


def _refuse_server(uri: str) -> None:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(uri)
        well = bool(parts.hostname) and parts.port != 0 and " " not in uri
        well = well and "@" not in parts.path + parts.query + parts.fragment
    except ValueError:
        well = False
    if not well:
        raise TrackingError(f"MLFLOW_TRACKING_URI is no address of a server, as http://HOST:PORT is; {ENCODE}")


def _refuse_database(uri: str) -> None:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        address = make_url(uri)
        driver = address.get_dialect()
    except (SQLAlchemyError, ValueError):
        raise TrackingError(
            f"MLFLOW_TRACKING_URI is no address of a database, as postgresql://HOST:PORT/NAME is; {ENCODE}"
        ) from None
    try:
        driver.import_dbapi()
    except ImportError as error:
        raise TrackingError(
            f"a registry at {address.drivername}:// needs the package `{error.name}`, which is not installed here; "
            "install it, or name an MLflow server in MLFLOW_TRACKING_URI"
        ) from None
    if address.drivername.startswith("sqlite") and address.database and Path(address.database).is_dir():
        raise TrackingError(f"the registry's database {address.database} is a folder; move it away")


def fault(error: BaseException, uri: str) -> TrackingError:
    """The error to raise for one of MLflow, its database or its server: `TrackingAway` where it may pass by itself."""
    said = redacted(f"{error}").strip()
    text = " ".join([said, str(getattr(error, "error_code", "")), *(type(e).__name__ for e in _chain(error))]).lower()
    first = shown(said.split("\n")[0], "")
    for pattern, to_do in LASTING:
        if re.search(pattern, text):
            return TrackingError(f"MLflow at {uri} cannot be used ({first}): {to_do}")
    return TrackingAway(
        f"MLflow at {uri} cannot be used ({first}); the results are safe in {SEARCHED}/ and {EVALUATED}/: run "
        "`cones register` again when it is back"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def shown(text: str, quote: str = "`") -> str:
    """The beginning of a text of somebody else's, on one line and without what would move a terminal's cursor."""
    plain = "".join(c if c.isprintable() else " " for c in redacted(text))
    return f"{quote}{plain[:SHOWN]}{'...' * (len(plain) > SHOWN)}{quote}"


def every_page(search: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
    """What all pages of a search by MLflow's client hold: one has 100 to 10,000 entries."""
    token = None
    for _ in range(MOST_PAGES):
        page = search(*arguments, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
    raise TrackingError(f"MLflow's search of {shown(' '.join(map(str, arguments)))} has no end; see what answers there")


def existing(get: Callable[[], Any]) -> Any | None:
    """What MLflow has, or None where it says that it has no such thing."""
    try:
        return get()
    except Exception as error:  # MLflow's own, whose class takes seconds to import; any other goes on its way
        if getattr(error, "error_code", None) not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def is_name(name: object) -> bool:
    """Whether a text from outside can be that of a registered model or of a row, of other versions of cones as well."""
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or name != name.strip():
        return False
    return is_plain(name) and name[0] != "." and not set(name) & set("/:@")
