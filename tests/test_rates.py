"""`lr: auto`: rates side by side on validation, the worse of them left, and the row is that of the rate that won."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from visuals import Stopped, dies_in_step

from cones.backbones.clip.clip import Clip
from cones.common.errors import ParamsError, SearchError
from cones.config.params import parse_method
from cones.features.encoded import Encoded
from cones.search import rates
from cones.search.checkpoint import Progress
from cones.search.epochs import Epochs
from cones.search.outcome import FoundRow
from cones.search.rates import Race, choose_rate
from cones.tasks.ranking import rank

AUTO = {"lr": "auto", "batch_size": 8, "epochs": 20, "checkpoint_seconds": 0}
CONES = {"name": "cones", **AUTO}
Search = Callable[..., FoundRow]


@pytest.fixture
def race_on(encoded: Encoded, accelerator) -> Callable[..., Race]:
    """Rates of a row of some settings, before the first step."""

    def made(given: dict) -> Race:
        settings, backbone = parse_method(given), encoded.backbone()
        method = settings.build(backbone, _start(encoded, backbone))
        names = encoded.about["names"]
        work = Epochs(method, backbone, names, encoded.train, encoded.val, settings, 0, accelerator, "classification")
        return Race(work, "classification", lambda line: None)

    return made


def _start(encoded: Encoded, backbone):
    from cones.search.row import _start as start

    return start(encoded, backbone, encoded.about["names"])


@pytest.mark.parametrize(
    "settings",
    [
        CONES,
        {"name": "taskres", **AUTO, "accumulate": 2},
        {"name": "tip_adapter_f", **AUTO},
        {"name": "coop", **AUTO, "n_ctx": 2, "epochs": 3},
        {"name": "vpt_shallow", **AUTO, "n_tokens": 2, "epochs": 3},
        {"name": "cocoop", **AUTO, "epochs": 2, "batch_size": 16},
    ],
    ids=lambda of: of["name"],
)
def test_the_row_is_that_of_the_rate_that_won(search_few: Search, settings: dict) -> None:
    auto = search_few(settings)
    lr = auto.rates[0]["lr"]
    fixed = search_few(settings | {"lr": lr})
    assert auto.concept.card.method == fixed.concept.card.method | {"lr": "auto", "chosen_lr": lr}
    assert auto.concept.card.val == fixed.concept.card.val
    assert auto.result.curves == fixed.result.curves
    assert auto.metrics == fixed.metrics
    for name, tensor in auto.concept.tensors.items():
        assert torch.equal(tensor, fixed.concept.tensors[name]), name
    assert fixed.rates == []
    assert len(auto.rates) == 7
    default = type(parse_method(settings)).model_fields["lr"].default
    tried = sorted(line["lr"] for line in auto.rates)
    assert tried == pytest.approx([default * 10 ** (k / 2) for k in range(-3, 4)], rel=5e-3)


@pytest.mark.parametrize(("patience", "ends"), [(None, [11, 6, 4]), (20, [11, 6, 4]), (5, [6, 4, 3])])
def test_halves_end_and_the_best_comes_first(search_few: Search, patience: int | None, ends: list[int]) -> None:
    lines, (last, second, first) = search_few(CONES | {"epochs": 40, "patience": patience}).rates, ends
    assert [line["epochs"] for line in lines[:2]] == [last, last]
    assert sorted((line["epochs"] for line in lines), reverse=True) == [last, last, second, second, *3 * [first]]
    finalists = [rank("classification", line) for line in lines[:2]]
    assert finalists == sorted(finalists, reverse=True)


def test_all_rates_at_once_are_each_of_them_alone(race_on: Callable[..., Race]) -> None:
    together, alone = race_on(CONES), race_on(CONES)
    assert together.batched
    alone.batched = False
    for race in (together, alone):
        race.begin(Progress())
        list(race.steps(0))
    for ours, theirs in zip(together.module.parameters(), alone.module.parameters()):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)
    moved = [(of[0] - next(together.work.method.parameters())).abs().mean().item() for of in together.module]
    assert moved == sorted(moved)
    assert moved[0] > 0


def test_the_text_encoder_never_runs_for_embeddings(search_few: Search, monkeypatch) -> None:
    monkeypatch.setattr(Clip, "embed_text", lambda *given: pytest.fail("the text encoder ran"))
    assert search_few(CONES).cost["text_encoder_calls"] == 0


@pytest.mark.parametrize(("settings", "step"), [(CONES, 11), (CONES, 17), (CONES | {"name": "vpt_shallow"}, 30)])
def test_a_killed_one_goes_on_to_the_same_bits(
    search_few: Search, tmp_path: Path, monkeypatch, settings: dict, step: int
) -> None:
    whole, checkpoint = search_few(settings | {"epochs": 18}), tmp_path / "state.safetensors"
    with monkeypatch.context() as patched:
        dies_in_step(step, patched)
        with pytest.raises(Stopped):
            search_few(settings | {"epochs": 18}, checkpoint=checkpoint)
    assert (tmp_path / rates.RACE).exists()
    told: list[str] = []
    resumed = search_few(settings | {"epochs": 18}, checkpoint=checkpoint, note=told.append)
    assert len(told) == {11: 3, 17: 1, 30: 3}[step]
    assert resumed.rates == whole.rates
    assert resumed.result.curves == whole.result.curves


def test_a_rate_that_diverges_ends_and_the_others_go_on(search_few: Search, monkeypatch) -> None:
    monkeypatch.setattr(rates, "STEPS", (-1, 0, 79))
    lines = search_few(CONES | {"weight_decay": 1e3}).rates
    assert lines[-1] == {"lr": 9.49e36, "epochs": 0}
    assert len(lines[0]) == 4


def test_where_all_diverge_it_says_what_was_tried(search_few: Search, monkeypatch) -> None:
    monkeypatch.setattr(rates, "STEPS", (78, 79))
    with pytest.raises(SearchError, match=r"not finite at any of the learning rates 3e\+36, 9.49e\+36; set a lower"):
        search_few(CONES | {"weight_decay": 1e3})


def test_it_says_what_it_searches_at(race_on: Callable[..., Race]) -> None:
    told: list[str] = []
    work = race_on(CONES | {"epochs": 16}).work
    choose_rate(work, "classification", note=told.append)
    assert told[0] == "lr auto, epochs 1 to 2: 9.49e-05, 0.0003, 0.000949, 0.003, 0.00949, 0.03, 0.0949"
    assert [line.split(":")[0] for line in told[1:]] == ["lr auto, epochs 3 to 3", "lr auto, epochs 4 to 5"]
    assert [line.count(",") for line in told] == [7, 4, 2]


@pytest.mark.parametrize("lr", ["fast", 0, -1.0, True, [0.1]])
def test_what_is_no_rate_is_refused(lr) -> None:
    with pytest.raises(ParamsError, match="must be auto, or a number above 0"):
        parse_method({"name": "cones", "lr": lr})
