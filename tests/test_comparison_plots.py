"""lab/comparison_plots.py: each picture says what the numbers say, and no label stands on another."""

import math

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from lab import comparison_plots as plots
from lab.costs import COLUMNS


def interval(difference, half_width, method="t"):
    return {
        "difference": difference, "half_width": half_width, "low": difference - half_width, "seeds": [3, 3],
        "high": difference + half_width, "told_apart": abs(difference) > half_width, "method": method,
    }  # fmt: skip


@pytest.fixture
def result():
    """best < {middle, other, last}, where middle and last are told apart and `other` from neither."""
    values = {"best": 0.80, "middle": 0.88, "other": 0.90, "last": 0.92}
    groups, ranks = ("a", "b", "bc", "c"), ([1, 1], [2, 3], [2, 4], [3, 4])
    models = {
        name: {
            "runs": [name, f"{name}-seed2"], "bits_per_byte": bits, "each_run": [bits - 0.01, bits + 0.01],
            "rank": rank, "group": group, "marks": ["other tokenizer (x)"] if name == "best" else [],
        }
        for (name, bits), group, rank in zip(values.items(), groups, ranks)
    }  # fmt: skip
    widths = {("middle", "other"): 0.03, ("other", "last"): 0.03}
    names = list(values)
    pairs = [
        {"a": a, "b": b} | interval(values[a] - values[b], widths.get((a, b), 0.01))
        for i, a in enumerate(names) for b in names[i + 1 :]
    ]  # fmt: skip
    return {"text": "stories", "documents": 9, "bytes": 99, "level": 0.95, "models": models, "pairs": pairs}


def texts(figure):
    """All texts of a drawn figure that can be seen, with their places."""
    FigureCanvasAgg(figure).draw()
    ticks = [tick for ax in figure.axes for axis in (ax.xaxis, ax.yaxis) for tick in _outside(axis)]
    unseen = {label for tick in ticks for label in (tick.label1, tick.label2)}
    hidden = {t for ax in figure.axes if not ax.get_visible() for t in ax.findobj(Text)}
    found = [t for t in figure.findobj(Text) if t not in unseen | hidden and t.get_visible() and t.get_text().strip()]
    return [(t.get_text(), t.get_window_extent()) for t in found]


def _outside(axis):
    low, high = sorted(axis.get_view_interval())
    return [tick for tick in axis.get_major_ticks() if not low - 1e-9 <= tick.get_loc() <= high + 1e-9]


def assert_nothing_overlaps(figure):
    seen = texts(figure)
    width, height = figure.canvas.get_width_height()
    for i, (text, box) in enumerate(seen):
        assert -2 <= box.x0 <= box.x1 <= width + 2, f"{text!r} leaves the picture"
        assert -2 <= box.y0 <= box.y1 <= height + 2, f"{text!r} leaves the picture"
        for other, place in seen[i + 1 :]:
            apart_x = min(box.x1, place.x1) - max(box.x0, place.x0) < 1
            assert apart_x or min(box.y1, place.y1) - max(box.y0, place.y0) < 1, f"{text!r} on {other!r}"


def test_ranking(result):
    figure = plots.plot_ranking(result)
    assert_nothing_overlaps(figure)
    shown = [text for text, _ in texts(figure)]
    assert {"1", "2–3", "2–4", "3–4", "not told apart", "best *", "+0.0800 ± 0.0100"} <= set(shown)
    assert figure.get_suptitle().startswith("best is ahead of the others")
    side = figure.axes[1]
    bars = [line for line in side.lines if line.get_linewidth() == 5]
    heights = sorted((line.get_xdata()[0], sum(line.get_ydata()) / 2) for line in bars)
    assert [round(row) for _, row in heights] == [
        1,
        2,
        2,
        3,
    ]  # group b beside middle and other, c beside other and last


def test_an_interval_without_seeds_is_marked(result):
    assert plots.ALONE not in plots.plot_ranking(result).get_suptitle()
    result["pairs"][0]["method"] = "documents"
    figure = plots.plot_ranking(result)
    assert f"{plots.ALONE} one run of each" in figure.get_suptitle()
    assert "+0.0800 ± 0.0100 °" in [text for text, _ in texts(figure)]
    assert_nothing_overlaps(figure)


def test_headline(result):
    models = result["models"]
    models["best"]["rank"], models["middle"]["rank"] = [1, 2], [1, 3]
    assert plots.plot_ranking(result).get_suptitle().startswith("best or middle: noise leaves open which is ahead")
    models["best"]["rank"], models["middle"]["rank"] = [1, 2], [2, 3]  # not told apart, and one in between is
    assert plots.plot_ranking(result).get_suptitle().startswith("best is ahead, but not of each of the others")


def test_many_groups_stay_in_the_picture(result):
    letters = "abcdefgh"
    model = result["models"]["best"]
    result["models"] = {f"m{i}": model | {"group": letters[max(0, i - 1) : i + 1]} for i in range(9)}
    result["pairs"] = []
    side = plots.plot_ranking(result).axes[1]
    bars = [line.get_xdata()[0] for line in side.lines]
    assert len(set(bars)) == 8
    assert 0.77 < min(bars) < max(bars) < 1


def test_differences(result):
    figure = plots.plot_differences(result, "middle")
    assert_nothing_overlaps(figure)
    shown = [text for text, _ in texts(figure)]
    assert "+0.0200 ± 0.0300" in shown
    dots = {line.get_ydata()[0]: line for line in figure.axes[0].lines if line.get_marker() == "o"}
    assert dots[0].get_color() == plots.GOOD  # best
    assert dots[1].get_markerfacecolor() == "white"  # other: may be noise
    assert dots[2].get_color() == plots.BAD  # last
    with pytest.raises(ValueError, match="reference='x'"):
        plots.plot_differences(result, "x")
    with pytest.raises(ValueError, match="best was compared with no other"):
        plots.plot_differences(result | {"models": {"best": result["models"]["best"]}, "pairs": []})


def test_breakdown():
    rows = {
        name: [{"label": f"{name} {i}", "share": 0.25, "words": 5} | interval(0.02 * i - 0.03, 0.02) for i in range(4)]
        for name in plots.HEADINGS
    }
    rows["frequency"][0] |= interval(2.0, 9.0) | {"share": 0.001}
    figure = plots.plot_breakdown({"a": "one", "b": "two", "level": 0.95, "whole": interval(-0.01, 0.003), "by": rows})
    assert_nothing_overlaps(figure)
    assert figure.axes[0].get_xlim()[1] < 1  # the one wild interval does not squeeze the others
    assert "+2.0000 ± 9.0000" in [text for text, _ in texts(figure)]
    assert [line.get_marker() for ax in figure.axes for line in ax.lines].count(">") == 1  # its dot lies further out
    found = {"a": "one", "b": "two", "level": 0.95, "whole": interval(-0.01, 0.003), "by": rows}
    del rows["frequency"]  # the training text was not at hand
    rows["names"][0] |= interval(0.01, math.inf)  # such words stand in one document only
    figure = plots.plot_breakdown(found)
    assert_nothing_overlaps(figure)
    assert len(figure.axes) == 4
    assert figure.axes[0].get_xlim()[1] < 1
    assert "+0.0100 ± inf" in [text for text, _ in texts(figure)]
    with pytest.raises(ValueError, match=r"'frequency'.*: words were not sorted that way"):
        plots.plot_breakdown(found, ["frequency"])


def test_story():
    pieces = ["Tom", " saw", " a", " big", " cat", ".", "\nHe", " ran", " far" + "r" * 200, "."]
    found = {"a": "one", "b": "two", "pieces": pieces, "bits_a": [1.0] * 10, "bits_b": [1.0, 4.0, 1.0] + [0.5] * 7}
    figure = plots.plot_story(found)
    assert_nothing_overlaps(figure)
    words = [t.get_text() for t in figure.axes[0].texts]
    assert "".join(words).replace(" ", "") == "".join(pieces).replace("\n", "").replace(" ", "")
    colours = [patch.get_facecolor() for patch in figure.axes[0].patches]
    assert colours[0] == colours[2]
    assert colours[1][2] > colours[1][0]  # A better by 3 bits: purple
    assert colours[3][0] > colours[3][2]  # B better by half a bit: orange
    found["bits_b"][1] = 1.0  # 6.5 bits in all, and 10 under the other
    assert plots.plot_story(found).get_suptitle().endswith("two saves 3.5 bits of 10 in all")
    found["bits_b"][1] = 10.5
    assert plots.plot_story(found).get_suptitle().endswith("one saves 6.0 bits of 16 in all")


def test_lines_of_a_story_fit():
    lines = plots.wrap_story([" word"] * 100 + ["\nnew", " x" * 150])
    assert all(column + len(text) <= plots.STORY_COLUMNS for line in lines for column, text, _ in line)
    assert lines[-3][0][:2] != (0, " word")
    assert sum(len(line) for line in lines) >= 102


@pytest.fixture
def calibrated():
    def one(top, baseline, tokenizer):
        bins = [{"low": i / 5, "high": (i + 1) / 5, "share": 0.2, "confidence": i / 5 + 0.1, "accuracy": i / 5 + 0.08,
                 "half_width": 0.02} for i in range(5)]  # fmt: skip
        scores = {f"top{k}": {"value": top + 0.12 * i, "half_width": 0.01} for i, k in enumerate((1, 3, 5, 10))}
        error = {"value": 0.02, "half_width": 0.005}
        return scores | {"bins": bins, "calibration_error": error, "baseline": baseline, "tokenizer": tokenizer}

    return {"one": one(0.5, False, "x"), "two": one(0.48, False, "y"), "bigram (x)": one(0.25, True, "x"),
            "bigram (y)": one(0.27, True, "y")}  # fmt: skip


def test_reliability_and_accuracy(calibrated):
    for figure in (plots.plot_reliability(calibrated), plots.plot_accuracy(calibrated)):
        assert_nothing_overlaps(figure)
    rows = [label.get_text() for label in plots.plot_accuracy(calibrated).axes[0].get_yticklabels()]
    assert rows == ["one", "bigram (x)", "two", "bigram (y)"]  # tokenizers stay together


def share(accuracy, half=0.03, chance=0.5):
    interval = [max(0.0, accuracy - half), min(1.0, accuracy + half)]
    return {
        "accuracy": accuracy, "interval": interval, "count": 1000, "chance": chance,
        "chance_interval": [chance - 0.02, chance + 0.02],
    }  # fmt: skip


def test_minimal_pairs():
    def one(good, bad):
        by = {"field": {"syntax": share(good), "syntax_semantics": share(bad)}}
        return share((good + bad) / 2) | {"name": "pairs.jsonl", "fewest_tokens": 0.52, "by": by}

    figure = plots.plot_pairs({"one": one(0.7, 0.51), "$two$": one(0.9, 1.0)})
    assert_nothing_overlaps(figure)
    assert figure.get_suptitle().endswith("with fewer tokens would get 52.0 of all.")
    shown = [text for text, _ in texts(figure)]
    assert {"syntax (1,000)", "syntax semantics (1,000)", "all (1,000)", "70.0 (67.0 to 73.0)"} <= set(shown)
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [False, False, False, False, True, False]
    assert dots[5].get_xdata()[0] == 100  # of the second model, in the last group
    ungrouped = one(0.7, 0.51) | {"by": {}} | {"accuracy": 0.0, "interval": [1e-17, 0.1]}  # what rounding may leave
    assert [t.get_text() for t in plots.plot_pairs({"one": ungrouped}).axes[0].get_yticklabels()] == ["all (1,000)"]


def test_multiple_choice():
    sets = [("ARC", 0.25, 0.25), ("PIQA", 0.6, 0.5)]
    found = [
        {"format": name, "count": 300, "sum": share(0.9), "per_byte": share(value, chance=chance)}
        for name, value, chance in sets
    ]
    figure = plots.plot_choices({"one": found, "two": found})
    assert_nothing_overlaps(figure)
    shown = [text for text, _ in texts(figure)]
    assert {"ARC (300)", "25.0 (22.0 to 28.0)", "60.0 (57.0 to 63.0)"} <= set(shown)
    low, high = figure.axes[0].collections[0].get_paths()[0].get_extents().intervalx
    assert (low, high) == (pytest.approx(23), pytest.approx(27))  # guessing, in each set its own
    assert "90.0 (87.0 to 93.0)" in [text for text, _ in texts(plots.plot_choices({"one": found}, measure="sum"))]
    with pytest.raises(ValueError, match="no set was scored"):
        plots.plot_choices({"one": [], "two": []})


def test_positions():
    def one(tokenizer, offset, last):
        edges = [(1, 1), (2, 2), (3, 4), (5, 8), (9, last)]
        score = {"value": 2.0 - offset, "half_width": 0.05}
        rows = [{"low": a, "high": b, "tokens": 9, "bits_per_byte": score, "nats_per_token": score} for a, b in edges]
        return {"tokenizer": tokenizer, "rows": rows}

    found = {"one": one("x", 0.1, 16), "one-seed2": one("x", 0.2, 16), "two": one("y", 0.5, 12)}
    figure = plots.plot_positions(found)
    assert_nothing_overlaps(figure)
    shown = [text for text, _ in texts(figure)]
    assert {"one (2 seeds)", "two", "1", "3–4", "9–16", "bits per byte"} <= set(shown)
    assert any("Different tokenizers (x: one; y: two)" in text for text in shown)
    curves = [line for line in figure.axes[0].lines if line.get_marker() == "o" and len(line.get_xdata()) == 5]
    assert [line.get_ydata()[0] for line in curves] == pytest.approx([1.9, 1.8, 1.5])
    assert curves[0].get_color() == curves[1].get_color() != curves[2].get_color()
    alone = plots.plot_positions({"one": one("x", 0.1, 16)}, "nats_per_token")
    assert not any("Different tokenizers" in text for text, _ in texts(alone))
    with pytest.raises(ValueError, match="score='bits'"):
        plots.plot_positions(found, "bits")


def test_pareto(result):
    prices = {"best": 2.0, "middle": 1.0, "other": 1.5, "last": 3.0}
    unknown = dict.fromkeys(("peak_memory_mb", "peak_gpu_memory_mb"), math.nan)
    costs = {name: dict.fromkeys(COLUMNS, price * 1e5) | unknown for name, price in prices.items()}
    figure = plots.plot_pareto(costs, result)
    assert_nothing_overlaps(figure)
    open_dots = [[line.get_markerfacecolor() == "white" for line in ax.lines[:4]] for ax in figure.axes]
    assert open_dots[0] == [False, False, False, True]  # last: best costs less and is better
    assert len([ax for ax in figure.axes if ax.get_visible()]) == 5  # no panel for what nobody recorded
    with pytest.raises(ValueError, match="none of the compared models"):
        plots.plot_pareto({}, result)


def test_attention_and_next_tokens():
    tokens = ["<s>", "\u2581Tom", "\u2581has", "\u2581a", "$x$"]
    maps = [{"layer": i, "block": "x", "weights": torch.eye(5).expand(2, 5, 5)} for i in (0, 2)]
    figure = plots.plot_attention({"tokens": tokens, "heads": [0, 3], "maps": maps})
    assert_nothing_overlaps(figure)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == ["layer 0, head 0", "layer 0, head 3", "layer 2, head 0", "layer 2, head 3"]
    layers = [
        {
            "layer": i,
            "pieces": [["\u2581and", "$", "b"]] * 5,
            "probabilities": torch.rand(5, 3),
            "entropy": torch.ones(5),
        }
        for i in range(3)
    ]  # fmt: skip
    found = {"tokens": tokens, "layers": layers}
    assert_nothing_overlaps(plots.plot_next_tokens(found))
    assert_nothing_overlaps(plots.plot_guesses(found, position=1))
