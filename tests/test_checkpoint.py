"""Checkpoints: written by the clock and at Ctrl-C, within an epoch too; damaged ones are put aside."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from cones.config.params import parse_method
from cones.features.encoded import Encoded
from cones.methods.cones.module import Cones
from cones.methods.context import ContextTokens
from cones.search.checkpoint import KEY, Keeper, Progress, resume, save_checkpoint
from cones.search.epochs import search
from cones.search.outcome import SearchResult

RARELY = {"epochs": 6, "batch_size": 8, "validate_every": 6, "patience": None, "checkpoint_seconds": 0}
STEPS_AN_EPOCH = 4


class Stopped(Exception):
    pass


@pytest.fixture(params=["cones", "coop"])
def run(request: pytest.FixtureRequest, encoded: Encoded, accelerator) -> Callable[..., tuple[nn.Module, SearchResult]]:
    """Search with a method that is validated at its start and its end only."""

    def run(checkpoint: Path | None = None, backbone=None) -> tuple[nn.Module, SearchResult]:
        torch.manual_seed(0)
        method = Cones(encoded.text) if request.param == "cones" else ContextTokens(torch.randn(2, 32))
        settings, names = parse_method({"name": request.param, **RARELY}), encoded.about["names"]
        backbone = backbone or encoded.backbone()
        return method, search(method, backbone, names, encoded.train, encoded.val, settings, 0, accelerator, checkpoint)

    return run


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT as in a terminal: a program in a shell's background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("steps", [2, STEPS_AN_EPOCH + 3, 2 * STEPS_AN_EPOCH])
def test_it_goes_on_within_an_epoch_to_the_same_bits(run, encoded: Encoded, tmp_path: Path, steps: int) -> None:
    whole, undisturbed = run()
    backbone, path = encoded.backbone(), tmp_path / "state.safetensors"
    loss, done = backbone.objective(), 0

    def dies_after(*given):
        nonlocal done
        if done == steps:
            raise Stopped
        done += 1
        return loss(*given)

    backbone.objective = lambda settings=None: dies_after
    with pytest.raises(Stopped):
        run(path, backbone)
    assert path.exists(), "nothing was kept before the first validation"
    done = -1000
    resumed, result = run(path, backbone)
    assert done + 1000 == 6 * STEPS_AN_EPOCH - steps
    assert result.curves == undisturbed.curves
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize(
    ("call", "times", "where", "calls"),
    [("loss", 6, "step 7", 6 * STEPS_AN_EPOCH), ("predict", 2, "its end", 2)],  # it is validated at its start and end
    ids=["in a step", "in the last validation"],
)
def test_ctrl_c_waits_for_what_is_under_way_and_says_where_it_goes_on(
    run, encoded: Encoded, tmp_path: Path, ctrl_c, call: str, times: int, where: str, calls: int
) -> None:
    whole, undisturbed = run()
    backbone, path = encoded.backbone(), tmp_path / "state.safetensors"
    real, done = backbone.objective() if call == "loss" else backbone.predict, 0

    def interrupted(*given):
        nonlocal done
        done += 1
        if done == times:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*given)

    setattr(backbone, *(("objective", lambda settings=None: interrupted) if call == "loss" else (call, interrupted)))
    with pytest.raises(KeyboardInterrupt, match=f"^stopped; goes on at {where}$"):
        run(path, backbone)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed, result = run(path, backbone)
    assert done == calls
    assert result.curves == undisturbed.curves
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_a_second_ctrl_c_ends_at_once(ctrl_c) -> None:
    interrupts = 0

    def interrupt() -> None:
        nonlocal interrupts
        os.kill(os.getpid(), signal.SIGINT)
        interrupts += 1

    with pytest.raises(KeyboardInterrupt), Keeper(lambda: None, 1e9):
        interrupt(), interrupt()
    assert interrupts == 1


def test_it_is_kept_by_the_clock(monkeypatch) -> None:
    now, saved = [0.0], []
    monkeypatch.setattr("cones.search.checkpoint.time.perf_counter", lambda: now[0])
    with Keeper(lambda: saved.append(now[0]), 10) as keep:
        for second in range(25):
            now[0] = float(second)
            keep(f"step {second}")
    assert saved == [10, 20]


def altered(path: Path) -> None:
    with safe_open(path, "pt") as file:
        tensors, header = {n: file.get_tensor(n) for n in file.keys()}, file.metadata()
    tensors["method.weight"] += 1
    save_file(tensors, path, header)


def further(path: Path) -> None:
    with safe_open(path, "pt") as file:
        tensors, header = {n: file.get_tensor(n) for n in file.keys()}, file.metadata()
    save_file(tensors, path, header | {KEY: json.dumps(json.loads(header[KEY]) | {"epoch": 598})})


@pytest.mark.parametrize(
    "damage",
    [
        altered,
        further,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        lambda path: path.write_bytes(b"no safetensors at all"),
    ],
)
def test_a_damaged_checkpoint_is_put_aside_by_name(tmp_path: Path, capsys, damage: Callable[[Path], object]) -> None:
    method, path = nn.Linear(2, 2), tmp_path / "state.safetensors"
    optimiser = torch.optim.AdamW(method.parameters())
    method(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    save_checkpoint(path, Progress(epoch=3, best=dict(method.state_dict())), method, optimiser)
    assert resume(path, method, optimiser).epoch == 3
    before = {n: t.clone() for n, t in method.state_dict().items()}
    damage(path)
    assert resume(path, method, optimiser) == Progress()
    assert all(torch.equal(before[n], t) for n, t in method.state_dict().items())
    told = capsys.readouterr().err
    assert str(path) in told
    assert f"put aside as {tmp_path / 'damaged-state.safetensors'}, and the search begins anew" in told
    assert [p.name for p in tmp_path.iterdir()] == ["damaged-state.safetensors"]
