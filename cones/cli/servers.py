"""The passwords of a project's Prefect and MLflow servers, in a file that its owner alone can read."""

import os
import secrets
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

from cones.common.errors import ConesError

PASSWORDS = Path(".env")
"""Where Prefect looks for settings in the folder that it starts in, and docker compose for its environment."""

PREFECT_NAMES = ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING")
"""What a Prefect server asks for, and what its clients answer."""

SERVERS_OWN = (*PREFECT_NAMES, "MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY", "PGPASSWORD")
"""What no stage and no command of ours needs to know."""

TEXT = """\
# Passwords of this project's servers, made by `cones servers init`. Whoever has them can run any command here.
# Prefect reads them in this folder; `set -a; . ./.env; set +a` gives them to clients of a team's MLflow server.
PREFECT_SERVER_API_HOST=127.0.0.1
PREFECT_SERVER_API_AUTH_STRING=cones:{prefect}
PREFECT_API_AUTH_STRING=cones:{prefect}
MLFLOW_AUTH_ADMIN_USERNAME=cones
MLFLOW_AUTH_ADMIN_PASSWORD={mlflow}
MLFLOW_TRACKING_USERNAME=cones
MLFLOW_TRACKING_PASSWORD={mlflow}
MLFLOW_FLASK_SERVER_SECRET_KEY={key}
# By these both servers get into PostgreSQL where they are started on it (docs/team.md).
PGHOST=127.0.0.1
PGUSER=cones
PGPASSWORD={database}
"""


def make_passwords() -> bool:
    """Write new passwords where there are none yet; whether it did.

    They appear whole, readable by this user alone, or not at all; passwords that are there stay. Raises `ConesError`
    outside a project, where git would commit the file, and where `check_passwords` refuses it.
    """
    if not Path("prefect.toml").is_file():
        raise ConesError("there is no prefect.toml here; stand in the project's folder")
    _refuse_committed()
    try:
        if not os.path.lexists(PASSWORDS):
            _write()
            return True
    except FileExistsError:
        pass  # another one was quicker
    check_passwords()
    return False


def _write() -> None:
    new = {name: secrets.token_urlsafe(32) for name in ("prefect", "mlflow", "key", "database")}
    with tempfile.NamedTemporaryFile("w", dir=".", prefix=f"{PASSWORDS}.") as file:  # of mode 600, and new
        file.write(TEXT.format(**new))
        file.flush()
        os.fsync(file.fileno())
        _refuse_shared(Path(file.name), os.fstat(file.fileno()))
        os.link(file.name, PASSWORDS)  # unlike a rename it takes no other file's place


def check_passwords() -> None:
    """Refuse what stands at `PASSWORDS` unless it is this user's own file, closed to others, with a password in it."""
    from dotenv import dotenv_values

    about = PASSWORDS.lstat()
    if not stat.S_ISREG(about.st_mode):
        raise ConesError(f"{PASSWORDS} is no plain file; move it away and run `cones servers init` again")
    _refuse_shared(PASSWORDS, about)
    try:
        lacking = [name for name in PREFECT_NAMES if not dotenv_values(PASSWORDS).get(name)]
    except UnicodeDecodeError as error:
        raise ConesError(f"{PASSWORDS} cannot be read ({type(error).__name__}); move it away") from None
    if lacking:
        raise ConesError(
            f"{PASSWORDS} is there and has no {' and no '.join(lacking)}; move it away, run `cones servers init`, and "
            "put your own lines under what that writes"
        )


def _refuse_shared(path: Path, about: os.stat_result) -> None:
    if about.st_uid != os.geteuid():
        raise ConesError(f"{path} belongs to another user (id {about.st_uid}); move it away")
    if about.st_mode & 0o077:
        raise ConesError(
            f"others can read or write {path} (mode {stat.S_IMODE(about.st_mode):o}, 600 is allowed); remove it and "
            "run `cones servers init` for new passwords"
        )


def _refuse_committed() -> None:
    if shutil.which("git") is None:
        return
    done = subprocess.run(["git", "check-ignore", "--quiet", str(PASSWORDS)], capture_output=True, timeout=60)
    if done.returncode == 1:  # 128 is no repository
        raise ConesError(
            f"git does not ignore {PASSWORDS}, and would publish the passwords; put `/{PASSWORDS}*` into .gitignore, "
            f"and `git rm --cached {PASSWORDS}` if it was committed"
        )
