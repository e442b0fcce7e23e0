"""lab/race.py: equal seconds, the same batches, an honest verdict."""

import pytest

from config import PRESETS, TrainConfig
from lab.race import Entrant, Race, race

TINY = PRESETS["debug"].replace(dim=16, num_layers=1, num_q_heads=2, num_kv_heads=1, max_seq_len=32)


@pytest.fixture
def settings(tmp_path):
    text = tmp_path / "text.txt"
    stories = (f"The cat number {i} sat on the mat and looked at the moon.\n<|endoftext|>\n" for i in range(400))
    text.write_text("".join(stories))
    return TrainConfig(dataset=str(text), batch_size=4, device="cpu", precision="fp32", num_threads=1)


def test_a_race_gives_equal_seconds_and_a_verdict(settings, capsys):
    found = race(
        {"parallel": "Norm->[Attn|MLP]->+", "base": "Norm->Attn->+->Norm->MLP->+"},
        seconds=1.0, cfg=TINY, tcfg=settings, documents=4,
    )  # fmt: skip
    a, b = found.entrants
    assert 1.0 <= a.seconds < 1.5 and 1.0 <= b.seconds < 1.5 and a.steps > 5 and b.steps > 5
    assert a.curve[-1][2] < a.curve[0][2]  # it learned
    assert "One seed proves nothing" in str(found) and "ahead of" in str(found)
    table = found.df()
    assert set(table.index) == {"parallel", "base"} and table["parameters"].min() > 0
    assert len(capsys.readouterr().out.splitlines()) == 12
    assert len(found.figure().axes[0].lines) == 2


def test_learning_rates_follow_the_seconds(settings):
    """At the end of its time each entrant is annealed, however many steps it took."""
    found = race({"base": ""}, seconds=0.5, cfg=TINY, tcfg=settings, documents=2)
    assert found.entrants[0].step.lr < 0.15 * settings.lr_max


def fake(name, seed, bits):
    return Entrant(name, seed, TINY, None, 1.0, 1, [(1.0, 1, bits)])


def test_verdicts_of_several_seeds():
    clear = Race(
        [fake("a", s, 1.00 + s / 100) for s in range(3)] + [fake("b", s, 1.10 + s / 100) for s in range(3)], 1, "x"
    )
    assert "a is ahead of b by 0.1000" in clear.verdict() and "3 seeds" in clear.verdict()
    noisy = Race(
        [fake("a", s, v) for s, v in enumerate((1, 1.2, 1.1))] + [fake("b", s, 1.12) for s in range(3)], 1, "x"
    )
    assert "no difference beyond noise" in noisy.verdict()


def test_what_cannot_be_compared_is_refused(settings):
    with pytest.raises(ValueError, match="max_seq_len differs"):
        race({"a": TINY, "b": TINY.replace(max_seq_len=16)}, seconds=1, cfg=TINY, tcfg=settings)
    with pytest.raises(ValueError, match="did you mean 'Attn'"):
        race({"a": "Norm->Atn->+"}, seconds=1, cfg=TINY, tcfg=settings)
    with pytest.raises(ValueError, match="seconds=0"):
        race({"a": TINY}, seconds=0, cfg=TINY, tcfg=settings)
