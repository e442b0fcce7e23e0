"""The recipe of the preset 0.5m, and the arithmetic of the two benchmarks that judge it."""

import math

import pytest
import torch

from benchmarks import ablations, rows, time_to
from config import PRESETS, TRAINING, TrainConfig
from lab.runs import count_parameters
from model import GPT, find_block


def test_the_preset_keeps_to_half_a_million_parameters():
    assert count_parameters(GPT(PRESETS["0.5m"]))["total"] <= time_to.LARGEST == 505_000


def test_training_settings_belong_to_presets_and_are_valid():
    for name, settings in TRAINING.items():
        assert name in PRESETS and TrainConfig(**settings).to_dict().items() >= settings.items()


def test_residual_short_convolution_starts_as_nothing_and_then_adds_the_convolution():
    cfg, x = PRESETS["debug"], torch.randn(2, 7, 32)
    block = find_block("ShortConv")(cfg, width=3, residual=True)
    assert torch.equal(block(x), x)
    torch.nn.init.normal_(block.conv.weight)
    plain = find_block("ShortConv")(cfg, width=3)
    plain.load_state_dict(block.state_dict())
    assert torch.allclose(block(x), x + plain(x)) and not torch.allclose(block(x), x)


@pytest.mark.parametrize("name", ablations.SETTINGS)
def test_each_setting_builds_and_but_for_the_base_changes_something(name):
    setting, base = ablations.SETTINGS[name], ablations.SETTINGS["base"]
    torch.manual_seed(0)
    step, rows = ablations.start(name, seed=1, steps=100)
    assert (step.tcfg.max_iters, step.tcfg.seed, step.tcfg.num_threads, rows) == (100, 1, 1, step.tcfg.batch_size)
    same = (setting.model, setting.train, setting.change, setting.average, setting.preset) == (
        base.model, base.train, base.change, base.average, base.preset
    )  # fmt: skip
    assert same == (name == "base")


def test_random_outputs_leaves_no_block_at_zero():
    model = ablations.start("random outputs", seed=1, steps=100)[0].model
    last = [getattr(block, block.last).weight for block in model.modules() if hasattr(block, "last")]
    assert last and all(weight.std() > 0.03 for weight in last)


def test_mean_of_weights():
    model, mean = torch.nn.Linear(1, 1, bias=False), []
    for count, value in enumerate((1.0, 2.0, 6.0), start=1):
        model.weight.data.fill_(value)
        ablations.add_to_mean(mean, model, count)
    assert mean[0].item() == pytest.approx(3.0)


def test_interval_by_students_t_and_what_is_said_of_it():
    mean, half = ablations.interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.303 / math.sqrt(3))
    assert ablations.interval([1.0]) == (1.0, math.inf)
    assert ablations.verdict([-0.01, -0.012, -0.011]) == "better"
    assert ablations.verdict([0.01, 0.012, 0.011]) == "worse"
    assert ablations.verdict([0.01, -0.012, 0.011]) == ablations.verdict([0.5]) == "no difference beyond noise"


def test_the_table_pairs_runs_by_seed():
    common = {"cpu_seconds": "60", "steps": "9", "tokens": "1000000", "parameters": "5"}
    bits = {("base", "1"): 1.0, ("base", "2"): 1.1, ("wsd", "1"): 1.02, ("wsd", "2"): 1.12, ("wsd", "3"): 9.0}
    rows = [common | {"setting": s, "seed": seed, "bits_per_byte": str(b)} for (s, seed), b in bits.items()]
    lines = ablations.table(rows).splitlines()
    assert "base" in lines[2] and "+0.0200 ± 0.0000" in lines[3] and "worse" in lines[3]  # seed 3 has no pair
    with pytest.raises(ValueError, match="no run of the base"):
        ablations.table(rows[2:])


def test_results_are_kept_and_the_newest_commits_are_shown(tmp_path):
    path = tmp_path / "time_to.csv"
    assert rows.read(path) == []
    for commit, seed, bits in (("old", 1, 0.7), ("new", 1, 0.89), ("new", 2, 0.91), ("new", 3, 0.90)):
        rows.append(path, {
            "date": "2026-01-01", "commit": commit, "bar": 0.9, "seed": seed, "seconds": 300 + seed,
            "scoring_seconds": 3.0, "preset": "0.5m", "parameters": 501856, "steps": 3500, "tokens": 7168000,
            "bits_per_byte": bits, "threads": 2, "machine": "a machine",
        })  # fmt: skip
    text = time_to.table(rows.read(path))
    assert "2 of 3 seeds" in text and "301 to 303" in text and "0.7000" not in text
    assert text.splitlines()[2].split("|")[-2].strip() == "new"
