"""What is installed, built and trusted: pins with hashes, the image, and what SECURITY.md names."""

import hashlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import typer
from packaging.requirements import Requirement

from cones.cli.main import app

ROOT = Path(__file__).parent.parent
LOCKS = ("requirements-build.txt", "requirements.txt", "requirements-cpu.txt", "requirements-cuda.txt")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PIN = re.compile(r"([a-z0-9-]+)==([^\s;]+)( ; [^#@]+?)?((?: +--hash=sha256:[0-9a-f]{64})+)")
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SECURITY = (ROOT / "SECURITY.md").read_text()


def lines(file: str) -> list[str]:
    """A requirements file's lines, with those that go on joined, without comments."""
    text = (ROOT / file).read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def pins(file: str) -> dict[str, str]:
    return {found[1]: found[2] for line in lines(file) if (found := PIN.fullmatch(line))}


def direct() -> dict[str, str]:
    """What requirements.in asks for by version, by its normalised name."""
    found = re.findall(r"^([\w.-]+)==([^\s#]+)", (ROOT / "requirements.in").read_text(), re.M)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


@pytest.mark.parametrize("file", LOCKS)
def test_a_lock_has_versions_with_hashes_and_nothing_else(file: str) -> None:
    """No address, no option, no package without a hash."""
    assert lines(file)
    assert [line[:80] for line in lines(file) if not PIN.fullmatch(line)] == []


def test_the_locks_are_of_the_direct_requirements() -> None:
    plain, cpu, cuda = (pins(f"requirements{kind}.txt") for kind in ("", "-cpu", "-cuda"))
    assert not set(plain) & (set(cpu) | set(cuda))  # no package in two versions
    assert {name: (plain | cuda).get(name) for name in direct()} == direct()
    assert cpu == {"torch": f"{direct()['torch']}+cpu"}


def test_builds_take_the_locked_tools() -> None:
    build, plain = pins("requirements-build.txt"), pins("requirements.txt")
    assert {"setuptools", *build} == {name for name in build if plain.get(name) == build[name]}
    needed = [Requirement(text) for text in PROJECT["build-system"]["requires"]]
    assert needed
    assert all(n.specifier.contains(build[n.name]) for n in needed)


def test_the_lock_has_all_that_the_package_asks_for() -> None:
    """But for what a bucket needs, which who has one installs."""
    extras = [of for name, of in PROJECT["project"]["optional-dependencies"].items() if name != "s3"]
    needed = [Requirement(text) for some in (PROJECT["project"]["dependencies"], *extras) for text in some]
    locked = pins("requirements.txt") | pins("requirements-cuda.txt")
    names = [(re.sub(r"[-_.]+", "-", n.name).lower(), n.specifier) for n in needed]
    assert [name for name, bounds in names if not bounds.contains(locked[name])] == []


def installs(shell: str) -> list[list[str]]:
    """The commands of pip that install, in words."""
    commands = re.split(r"\n|;|&&", shell.replace("\\\n", " "))
    return [c.split() for c in commands if "pip install" in c and "--dry-run" not in c]


def test_make_and_the_image_install_by_hash_only() -> None:
    """Requirements by their hashes, the project without its dependencies, and no build that fetches anything."""
    done = subprocess.run(["make", "-n", "-B", ".venv/ready"], cwd=ROOT, capture_output=True, text=True, check=True)
    made, image = installs(done.stdout), installs(DOCKERFILE)
    assert len(made) == len(image) == 3
    for words in (*made, *image):
        assert "--no-deps" in words
        assert ("-r" in words and "--require-hashes" in words) != (words[-1] == ".")
        assert "--no-build-isolation" in words or words[-1] == "requirements-build.txt"


@pytest.mark.parametrize(
    ("pinned", "said"),
    [
        ("--hash=sha256:{right}", ""),
        ("", "Hashes are required in --require-hashes mode"),
        ("--hash=sha256:{wrong}", "THESE PACKAGES DO NOT MATCH THE HASHES"),
    ],
    ids=["right", "none", "tampered"],
)
def test_pip_refuses_a_file_of_another_hash(tmp_path: Path, pinned: str, said: str) -> None:
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        archive.writestr("thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("thing-1.0.dist-info/RECORD", "")
    pin = pinned.format(right=hashlib.sha256(wheel.read_bytes()).hexdigest(), wrong="0" * 64)
    (tmp_path / "lock.txt").write_text(f"thing==1.0 {pin}\n")
    flags = ["--isolated", "--disable-pip-version-check", "--no-index", "--find-links", str(tmp_path), "--dry-run"]
    ours = ["--no-deps", "--no-build-isolation", "--require-hashes", "-r", str(tmp_path / "lock.txt")]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    command = [sys.executable, "-m", "pip", "install", *flags, *ours]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=env)
    assert (done.returncode == 0) == (said == "")
    assert said in done.stderr


def test_the_image_is_pinned_runs_without_root_and_opens_nothing_to_all() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)
    assert bases
    assert all(re.fullmatch(r"python:3\.11[\w.-]*@sha256:[0-9a-f]{64}", base) for base in bases)
    assert "chmod" not in DOCKERFILE
    assert re.findall(r"^USER (\S+)", DOCKERFILE, re.M)[-1] not in ("root", "0")


def named(pattern: str) -> list[str]:
    return sorted(set(re.findall(rf"`{pattern}`", SECURITY)))


@pytest.mark.parametrize("file", named(r"(\.?[\w/-]+\.(?:md|txt|in|toml|yaml|yml|lock)|Dockerfile|\.dvc/config)"))
def test_a_file_that_security_names_is_there(file: str) -> None:
    assert (ROOT / file).is_file()


@pytest.mark.parametrize("command", named(r"cones ([a-z ]+)"))
def test_a_command_that_security_names_is_there(command: str) -> None:
    here: Any = typer.main.get_command(app)
    for word in command.split():
        here = here.commands[word]
    assert not hasattr(here, "commands")  # a whole command, not a group


@pytest.mark.parametrize("target", named(r"make ([\w./]+)"))
def test_a_target_that_security_names_is_there(target: str) -> None:
    assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.M)
