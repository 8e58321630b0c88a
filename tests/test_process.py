"""What every process of the project does: share the cores, and end with one line when it is stopped."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest

from cones.common.process import compute_threads, plain_errors

Start = Callable[[str], subprocess.Popen]


@pytest.fixture
def start(tmp_path):
    """Start a Python program in a folder of its own and wait for its first word."""
    running = []

    def begin(program: str, **environment: str) -> subprocess.Popen:
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**variables, **environment},
        )  # fmt: skip
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()


STAGE = """
    import sys, time
    from cones.common.process import run_stage

    def main():
        {begin}
        print("begun", flush=True)
        time.sleep(60)

    run_stage(main)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_stage_ends_with_one_line(start: Start, number: int, code: int) -> None:
    process = start(STAGE.format(begin="pass"))
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    assert process.communicate(timeout=20)[0] == "stopped; run it again to go on\n"
    assert process.returncode == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_holds_ctrl_c_back_says_where_it_goes_on(start: Start, number: int, code: int) -> None:
    """As a search does, to end its step and keep its state; SIGTERM comes to it in the same way."""
    program = """
        import signal, time
        from cones.common.process import run_stage

        def main():
            asked = []
            signal.signal(signal.SIGINT, lambda *_: asked.append(1))
            print("begun", flush=True)
            while not asked:
                time.sleep(0.01)
            raise KeyboardInterrupt("stopped; goes on at step 7")

        run_stage(main)
    """
    process = start(program)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    assert process.communicate(timeout=20)[0] == "stopped; goes on at step 7\n"
    assert process.returncode == code


def test_a_stop_that_an_import_turns_into_another_error_is_a_stop(start: Start) -> None:
    """As torch does, which takes a numpy whose import is cut short for missing and fails later."""
    begin = """
        try:
            print("begun", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            raise RecursionError from None"""
    process = start(STAGE.format(begin=begin.strip()))
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[0] == "stopped; run it again to go on\n"
    assert process.returncode == 130


def test_an_error_of_its_own_stays_one(start: Start) -> None:
    """A stop does not hide why what it was asked of could not be kept."""
    begin = """
        import os
        try:
            print("begun", flush=True)
            time.sleep(60)
        finally:
            os.write(os.open("/dev/full", os.O_WRONLY), b"x")"""
    process = start(STAGE.format(begin=begin.strip()))
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[0].startswith("error: the disk is full; free some space")
    assert process.returncode == 1
    failed = start("from cones.common.process import run_stage; run_stage(lambda: 1 / 0)")
    assert "ZeroDivisionError" in failed.communicate(timeout=20)[0]


@pytest.mark.parametrize(("reader", "told"), [("| true", ""), ("> /dev/full", "error: the disk is full; free some")])
def test_an_output_that_is_closed_ends_a_stage_without_a_word_and_a_full_one_with_one(reader: str, told: str) -> None:
    program = "from cones.common.process import run_stage; run_stage(lambda: print('x' * 10**6))"
    command = f'set -o pipefail; {sys.executable} -c "{program}" {reader}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(told)
    assert done.stderr.count("\n") == bool(told)


def test_what_a_shell_runs_in_its_background_ends_at_sigterm(start: Start) -> None:
    """There Ctrl-C is ignored."""
    process = start(STAGE.format(begin="import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"))
    assert process.stdout.readline() == "begun\n"
    process.terminate()
    assert process.communicate(timeout=20)[0] == "stopped; run it again to go on\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_ends_with_one_line(start: Start, number: int, code: int) -> None:
    program = """
        import sys, time
        import cones.config.params
        from cones.cli.main import main

        def slowly():
            print("begun", flush=True)
            time.sleep(60)

        cones.config.params.load_params = slowly
        sys.argv = ["cones", "check"]
        main()
    """
    process = start(program)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    assert process.communicate(timeout=20)[0] == "stopped; run it again to go on\n"
    assert process.returncode == code


WHAT_OPENMP_READ = """
    import ctypes
    from importlib.util import find_spec
    from pathlib import Path
    from cones.common.process import share_the_cores

    share_the_cores()
    (folder,) = find_spec("torch").submodule_search_locations
    ctypes.CDLL(str(next(Path(folder, "lib").glob("libgomp*"))))
"""


@pytest.mark.parametrize(("given", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "active"}, "ACTIVE")])
def test_threads_sleep_while_they_wait(start: Start, given: dict[str, str], policy: str) -> None:
    """As torch's own OpenMP says of itself when it is loaded; what a person sets stands."""
    told = start(WHAT_OPENMP_READ, OMP_DISPLAY_ENV="true", **given).communicate(timeout=20)[0]
    assert f"OMP_WAIT_POLICY = '{policy}'" in told
    assert f"OMP_NUM_THREADS = '{compute_threads()}'" in told


def test_a_stage_shares_the_cores_before_it_imports_anything(start: Start) -> None:
    shown = "import os; print(os.environ['OMP_WAIT_POLICY'], os.environ['OMP_NUM_THREADS'], 'torch' in sys.modules)"
    process = start(STAGE.format(begin=shown))
    assert process.stdout.readline() == f"passive {compute_threads()} False\n"


def test_sigterm_is_what_it_was_after_the_block() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit), plain_errors():
        raise KeyboardInterrupt
    assert signal.getsignal(signal.SIGTERM) is before
