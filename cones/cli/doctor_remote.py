"""What `cones doctor` says of DVC's remote: whether it answers and can be written, and secrets in what is committed."""

import errno
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cones.cli.doctor import Finding
from cones.cli.remotes import check_ssh_hosts, remote_error
from cones.common.redaction import SECRET, redacted

WHAT = "DVC remote"
MOST_SECONDS = 30.0
"""How long the doctor waits for a remote."""


def examine_remote() -> Iterator[Finding]:
    """The default remote, tried with a small file, and secrets in the file that is committed."""
    from dvc.config import Config, ConfigError

    check_ssh_hosts()
    try:
        config = Config(dvc_dir=str(Path(".dvc").absolute()))
        committed = config.load_one("repo").get("remote", {})
    except ConfigError as error:
        yield Finding(WHAT, str(error), False, "put .dvc/config right")
        return
    for name, options in committed.items():
        yield from _secrets(name, options)
    name = config["core"].get("remote")
    if name is None:
        others = f"none is the default of {', '.join(config['remote'])}" if config["remote"] else "none"
        yield Finding(WHAT, f"{others}; results stay on this machine", None, "for other machines: docs/team.md")
    elif name not in config["remote"]:
        yield Finding(WHAT, f"`{name}` is the default, and there is none", False, f"dvc remote add {name} ADDRESS")
    else:
        yield _tried(name, config)


def _secrets(name: str, options: dict[str, Any]) -> Iterator[Finding]:
    """Settings of a remote that belong to whoever uses it."""
    of = [option for option in options if re.search(rf"(?:{SECRET}|connection_string)$", option, re.I)]
    of += ["url"] if redacted(str(options.get("url", ""))) != str(options.get("url", "")) else []
    for option in of:
        to_do = (
            f"take it out (`dvc remote modify {name} --unset {option}`, or mend the address), have another one made, "
            "as git keeps it, and put that into the environment, ~/.aws or .dvc/config.local"
        )
        yield Finding(WHAT, f".dvc/config, which is committed, has `{option}` of `{name}` in it", False, to_do)


def _tried(name: str, config: Any) -> Finding:
    address = redacted(str(config["remote"][name].get("url")))
    outcome: list[BaseException | None] = []

    def write() -> None:
        try:
            _write(name, config)
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=write, daemon=True)  # a network disk that is away may hold it for ever
    thread.start()
    thread.join(MOST_SECONDS)
    if not outcome:
        found = f"{address} has not answered for {MOST_SECONDS:.0f} seconds"
        return Finding(WHAT, found, False, f"see that it is there, or name another: `dvc remote modify {name} url ...`")
    if outcome[0] is None:
        return Finding(WHAT, f"{address} answers and can be written")
    told = remote_error(outcome[0])
    if told is None:
        raise outcome[0]
    return Finding(WHAT, f"{address}: {str(told).partition(';')[0]}", False, str(told).partition("; ")[2])


def _write(name: str, config: Any) -> None:
    """Write a small file, read it and remove it, with the folder if that was not there."""
    from dvc.fs import get_cloud_fs

    kind, settings, folder = get_cloud_fs(config, name=name)
    fs = kind(**settings)
    there, text = fs.exists(folder), secrets.token_hex(8)
    file = fs.join(folder, f".cones-doctor-{text}")
    fs.makedirs(folder, exist_ok=True)
    try:
        fs.pipe_file(file, text.encode())
        if fs.cat_file(file) != text.encode():
            raise OSError(errno.EIO, "it gives back something else than was written")
    finally:
        with suppress(FileNotFoundError):
            fs.rm_file(file)
        if not there:
            with suppress(Exception):  # buckets have no folders; over SSH `rmdir` does nothing, and `rm` what it should
                (fs.rm if fs.protocol == "ssh" else fs.rmdir)(folder)
