"""Passwords are in no error, log, listing, traceback, artefact or run, however their address is malformed."""

import contextlib
import logging
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hostile import SECRET

from cones.cli.doctor import Finding, show
from cones.common.errors import ConesError
from cones.common.process import plain_errors
from cones.common.redaction import guard_output, redacted
from cones.inference.open import load
from cones.registry.versions import look_up

pytestmark = pytest.mark.usefixtures("no_other_registry")

URIS = {
    "plain": f"http://user:{SECRET}@host:5000", "api": f"http://user:{SECRET}@127.0.0.1:4200/api",
    "postgres": f"postgresql://user:{SECRET}@host/db", "driver": f"postgresql+psycopg://user:{SECRET}@host:5432/db",
    "at": f"http://user:x@{SECRET}@host", "slash": f"http://user:x/{SECRET}@host",
    "hash": f"http://user:x#{SECRET}@host", "query mark": f"http://user:x?{SECRET}@host",
    "colon": f"http://user:x:{SECRET}@host", "quote": f"http://user:x'{SECRET}@host",
    "no user": f"https://:{SECRET}@host", "token as user": f"https://{SECRET}-as-a-token@host",
    "ipv6": f"http://u:{SECRET}@[::1]:5", "bad port": f"http://user:{SECRET}@host:port/",
    "no end of ipv6": f"http://user:{SECRET}@[::1", "query": f"postgresql://host/db?user=me&password={SECRET}",
    "two": f"mysql://host/db?sslpassword={SECRET}&a=1", "token": f"http://host:5000/?access_token={SECRET}",
    "key": f"http://host/?api_key={SECRET}#x", "setting": f"host=h user=u password={SECRET} dbname=d",
    "quoted": f"password='{SECRET} x'", "json": f'{{"password": "{SECRET}"}}', "python": f"{{'token': '{SECRET}'}}",
    "header": f"Authorization: Bearer {SECRET}", "basic": f"{{'Authorization': 'Basic {SECRET}=='}}",
}  # fmt: skip


@pytest.mark.parametrize("case", URIS)
def test_a_password_is_dropped_from_a_text(case: str) -> None:
    for around in ("{}", "cannot reach '{}': refused", 'File "x.py", in y("{}", 1)', "<{}>"):
        shown = redacted(around.format(URIS[case]))
        assert SECRET not in shown, around
        assert "***" in shown, around


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/#/models/cells@champion", "models:/cells@champion is at http://host:5000/x@y",
        "sqlite:////home/a@b/mlflow.db", "file:///home/a@b/x", "http://[::1]:5000/a@b", "s3://bucket/a@b",
        "`token`: Input should be a valid string", "basic authorization", "the password is wrong", "n_tokens 4, key: a",
        "user@example.org", "PWD", "http://host/@x",
    ],
)  # fmt: skip
def test_what_holds_no_password_stays_as_it_is(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize(
    ("given", "told"),
    [
        # Numbered: pytest writes the names of cases into the environment, where secrets are looked for.
        (f"http://u:x y{SECRET}@h", f"x y{SECRET}"), (f"http://u:a%2F{SECRET}@h", f"a/{SECRET}"),
        (f"http://u:a/{SECRET}@h", SECRET), (f"http://u:a/{SECRET}@h", f"nonnumeric port: '{SECRET}'"),
        (f"http://u:{SECRET}@h", f"u:{SECRET}"), (f"pg://h/?pass%77ord={SECRET}", SECRET),
        (f"http://u:a+{SECRET}@h", f"a%2B{SECRET}"), (f"http://u:a%2B{SECRET}@h", f"a%252B{SECRET}"),
        (f"http://u:a'\\{SECRET}@h", repr(f"a'\\{SECRET}")), (f"http://{SECRET}-as-a-token@h", f"{SECRET}-as-a-token"),
    ],
    ids=map(str, range(10)),
)  # fmt: skip
def test_a_password_of_the_environment_is_known_wherever_it_stands(given: str, told: str, monkeypatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "DATABASE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, given)
            assert SECRET not in redacted(f"it says {told} is wrong"), name


@pytest.mark.parametrize("name", [
    "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PREFECT_API_KEY", "HF_TOKEN", "PREFECT_API_AUTH_STRING",
    "AWS_SECRET_ACCESS_KEY", "CONES_SERVE_TOKEN", "MYSQL_PWD",
])  # fmt: skip
def test_secret_settings_are_known_by_their_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, f"me:{SECRET}")
    assert SECRET not in redacted(f"it says me:{SECRET} and Basic bWU6{'czNjcjN0cHc='} is wrong")
    assert "bWU6czNjcjN0cHc" not in redacted("Basic bWU6czNjcjN0cHc=")
    assert redacted(str(Path.cwd())) == str(Path.cwd())


def said_by(act: Callable[[], Any]) -> str:
    """All that an error says: its text, its repr, and its traceback with what led to it."""
    try:
        act()
    except BaseException as error:
        return "\n".join([str(error), repr(error), repr(error.args), *traceback.format_exception(error)])
    return ""


AWAY = [u for u in URIS if u not in ("setting", "quoted", "json", "python", "header", "basic")]


@pytest.mark.parametrize("case", AWAY)
def test_no_error_of_the_registry_holds_the_password(case: str, monkeypatch: pytest.MonkeyPatch, caplog, capfd) -> None:
    given = (
        URIS[case].replace("@host:5000", "@127.0.0.1:9").replace("@host", "@127.0.0.1").replace("//host", "//127.0.0.1")
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    guard_output()
    for act in (
        lambda: look_up("few"),
        lambda: load("models:/few@champion"),
        lambda: load("models:/few/1"),
    ):
        told = said_by(act)
        assert "Tracking" in told, "an expected error"
        assert SECRET not in told + caplog.text + "".join(capfd.readouterr())


def test_every_output_of_ours_is_without_it(monkeypatch: pytest.MonkeyPatch, capsys, caplog) -> None:
    uri = URIS["plain"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    show(iter([Finding("MLflow", f"{uri} answers", True, f"see {uri}")]))
    guard_output()
    logging.getLogger("any.library").warning("View run at %s", f"{uri}/#/runs")
    with contextlib.suppress(SystemExit), plain_errors():
        raise ConesError(f"{uri} is away")
    try:
        raise RuntimeError(uri)
    except RuntimeError as error:
        logging.getLogger("any").exception("it failed at %s", uri)
        sys.excepthook(RuntimeError, error, error.__traceback__)
    out, err = capsys.readouterr()
    formatted = "".join(logging.Formatter().format(r) for r in caplog.records)
    assert "Traceback" in err + formatted
    assert out.count("***@host:5000") == 2
    assert SECRET not in out + err + caplog.text + formatted


def test_what_no_one_catches_is_told_without_it(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Errors of threads and of what is cleared away, warnings, and where a log came from."""
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    guard_output()
    error = RuntimeError(URIS["plain"])
    threading.excepthook(threading.ExceptHookArgs((RuntimeError, error, None, None)))
    sys.unraisablehook(SimpleNamespace(exc_type=RuntimeError, exc_value=error, exc_traceback=None))
    told = warnings.formatwarning(URIS["plain"], UserWarning, "x.py", 1)
    record = logging.getLogRecordFactory()("any", 30, "x.py", 1, "there", (), None, sinfo=f'connect("{URIS["plain"]}")')
    told += logging.Formatter().format(record) + "".join(capsys.readouterr())
    assert told.count("***@host:5000") == 4
    assert SECRET not in told


@pytest.mark.parametrize("setting", ["CONES_TRACEBACK", "CONES_NOTHING"])
def test_a_traceback_that_was_asked_for_is_without_it(setting: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv(setting, "1")
    with contextlib.suppress(SystemExit), plain_errors():
        raise ConesError("it is away") from ValueError(URIS["plain"])
    err = capsys.readouterr().err
    assert ("***@host:5000" in err) == (setting == "CONES_TRACEBACK")
    assert SECRET not in err


HARMLESS = [
    "token=5 is too large", "n_tokens=4", "compass=north", "bypass=on", "password=none", "models:/cells@champion",
    "{'token': 5}", "the pass=3 of the row", "key=3", "tokens: 4",
]  # fmt: skip


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_password_stays(text: str) -> None:
    assert redacted(text) == text


FREE = ["--token {}", "X-Api-Key: {}", "Authorization: token {}", "authorization=Bearer%20{}", "Cookie: {}"]


@pytest.mark.parametrize("text", FREE)
def test_what_a_request_brings_is_hidden(text: str) -> None:
    assert SECRET not in redacted(text.format(SECRET))


KNOWN = {
    "AWS_ACCESS_KEY_ID": SECRET, "PREFECT_API_AUTH_STRING": f"user:{SECRET}",
    "AZURE_STORAGE_CONNECTION_STRING": f"AccountName=a;AccountKey={SECRET};EndpointSuffix=core",
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_a_secret_of_the_environment_is_hidden_by_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, KNOWN[name])
    assert redacted(f"refused: {SECRET}") == "refused: ***"


def test_a_flow_logs_and_publishes_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.processes import CommandFailed, Programs
    from flows.results import _links

    monkeypatch.setenv("MLFLOW_TRACKING_URI", URIS["plain"])
    links, lines = _links({"few"}), list[str]()
    assert "[few](http://host:5000/#/models/few)" in links
    program = "import os; print('error: at', os.environ['MLFLOW_TRACKING_URI']); raise SystemExit(1)"
    with pytest.raises(CommandFailed) as told:
        Programs().run("it", ["python", "-c", program], {}, lines.append)
    assert "host:5000" in lines[0]
    assert SECRET not in links + "".join(lines) + str(told.value)
