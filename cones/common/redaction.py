"""Passwords and tokens out of whatever a person, a log or a server is shown."""

import base64
import json
import logging
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote, unquote_plus

HIDDEN = "***"
SECRET = (
    r"(?:password|passwd|passphrase|passcode|(?<![a-z])pass|pwd|token|secret|auth_string"
    r"|(?:api|access|account|private|secret|shared)[_-]?key(?:_id)?)"
)
"""How the name of a setting ends whose value is secret."""
VALUE = r"(?!(?:true|false|none|null|[\d.]+)\b)(?:'[^']*'|\"[^\"]*\"|[^\s&;,'\"<>]+)"
NAMED = re.compile(rf"({SECRET}\s*=\s*|--{SECRET}\s+)(?:{VALUE})", re.I)
SETTING = re.compile(rf"({SECRET})=([^\s;&]+)", re.I)
QUOTED = re.compile(rf"({SECRET}['\"]\s*:\s*)(?:'[^']*'|\"[^\"]*\")", re.I)
HEADER = re.compile(
    r"((?:authorization|cookie|x-api-key)['\"]?\s*[:=]\s*['\"]?(?:(?:basic|bearer|token|digest)(?:\s+|%20))?)[^\s'\",]+",
    re.I,
)
USER = re.compile(
    r"""(://)(?:
        [^/?\#\s"<>]{0,999}@                                        # as it should be
        |[^\s/?\#@:'"<>\[]{0,999}:(?!\d{1,5}[/?\#])[^\s'"<>]{0,999}@  # with characters that should be percent-encoded
    )""",
    re.X,
)
IS_URI = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.I)
SPACED = re.compile(r"[^\s/?#@:\[]+:(?!\d{1,5}(?:[/?#]|$))[^@]*@")
LEAST, LEAST_USER = 6, 12
"""Characters that a secret, and a user without a password, must have to be looked for as such: shorter ones are parts
of too many words, and the latter may be a token."""
FORMAT_WARNING = warnings.formatwarning
FOLDERS = {"PWD", "OLDPWD"}
"""What a shell calls where it stands."""


def redacted(text: str) -> str:
    """A text without the passwords in it: users and passwords of URIs, values of settings that are named as secrets,
    headers that authorise, and whatever of that this process's environment holds, in any of its spellings.

    Before a text is cut short: half a URI is none.
    """
    for secret in _known_secrets(tuple(os.environ.items())):
        text = text.replace(secret, HIDDEN)
    text = USER.sub(rf"\1{HIDDEN}@", text)
    for pattern in (NAMED, QUOTED, HEADER):
        text = pattern.sub(rf"\1{HIDDEN}", text)
    return text


def address(uri: str) -> str:
    """A URI as a link: without what it says of who asks."""
    return redacted(uri).replace(f"{HIDDEN}@", "")


@lru_cache(maxsize=1)
def _known_secrets(environment: tuple[tuple[str, str], ...]) -> list[str]:
    """The secrets in an environment, as they may be written, those that hold others first."""
    found: set[str] = set()
    for name, value in environment:
        secrets = set(_secrets_of(value)) if IS_URI.match(value) else set()
        if re.search(rf"{SECRET}$", name, re.I) and name not in FOLDERS:
            secrets |= {value, value.partition(":")[2]}
        secrets |= {m[2] for m in SETTING.finditer(value)}
        found |= {
            written
            for secret in secrets
            if len(secret) >= LEAST and not secret.isdigit()
            for written in _spellings(secret)
        }
    return sorted(found, key=len, reverse=True)


def _secrets_of(uri: str) -> Iterator[str]:
    """The password of a URI, its user with it, and the values that its query names as secrets; where it is malformed
    also the parts that a reader may cut the password into."""
    after = uri.partition("://")[2]
    given = after.rpartition("@")[0] if USER.search(uri) or SPACED.match(after) else ""
    user, _, password = given.partition(":")
    if password:
        yield from (given, password, *re.split(r"[/?#@:\s]+", password))
    elif len(user) >= LEAST_USER:
        yield user
    yield from (value for name, value in parse_qsl(after.partition("?")[2]) if re.search(rf"{SECRET}$", name, re.I))


def _spellings(secret: str) -> Iterator[str]:
    """A secret as it is, decoded, encoded, quoted, and as the header of a request has it."""
    for plain in {secret, unquote(secret), unquote_plus(secret)}:
        encoded = plain.encode(errors="surrogateescape")
        yield from (plain, quote(encoded), quote(encoded, safe=""), quote_plus(encoded), quote(quote(encoded, safe="")))
        yield from (repr(plain)[1:-1], json.dumps(plain)[1:-1], base64.b64encode(encoded).decode())


def guard_output() -> None:
    """Keep passwords out of what this process logs, through any logger, and of the traceback that it may end with."""
    logging.setLogRecordFactory(_record)
    warnings.formatwarning = lambda *told, **more: redacted(FORMAT_WARNING(*told, **more))
    sys.excepthook = _excepthook
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = lambda told: _excepthook(told.exc_type, told.exc_value, told.exc_traceback)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = lambda told: _excepthook(told.exc_type, told.exc_value, told.exc_traceback)


def _record(*arguments: Any, **more: Any) -> logging.LogRecord:
    record = logging.LogRecord(*arguments, **more)
    with suppress(Exception):  # what cannot be put into words; logging says so itself
        said = redacted(record.getMessage())
        if said != record.getMessage():
            record.msg, record.args = said, ()
    if record.exc_info and record.exc_info[0] is not None:
        record.exc_text = redacted("".join(traceback.format_exception(*record.exc_info))).rstrip("\n")
    if record.stack_info:
        record.stack_info = redacted(record.stack_info)
    return record


def _excepthook(kind: type[BaseException], error: BaseException | None, where: TracebackType | None) -> None:
    print(redacted("".join(traceback.format_exception(kind, error, where))), end="", file=sys.stderr)
