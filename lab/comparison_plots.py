"""Pictures of what compare_models, breakdown, calibration, costs and attention_maps of lab/ found.

    plot_ranking(compare([...]));  plot_differences(compare([...]));  plot_breakdown(breakdown("a", "b"))
    plot_story(story_difference("a", "b", story));  plot_reliability(calibrate([...]))
    plot_pareto(costs([...]), compare([...]));  plot_attention(attention_maps(model, tok, text))

Each takes the plain dict of its function and returns a matplotlib figure that a notebook shows by itself. A difference
that noise could explain is drawn in grey with an open dot, and where noise leaves an order open, the picture says so.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lab.costs import COLUMNS, unbeaten
from lab.plots import PALETTE, STYLE, family_of, short_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ALONE = "°"  # beside an interval that seeds had no part in
NOISE = "#8C8C8C"  # colour of what noise could explain
GOOD, BAD = PALETTE[0], PALETTE[1]  # A better, B better
HEADINGS = {
    "position": "bytes of the story before the word",
    "quarter": "part of the story",
    "frequency": "times the word stands in the training text",
    "recall": "seen earlier in this story?",
    "names": "names (capitals inside sentences)",
}
STORY_COLUMNS, STORY_POINTS = 92, 9.0  # characters in a line, and their size in points
CHARACTER = 0.602  # width of a DejaVu Sans Mono character in units of its size


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **options):
    """A figure in the style of lab/plots.py and its axes as a grid; pyplot forgets it, so that it is shown once."""
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **options
        )
    plt.close(figure)
    return figure, axes


def _title(figure: Figure, title: str, lines: Sequence[str] = (), width: int = 120) -> None:
    """A title on the left, and below it what a reader must know before comparing."""
    notes = [piece for line in lines for piece in textwrap.wrap(line, width)]
    figure.suptitle("\n".join([title, *notes]), x=0.01, ha="left", fontsize=10, parse_math=False)


# ---------------------------------------------------------------- which is better


def plot_ranking(result: dict) -> Figure:
    """Bits per byte of each model of a comparison: a dot per run, a bar at the mean, the ranks that noise leaves open.

    `behind the first`: the difference from the model in the first row, with its interval. Thick grey bars on one line
    mark models of which no two can be told apart.
    """
    from lab.compare_models import notes

    models = result["models"]
    behind = {pair["b"]: pair for pair in result["pairs"] if pair["a"] == next(iter(models))}
    count = len(models)
    figure, ((ax, side),) = _figure(9.5, 1.9 + 0.42 * count, 1, 2, sharey=True, gridspec_kw={"width_ratios": (4, 3)})
    for row, (name, model) in enumerate(models.items()):
        ax.plot(model["each_run"], [row] * len(model["each_run"]), "o", color=GOOD, alpha=0.6, markeredgewidth=0)
        ax.plot([model["bits_per_byte"]] * 2, [row - 0.3, row + 0.3], color="black", linewidth=1.4)
        best, worst = model["rank"]
        rank = f"{best}" if best == worst else f"{best}–{worst}"
        side.text(0.0, row, f"{model['bits_per_byte']:.4f}", va="center", fontsize=9)
        if name in behind:
            distance = f"+{-behind[name]['difference']:.4f} ± {behind[name]['half_width']:.4f}" + _mark(behind[name])
            side.text(0.19, row, distance, va="center", fontsize=9)
        side.text(0.65, row, rank, va="center", fontsize=9)
    _draw_groups(side, [model["group"] for model in models.values()])
    for place, heading in ((0.0, "mean"), (0.19, "behind the first"), (0.65, "rank"), (0.77, "not told apart")):
        side.text(place, -0.75, heading, va="bottom", fontsize=8.5, color="#444444")
    side.set_xlim(0, 1)
    side.axis("off")
    ax.set_yticks(range(count), [_marked(name, model) for name, model in models.items()], parse_math=False)
    ax.set_ylim(count - 0.5, -0.6)
    ax.set_xlabel("bits per byte (lower is better): a dot per run, a bar at their mean")
    lines = [f"{ALONE} one run of each of the two: noise of documents only"] if any(map(_mark, behind.values())) else []
    _title(figure, _headline(models), notes(result) + lines, width=130)
    return figure


def _mark(pair: dict) -> str:
    return f" {ALONE}" if pair["method"] == "documents" else ""


def _headline(models: dict[str, dict]) -> str:
    """Which model is ahead, or those among which noise leaves that open."""
    first = [name for name, model in models.items() if model["rank"][0] == 1]
    if len(models) == 1:
        return first[0]
    if len(first) == 1 and models[first[0]]["rank"][1] == 1:
        return f"{first[0]} is ahead of the others, beyond noise"
    if len(first) == 1:  # one that it is not told apart from is worse than a third
        return f"{first[0]} is ahead, but not of each of the others beyond noise"
    return f"{' or '.join(first)}: noise leaves open which is ahead"


def _draw_groups(ax: Axes, groups: Sequence[str]) -> None:
    """For each letter that several rows share: a thick bar beside each of them, and a thin line that joins these."""
    shared = [letter for letter in dict.fromkeys("".join(groups)) if sum(letter in group for group in groups) > 1]
    step = min(0.05, 0.21 / max(1, len(shared) - 1))  # all of them within the axes
    for i, letter in enumerate(shared):
        rows = [row for row, group in enumerate(groups) if letter in group]
        place = 0.78 + step * i
        ax.plot([place] * 2, [rows[0], rows[-1]], color=NOISE, linewidth=1)
        for row in rows:
            ax.plot([place] * 2, [row - 0.3, row + 0.3], color=NOISE, linewidth=100 * step, solid_capstyle="butt")


def _beside(ax: Axes, place: float, row: float, text: str, **options) -> None:
    """Text to the right of the axes, at the height of a row; constrained layout makes room for it."""
    options = {"va": "center", "fontsize": 9, "transform": ax.get_yaxis_transform(), "parse_math": False} | options
    ax.text(place, row, text, **options)


def _marked(name: str, model: dict) -> str:
    return name + (" *" if model["marks"] else "")


def plot_differences(result: dict, reference: str | None = None) -> Figure:
    """Each model's bits per byte minus those of one model, with intervals: whatever crosses 0 may be noise.

    reference: a family of the comparison; None takes the best.
    Raises: ValueError if it isn't in the comparison, or nothing else is.
    """
    models = result["models"]
    if len(models) < 2:
        raise ValueError(f"result: {', '.join(models)} was compared with no other model")
    reference = reference or next(iter(models))
    if reference not in models:
        raise ValueError(f"reference={reference!r} was not compared; choose from {', '.join(models)}")
    rows = []
    for pair in result["pairs"]:
        if reference in (pair["a"], pair["b"]):
            other, sign = (pair["b"], -1) if pair["a"] == reference else (pair["a"], 1)
            rows.append((other, pair | {"difference": sign * pair["difference"]}))
    rows.sort(key=lambda row: row[1]["difference"])
    figure, ((ax,),) = _figure(8.5, 1.6 + 0.42 * len(rows))
    _intervals(ax, [row for _, row in rows])
    labels = [f"{_marked(name, models[name])} ({_seeds(row)})" for name, row in rows]
    ax.set_yticks(range(len(rows)), labels, parse_math=False)
    ax.set_xlabel(f"bits per byte minus those of {reference}, {100 * result['level']:g} % interval", parse_math=False)
    _title(figure, f"Compared with {reference}: left of 0 is better; grey may be noise", _kinds(rows))
    return figure


def _seeds(pair: dict) -> str:
    return "documents only" if pair["method"] == "documents" else "seeds and documents"


def _kinds(rows: list) -> list[str]:
    if all(pair["method"] == "documents" for _, pair in rows):
        return ["One run of each: another run of the same architectures could turn this around."]
    return []


def _intervals(ax: Axes, rows: list[dict]) -> None:
    """A dot with its interval for each row, from top to bottom, coloured by what it says; its figures on the right."""
    for row, found in enumerate(rows):
        colour = _colour(found)
        ax.errorbar(
            found["difference"], row, xerr=_bar(found), fmt="o", color=colour, capsize=3, linewidth=1.6,
            markerfacecolor=colour if found["told_apart"] else "white",
        )  # fmt: skip
        _beside(ax, 1.02, row, f"{found['difference']:+.4f} ± {found['half_width']:.4f}", fontsize=8.5)
    ax.axvline(0, color="black", linewidth=1)
    ax.set_ylim(len(rows) - 0.5, -0.5)


def _bar(found: dict) -> float:
    """What can be drawn of an interval: nothing of one without an end, whose figures say ± inf."""
    return found["half_width"] if math.isfinite(found["half_width"]) else 0.0


def _colour(found: dict) -> str:
    return NOISE if not found["told_apart"] else GOOD if found["difference"] < 0 else BAD


# ---------------------------------------------------------------- where the difference comes from


def plot_breakdown(found: dict, sortings: Sequence[str] | None = None) -> Figure:
    """The difference by kinds of words, a panel for each way to sort them; each row says its share of the bytes.

    An interval much wider than the others is cut at the panel's edge, and its figures stand beside it.
    sortings: some of those in `found["by"]`; None: all of them.
    Raises: ValueError for another one.
    """
    names = [name for name in HEADINGS if name in found["by"]] if sortings is None else list(sortings)
    if wrong := [name for name in names if name not in found["by"]]:
        raise ValueError(f"sortings={wrong}: words were not sorted that way; choose from {', '.join(found['by'])}")
    panels = [(name, found["by"][name]) for name in names]
    heights = [0.8 + len(rows) for _, rows in panels]
    figure, axes = _figure(
        9, 1.5 + 0.3 * sum(heights), rows=len(panels), sharex=True, gridspec_kw={"height_ratios": heights}
    )
    for (name, rows), ax in zip(panels, axes[:, 0]):
        _intervals(ax, rows)
        labels = [f"{row['label']}  ({_percent(row['share'])})" for row in rows]
        ax.set_yticks(range(len(rows)), labels, fontsize=8.5, parse_math=False)
        ax.set_title(HEADINGS[name], loc="left", fontsize=9, weight="bold")
    limit = _common_reach([row for _, rows in panels for row in rows])
    axes[-1, 0].set_xlim(-limit, limit)
    for (_, rows), ax in zip(panels, axes[:, 0]):
        _mark_outside(ax, rows, limit)
    a, b = found["a"], found["b"]
    axes[-1, 0].set_xlabel(f"bits per byte, {a} minus {b} ({100 * found['level']:g} % intervals)", parse_math=False)
    whole = found["whole"]
    _title(
        figure,
        f"Where {a} and {b} differ: {whole['difference']:+.4f} ± {whole['half_width']:.4f} in all",
        [
            f"Blue: {a} is better. Orange: {b} is better. Grey, open dot: may be noise.",
            "In brackets: share of the bytes. Where an interval leaves the picture, read its figures on the right.",
        ],
    )
    return figure


def _mark_outside(ax: Axes, rows: list[dict], limit: float) -> None:
    """An arrowhead at the edge for each dot that lies beyond it."""
    for place, row in enumerate(rows):
        if abs(row["difference"]) > limit:
            sign = math.copysign(1, row["difference"])
            ax.plot(sign * limit, place, ">" if sign > 0 else "<", color=_colour(row), clip_on=False)


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def _common_reach(rows: list[dict]) -> float:
    """How far from 0 the axis goes: as far as nine in ten intervals."""
    ends = sorted(abs(row["difference"]) + _bar(row) for row in rows)
    dots = max(abs(row["difference"]) for row in rows if row["share"] > 0.01)
    return 1.1 * max(ends[int(0.85 * (len(ends) - 1))], dots)


def plot_story(found: dict, limit: float | None = None) -> Figure:
    """A story whose words are coloured by bits of A minus bits of B: `story_difference(...)`.

    limit: bits at which the colour is fullest; None takes what 19 in 20 words stay below.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    differences = [a - b for a, b in zip(found["bits_a"], found["bits_b"])]
    limit = limit or max(sorted(map(abs, differences))[int(0.95 * (len(differences) - 1))], 1e-6)
    lines = wrap_story(found["pieces"])
    width = STORY_COLUMNS * CHARACTER * STORY_POINTS / 72 + 0.4
    height = len(lines) * 1.75 * STORY_POINTS / 72
    figure, ((ax,),) = _figure(width, height + 1.4)
    colours, scale = colormaps["PuOr"], Normalize(-limit, limit)
    for row, line in enumerate(lines):
        for column, text, word in line:
            colour = colours(1 - scale(differences[word]))
            ax.add_patch(Rectangle((column, row), len(text), 0.86, facecolor=colour, linewidth=0))
            dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 0.5
            ax.text(
                column, row + 0.43, text, family="DejaVu Sans Mono", fontsize=STORY_POINTS, va="center_baseline",
                color="white" if dark else "black", parse_math=False,
            )  # fmt: skip
    ax.set(xlim=(0, STORY_COLUMNS), ylim=(len(lines), -0.1))
    ax.axis("off")
    bar = figure.colorbar(
        ScalarMappable(scale, colours.reversed()), ax=ax, orientation="horizontal", fraction=0.04, aspect=50, pad=0.02
    )
    bar.set_label(
        f"bits for the word, {found['a']} minus {found['b']}: negative (purple) where {found['a']} predicted it better",
        fontsize=9, parse_math=False,
    )  # fmt: skip
    total = sum(differences)
    better, others = (found["a"], found["bits_b"]) if total < 0 else (found["b"], found["bits_a"])
    _title(figure, f"One story, word by word: {better} saves {abs(total):.1f} bits of {sum(others):.0f} in all")
    return figure


def wrap_story(pieces: Sequence[str]) -> list[list[tuple[int, str, int]]]:
    """Words in lines of at most STORY_COLUMNS characters: of each its column, its text and its number."""
    lines: list[list[tuple[int, str, int]]] = [[]]
    column = 0
    for number, piece in enumerate(pieces):
        text = piece.replace("\t", " ").strip("\n")
        if "\n" in piece[: len(piece) - len(piece.lstrip())] or column + len(text) > STORY_COLUMNS:
            text, column = text.lstrip(), 0
            lines.append([])
        text = text.replace("\n", " ")
        for start in range(0, len(text), STORY_COLUMNS):  # a word longer than a line goes on in the next
            part = text[start : start + STORY_COLUMNS]
            if start:
                lines.append([])
                column = 0
            lines[-1].append((column, part, number))
            column += len(part)
    return [line for line in lines if line]


# ---------------------------------------------------------------- where in the context


def plot_positions(found: dict[str, dict], score: str = "bits_per_byte") -> Figure:
    """The loss by how many tokens the model has seen before: a curve for each run, with intervals over documents.

    found: from `loss_by_position`.  score: "bits_per_byte" or "nats_per_token". Seeds of a model share a colour.
    Raises: ValueError for another score.
    """
    labels = {"bits_per_byte": "bits per byte", "nats_per_token": "loss (nats per token)"}
    if score not in labels:
        raise ValueError(f"score={score!r} is unknown; choose from {', '.join(labels)}")
    families = list(dict.fromkeys(map(family_of, found)))
    colours = _colours(families)
    figure, ((ax,),) = _figure(8.5, 4.6)
    for name, result in found.items():
        rows = result["rows"]
        middles = [math.sqrt(row["low"] * row["high"]) for row in rows]
        ax.errorbar(
            middles, [row[score]["value"] for row in rows], yerr=[row[score]["half_width"] for row in rows], fmt="o-",
            color=colours[family_of(name)], markersize=4, linewidth=1.3, capsize=2, alpha=0.85,
        )  # fmt: skip
    widest = max((result["rows"] for result in found.values()), key=len)
    ax.set_xscale("log", base=2)
    ticks = [_range(row["low"], row["high"]) for row in widest]
    ax.set_xticks([math.sqrt(row["low"] * row["high"]) for row in widest], ticks, fontsize=8.5)
    ax.minorticks_off()
    ax.set_xlabel("tokens of the text that the model has seen before the one it predicts, BOS counted")
    ax.set_ylabel(labels[score])
    counts = {family: sum(family_of(name) == family for name in found) for family in families}
    names = [f"{family} ({count} seeds)" if count > 1 else family for family, count in counts.items()]
    handles = [ax.plot([], [], "o-", color=colours[family], markersize=4)[0] for family in families]
    figure.legend(handles, names, loc="outside lower left", ncols=3, frameon=False, fontsize=8.5)
    _title(figure, "Loss by position in the context (intervals over documents)", _of_tokenizers(found), width=100)
    return figure


def _range(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low}–{high}"


def _of_tokenizers(found: dict[str, dict]) -> list[str]:
    """What must be said where runs have several tokenizers."""
    runs: dict[str, dict[str, None]] = {}
    for name, result in found.items():
        runs.setdefault(result["tokenizer"] or "not recorded", {})[family_of(name)] = None
    if len(runs) < 2:
        return []
    listed = "; ".join(f"{tokenizer}: {', '.join(names)}" for tokenizer, names in runs.items())
    return [f"Different tokenizers ({listed}): as many tokens are not as much text, so compare curves of one only."]


# ---------------------------------------------------------------- how sure a model is


def plot_reliability(results: dict[str, dict], columns: int = 3) -> Figure:
    """Reliability diagrams, a panel per model: how often guesses of each confidence are right.

    On the diagonal, a model knows what it knows; below it, it is too sure of itself. Bars: share of the tokens.
    """
    rows = -(-len(results) // columns)
    columns = min(columns, len(results))
    figure, axes = _figure(3.1 * columns, 3.2 * rows + 0.4, rows, columns, sharex=True, sharey=True)
    for ax, (name, result) in zip(axes.flat, results.items()):
        bins = result["bins"]
        ax.bar(
            [b["low"] for b in bins], [b["share"] for b in bins], width=bins[0]["high"] - bins[0]["low"], align="edge",
            color="#DDDDDD", edgecolor="white",
        )  # fmt: skip
        ax.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="dashed")
        colour = NOISE if result.get("baseline") else GOOD
        ax.errorbar(
            [b["confidence"] for b in bins], [b["accuracy"] for b in bins], yerr=[b["half_width"] for b in bins],
            fmt="o-", color=colour, markersize=4, linewidth=1.2, capsize=2,
        )  # fmt: skip
        error = result["calibration_error"]
        ax.set_title(
            f"{name}\nerror {error['value']:.3f} ± {error['half_width']:.3f}",
            fontsize=8.5,
            loc="left",
            parse_math=False,
        )
        ax.set(xlim=(0, 1), ylim=(0, 1))
    for ax in axes.flat[len(results) :]:
        ax.set_visible(False)
    figure.supxlabel("confidence: probability of the likeliest token", fontsize=9)
    figure.supylabel("share of these tokens that are right", fontsize=9)
    _title(figure, "Calibration: on the dashed line a model is as sure as it may be. Grey bars: share of all tokens")
    return figure


def plot_accuracy(results: dict[str, dict]) -> Figure:
    """Share of tokens among the 1, 3, 5 and 10 likeliest: a row per model with intervals, baselines in grey."""
    tokenizers = list(dict.fromkeys(result["tokenizer"] for result in results.values()))
    rows = sorted(results.items(), key=lambda item: (tokenizers.index(item[1]["tokenizer"]), -item[1]["top1"]["value"]))
    figure, ((ax,),) = _figure(8.5, 1.7 + 0.42 * len(rows))
    shades = dict(zip((1, 3, 5, 10), ("#08306B", "#2171B5", "#4292C6", "#6BAED6")))
    for k, colour in shades.items():
        for row, (_, result) in enumerate(rows):
            score = result[f"top{k}"]
            ax.errorbar(
                100 * score["value"], row, xerr=100 * score["half_width"], fmt="s" if result["baseline"] else "o",
                color=colour, markersize=6, capsize=2, markerfacecolor="white" if result["baseline"] else colour,
            )  # fmt: skip
            ax.annotate(f"{100 * score['value']:.1f}", (100 * score["value"], row), xytext=(0, 7), fontsize=7.5,
                        textcoords="offset points", ha="center")  # fmt: skip
        top = 100 * rows[0][1][f"top{k}"]["value"]
        ax.annotate(f"top {k}", (top, 0), xytext=(0, 20), textcoords="offset points", ha="center", color=colour,
                    weight="bold", fontsize=9)  # fmt: skip
    ax.set_yticks(range(len(rows)), [name for name, _ in rows], parse_math=False)
    ax.set_ylim(len(rows) - 0.5, -1.1)
    ax.set_xlabel("tokens of the text that are among the k likeliest (per cent); open squares: n-gram baselines")
    lines = ["Other tokenizers have other tokens to guess: compare rows of one tokenizer only."]
    _title(figure, "Top-k accuracy, teacher-forced", lines if len(tokenizers) > 1 else [])
    return figure


# ---------------------------------------------------------------- what it knows


def plot_pairs(results: dict[str, dict], by: str | None = None) -> Figure:
    """Minimal pairs: the share of right choices in each group, a dot per model with its 95 % interval.

    results: model's name -> what `minimal_pairs` returned, for the same pairs.  by: the grouping, such as "UID"; None:
    the pairs' "field" or "kind", if they have one. The first row is for all pairs. Grey: where guessing lies.
    """
    first = next(iter(results.values()))
    by = by or next((name for name in ("field", "kind") if name in first["by"]), None)
    rows = [(f"all ({first['count']:,})", results)]
    for group, found in (first["by"][by] if by else {}).items():
        label = f"{group.replace('_', ' ')} ({found['count']:,})"
        rows.append((label, {name: result["by"][by][group] for name, result in results.items()}))
    short = sorted({f"{100 * result['fewest_tokens']:.1f}" for result in results.values()}, key=float)
    lines = [f"Always taking the text with fewer tokens would get {' to '.join(short[:1] + short[1:][-1:])} of all."]
    return _plot_shares(rows, f"Minimal pairs of {first['name']}: how often the right one is likelier", lines)


def plot_choices(results: dict[str, list[dict]], measure: str = "per_byte") -> Figure:
    """Multiple choice: the share of right answers in each set, a dot per model with its 95 % interval; grey: guessing.

    results: model's name -> a result for each set, as from `multiple_choice_of`.  measure: sum, per_token or per_byte.
    Raises: ValueError if there is no set.
    """
    rows = []
    for i, first in enumerate(next(iter(results.values()))):
        label = f"{first['format']} ({first['count']:,})"
        rows.append((label, {name: own[i][measure] for name, own in results.items()}))
    if not rows:
        raise ValueError("results: no set was scored; give files of questions to multiple_choice_of")
    return _plot_shares(rows, f"Multiple choice: right answers, likelihood {measure.replace('_', ' ')}")


def _plot_shares(rows: Sequence[tuple[str, dict[str, dict]]], title: str, lines: Sequence[str] = ()) -> Figure:
    """A block for each (label, model -> summary of lab/intervals.py), in it a line for each model; in per cent."""
    names = list(dict.fromkeys(name for _, found in rows for name in found))
    colours, step = _colours(names), len(names) + 0.6
    figure, ((ax,),) = _figure(9, 1.3 + 0.19 * step * len(rows))
    for block, (_, found) in enumerate(rows):
        low, high = (100 * x for x in next(iter(found.values()))["chance_interval"])
        top, bottom = block * step - 0.6, block * step + len(names) - 0.4
        ax.fill_betweenx([top, bottom], low, high, color="#DDDDDD", linewidth=0)
        for i, name in enumerate(names):
            if name in found:
                _share(ax, block * step + i, found[name], colours[name])
    ax.set_yticks([block * step + (len(names) - 1) / 2 for block in range(len(rows))], [label for label, _ in rows])
    ax.set_ylim(len(rows) * step - 1, -0.8)
    ax.set_xlabel("per cent, with 95 % intervals; grey: where guessing lies")
    ax.grid(axis="y", visible=False)
    handles = [ax.plot([], [], "o", color=colours[name], markersize=5, label=name)[0] for name in names]
    figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=8.5)
    _title(figure, title, lines)
    return figure


def _share(ax: Axes, row: float, found: dict, colour: str) -> None:
    """A dot with its interval, open where guessing would do as well, and its figures on the right."""
    value, (low, high) = 100 * found["accuracy"], (100 * x for x in found["interval"])
    guessed = found["accuracy"] <= found["chance_interval"][1]
    ax.errorbar(
        value, row, xerr=[[max(0, value - low)], [max(0, high - value)]], fmt="o", color=colour, capsize=2,
        linewidth=1.4, markersize=5, markerfacecolor="white" if guessed else colour,
    )  # fmt: skip
    _beside(ax, 1.02, row, f"{value:.1f} ({low:.1f} to {high:.1f})", fontsize=7.5)


# ---------------------------------------------------------------- what it costs


def plot_pareto(found: dict[str, dict[str, float]], result: dict, columns: int = 3) -> Figure:
    """Bits per byte against each cost, a panel for each that was recorded.

    found: from `costs`.  result: from `compare`. A dot is open if a model that costs no more is better beyond noise.
    More tokens per second are better, so that axis is turned.
    Raises: ValueError if no model has both a score and a cost.
    """
    names = [name for name in found if name in result["models"]]
    usable = [key for key in COLUMNS if any(not math.isnan(found[name][key]) for name in names)]
    keys = [key for key in usable if key not in ("embedding", "other")]
    if not keys:
        raise ValueError(
            "found: none of the compared models has a cost there; give costs() the names of the comparison"
        )
    columns = min(columns, len(keys))
    rows = -(-len(keys) // columns)
    figure, axes = _figure(3.1 * columns, 2.7 * rows + 1.0, rows, columns, sharey=True)
    for ax in axes.flat[len(keys) :]:
        ax.set_visible(False)
    colours = _colours(names)
    for ax, key in zip(axes.flat, keys):
        _pareto_panel(ax, {name: found[name][key] for name in names}, key, result, colours)
    for ax in axes[:, 0]:
        ax.set_ylabel("bits per byte")
    handles = [axes.flat[0].plot([], [], "o", color=colours[name], label=name)[0] for name in names]
    figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=8.5)
    lines = ["Lower and further left is better. Open dot: a model that costs no more is better beyond noise."]
    _title(figure, "What a bit per byte costs", lines)
    return figure


def _pareto_panel(ax: Axes, prices: dict[str, float], key: str, result: dict, colours: dict[str, str]) -> None:
    turned = key == "tokens_per_second"
    kept = unbeaten({name: -price if turned else price for name, price in prices.items()}, result)
    for name, price in prices.items():
        bits = result["models"][name]["bits_per_byte"]
        face = colours[name] if name in kept else "white"
        ax.plot(price, bits, "o", color=colours[name], markersize=7, markerfacecolor=face, markeredgewidth=1.6)
    ax.set_xlabel(textwrap.fill(COLUMNS[key][1], 34), fontsize=8.5)
    ax.xaxis.set_major_formatter(short_number)
    ax.tick_params(labelsize=8)
    ax.locator_params(axis="x", nbins=4)
    ax.margins(0.15)
    if turned:
        ax.invert_xaxis()


def _colours(names: Sequence[str]) -> dict[str, str]:
    from matplotlib import colormaps

    if len(names) <= len(PALETTE):
        return dict(zip(names, PALETTE))
    return {name: colormaps["viridis"](0.92 * i / (len(names) - 1)) for i, name in enumerate(names)}


# ---------------------------------------------------------------- inside a model


def plot_attention(found: dict, columns: int = 6) -> Figure:
    """Attention weights as small multiples: a panel per layer and head, white 0, dark 1, all on one scale."""
    panels = [(m, i, head) for m in found["maps"] for i, head in enumerate(found["heads"])]
    columns = min(columns, len(found["heads"]) if len(found["heads"]) > 1 else len(panels))
    rows = -(-len(panels) // columns)
    pieces = found["tokens"]
    side = 1.2 + 0.075 * len(pieces)
    figure, axes = _figure(side * columns + 0.9, side * rows + 1.1, rows, columns, sharex=True, sharey=True)
    for ax in axes.flat:
        ax.set_visible(False)
    for ax, (m, i, head) in zip(axes.flat, panels):
        ax.set_visible(True)
        image = ax.imshow(m["weights"][i].numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        ax.set_title(f"layer {m['layer']}, head {head}", fontsize=8.5)
        ax.grid(False)
        ax.set_xticks(range(len(pieces)), pieces, rotation=90, fontsize=7, parse_math=False)
        ax.set_yticks(range(len(pieces)), pieces, fontsize=7, parse_math=False)
    figure.colorbar(image, ax=axes, shrink=0.6, label="attention weight")
    figure.supxlabel("token looked at", fontsize=9)
    figure.supylabel("token that looks", fontsize=9)
    _title(figure, "Where attention looks")
    return figure


def plot_next_tokens(found: dict) -> Figure:
    """The likeliest next token after each layer, a row per layer, last on top; dark where its probability is high."""
    layers = found["layers"][::-1]
    count = len(found["tokens"])
    figure, ((ax,),) = _figure(1.6 + 0.62 * count, 1.3 + 0.34 * len(layers))
    values = [layer["probabilities"][:, 0].tolist() for layer in layers]
    image = ax.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, layer in enumerate(layers):
        for column, pieces in enumerate(layer["pieces"]):
            colour = "white" if values[row][column] > 0.55 else "black"
            ax.text(column, row, pieces[0], ha="center", va="center", fontsize=7.5, color=colour, parse_math=False)
    ax.grid(False)
    ax.set_xticks(range(count), found["tokens"], rotation=45, ha="right", fontsize=8, parse_math=False)
    ax.set_yticks(range(len(layers)), [f"layer {layer['layer']}" for layer in layers], fontsize=8)
    ax.set_xlabel("token just read")
    figure.colorbar(image, ax=ax, pad=0.01, label="probability")
    _title(figure, "Likeliest next token, read off after each layer")
    return figure


def plot_guesses(found: dict, position: int = -1) -> Figure:
    """The k likeliest next tokens at one position, a panel of bars for each layer."""
    layers = found["layers"]
    columns = min(4, len(layers))
    rows = -(-len(layers) // columns)
    k = len(layers[0]["pieces"][0])
    figure, axes = _figure(2.35 * columns, (0.7 + 0.24 * k) * rows + 0.7, rows, columns, sharex=True)
    for ax in axes.flat[len(layers) :]:
        ax.set_visible(False)
    for ax, layer in zip(axes.flat, layers):
        ax.barh(range(k), layer["probabilities"][position].tolist(), color=GOOD)
        ax.set_yticks(range(k), layer["pieces"][position], fontsize=8, parse_math=False)
        ax.set_ylim(k - 0.5, -0.5)
        ax.set_xlim(0, 1)
        ax.set_xticks([0, 0.5, 1])
        ax.set_title(f"after layer {layer['layer']}: {layer['entropy'][position]:.1f} nats", fontsize=8.5, loc="left")
    figure.supxlabel("probability", fontsize=9)
    read = found["tokens"][: position + 1 or None]
    _title(figure, f"Next token after … {''.join(read[-8:])}")
    return figure
