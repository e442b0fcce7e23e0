"""Pictures and tables that compare saved models, from what their folders record.

    plot_column_from_csv(["a", "b"], x="Tokens Seen", y="Bits Per Byte", log_x=True)      # curves from log_data.csv
    plot_curves(["a", "b"])                                    # four panels: per step, token, second and FLOP
    compare_table(["a", "b"])                                                   # sizes, costs and scores, a DataFrame
    save_loss_curve("a")                                                        # trained_models/a/loss_curve.png

A model is named as in `load_model`: a folder of trained_models/, or a path. Runs of one model with other seeds
(`name`, `name-seed2`, `name-seed3`) share a colour. What can't be compared is said in the picture itself: nats per
token under different tokenizers, and models that were trained on different text.
"""

from __future__ import annotations

import csv
import difflib
import html
import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab.files import read_json, shown, write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from lab.inference_plots import SideBySide

PER_TOKEN = ("Train Loss", "Validation Loss", "Perplexity")  # columns that depend on how much text a token stands for
LABELS = {
    "Step": "optimizer steps",
    "Tokens Seen": "tokens seen in training",
    "Time Elapsed": "training time (seconds)",
    "Training FLOPs": "FLOPs of training (tokens seen × 3 × FLOPs of a forward pass per token)",
    "Train Loss": "training loss (nats per token)",
    "Validation Loss": "validation loss (nats per token)",
    "Perplexity": "perplexity of the validation text (per token)",
    "Bits Per Byte": "bits per byte of the validation text",
    "Learning Rate": "learning rate",
    "Tokens Per Second": "tokens per second",
    "Gradient Norm": "gradient norm before clipping",
}
# Colours that stay apart under the common kinds of colour blindness (Okabe & Ito 2008, "Color universal design").
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("solid", "dashed", "dashdot", "dotted")
NOTE = "#9C1C1C"  # colour of what a reader must know before comparing
LEADER = dict(arrowstyle="-", linewidth=0.7, alpha=0.6, shrinkA=0, shrinkB=0, relpos=(0, 0.5))  # label to curve
MOST_END_LABELS = 8  # more curves than that get a legend
STYLE = {
    "figure.dpi": 110,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": "#888888",
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
}


# ---------------------------------------------------------------- what a folder tells


@dataclass(frozen=True)
class Run:
    """What the files in a model's folder say about how it was made; None where they don't."""

    name: str
    folder: Path
    tokenizer: str | None
    tokenizer_fingerprint: str | None
    text: str | None
    text_fingerprint: str | None

    @property
    def family(self) -> str:
        """The name without its seed: `small-seed2` is a run of `small`."""
        return family_of(self.name)


def family_of(name: str) -> str:
    """A run's name without its seed."""
    return re.sub(r"-seed\d+$", "", name)


def read_run(model: str | Path) -> Run:
    """Raises FileNotFoundError, with the nearest name, if there is no such folder."""
    folder = _existing_folder(model)
    tokenizer = _json_if_there(folder / "model_config.json").get("tokenizer", {})
    text = _json_if_there(folder / "run.json").get("text", {})
    facts = [source.get(field) for source in (tokenizer, text) for field in ("name", "fingerprint")]
    return Run(folder.name, folder, *facts)


def with_seeds(models: Sequence[str | Path]) -> list[str | Path]:
    """Each model, followed by its runs with other seeds that trained_models/ holds (`name-seed2`, ...)."""
    from lab.saving import list_models

    found = list_models()
    return [run for model in models for run in [model, *(n for n in found if n != model and family_of(n) == model)]]


def _existing_folder(model: str | Path) -> Path:
    from lab.saving import list_models, model_folder

    folder = model_folder(model)
    if folder.is_dir():
        return folder
    known = list_models(folder.parent)
    close = difflib.get_close_matches(folder.name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise FileNotFoundError(f"name={str(model)!r}: no such model{hint} There are: {', '.join(known) or 'none yet'}")


def _json_if_there(path: Path) -> dict:
    return read_json(path) if path.is_file() else {}


def read_log(model: str | Path) -> DataFrame:
    """log_data.csv of a model, one row per evaluation; an empty cell is NaN.

    A last line that a killed process left half written is skipped, with a warning.
    Raises: FileNotFoundError if there is no such model or log; ValueError for a log without rows or a damaged line.
    """
    import pandas as pd

    path = _existing_folder(model) / "log_data.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{shown(path)}: there is no such file; train() writes it at its first evaluation")
    text = path.read_text(encoding="utf-8-sig")
    lines = list(csv.reader(io.StringIO(text)))
    header, rows = (lines[0], lines[1:]) if lines else ([], [])
    if rows and (not text.endswith("\n") or len(rows[-1]) < len(header)):
        warnings.warn(f"{shown(path)}: its last line is torn and was skipped (line {len(lines)})", stacklevel=2)
        rows = rows[:-1]
    if not rows:
        raise ValueError(f"{shown(path)} holds no rows yet: wait for the first evaluation, or train the model again")
    numbers = [_numbers(row, header, f"{shown(path)}: line {i}") for i, row in enumerate(rows, start=2)]
    return pd.DataFrame(numbers, columns=header)


def _numbers(row: list[str], header: list[str], where: str) -> list[float]:
    if len(row) != len(header):
        raise ValueError(f"{where} has {len(row)} cells and the header {len(header)}: repair or delete that line")
    try:
        return [float(cell) if cell.strip() else float("nan") for cell in row]
    except ValueError as error:
        raise ValueError(f"{where} must hold numbers only ({error}): repair or delete that line") from None


# ---------------------------------------------------------------- curves of several models


def plot_column_from_csv(
    models: str | Path | Sequence[str | Path],
    x: str = "Step",
    y: str = "Validation Loss",
    log_x: bool = False,
    log_y: bool = False,
    trim_percentage: float = 0,
    smooth: int = 1,
) -> Figure:
    """One column of the models' log_data.csv against another, a curve per model.

    x may also be "FLOPs" (or "Training FLOPs"): three times those of a forward pass over the tokens seen, as
    lab/costs.py counts them: the backward pass costs twice the forward one.
    models: one name or path, or any number of them.  log_x, log_y: logarithmic axes; values not above 0 are left out.
    trim_percentage: leaves out the first so many per cent of each curve, where it still falls steeply.
    smooth: each point is the mean of so many rows that end there.
    Raises: FileNotFoundError for a model or log that isn't there; ValueError for a column that isn't in it.
    """
    models = [models] if isinstance(models, str | Path) else list(models)
    _check_options(models, trim_percentage, smooth)
    runs = [read_run(model) for model in models]
    curves = [_curve(run, x, y, (log_x, log_y), trim_percentage, smooth) for run in runs]
    figure, ax = _new_figure()
    per_token = y in PER_TOKEN
    _draw_curves(ax, runs, curves, per_token)
    _set_axes(ax, x, y, log_x, log_y)
    with_tokenizer = per_token and _differ(runs, "tokenizer_fingerprint")
    _name_curves(ax, runs, curves, _colours(runs), with_tokenizer)
    figure.suptitle(f"{y} against {x}", x=0.01, ha="left", fontsize=12, parse_math=False)
    ax.set_title(_wrapped(_warnings(runs, per_token)), loc="left", fontsize=8.5, color=NOTE, parse_math=False)
    return figure


def _draw_curves(ax: Axes, runs: list[Run], curves: list, per_token: bool) -> None:
    """The curves alone: a colour for each family, a line style for each tokenizer where that matters."""
    colours, dashes = _colours(runs), _dashes(runs) if per_token else {}
    for run, (xs, ys) in zip(runs, curves):
        dash = dashes.get(run.tokenizer_fingerprint, "solid")
        ax.plot(xs, ys, color=colours[run.family], linestyle=dash, linewidth=1.6, label=run.name)


def plot_curves(
    models: Sequence[str | Path],
    y: str = "Bits Per Byte",
    xs: Sequence[str] = ("Step", "Tokens Seen", "Time Elapsed", "Training FLOPs"),
    log_x: bool = True,
    log_y: bool = True,
    trim_percentage: float = 10,
    smooth: int = 1,
) -> Figure:
    """The same curves against several measures of work, a panel for each; one legend for all.

    All else as in `plot_column_from_csv`. What is equal work by one measure is not by another.
    """
    models = list(models)
    _check_options(models, trim_percentage, smooth)
    runs = [read_run(model) for model in models]
    rows = -(-len(xs) // 2)
    figure, axes = _new_figure(9, 0.9 + 2.9 * rows, rows=(1,) * rows, columns=2, sharey=True, squeeze=False)
    per_token = y in PER_TOKEN
    for ax, x in zip(axes.flat, xs):
        curves = [_curve(run, x, y, (log_x, log_y), trim_percentage, smooth) for run in runs]
        _draw_curves(ax, runs, curves, per_token)
        _set_axes(ax, x, y, log_x, log_y)
        ax.set_xlabel(_wrapped([ax.get_xlabel()], width=45), parse_math=False)
    for ax in axes[:, 1:].flat:
        ax.set_ylabel("")
    for ax in axes.flat[len(xs) :]:
        ax.set_visible(False)
    _legend(figure, runs)
    notes = _wrapped(_warnings(runs, per_token))
    figure.suptitle(notes, x=0.01, ha="left", fontsize=8.5, color=NOTE, parse_math=False)
    return figure


def _legend(figure: Figure, runs: list[Run]) -> None:
    """Below all panels: a line for each family, with the number of its seeds."""
    from matplotlib.lines import Line2D

    colours = _colours(runs)
    counts = {family: sum(run.family == family for run in runs) for family in colours}
    lines = [Line2D([], [], color=colour) for colour in colours.values()]
    names = [f"{family} ({count} seeds)" if count > 1 else family for family, count in counts.items()]
    figure.legend(lines, names, loc="outside lower left", ncols=3, frameon=False, fontsize=8.5)


def _check_options(models: list, trim_percentage: float, smooth: int) -> None:
    if not models:
        raise ValueError("models=[]: name at least one; lab.saving.list_models() tells what there is")
    if not 0 <= trim_percentage < 100:
        raise ValueError(f"trim_percentage={trim_percentage} must be at least 0 and below 100")
    if smooth < 1:
        raise ValueError(f"smooth={smooth} must be at least 1 row; 1 leaves the curve as it is")


def _curve(run: Run, x: str, y: str, logs: tuple[bool, bool], trim_percentage: float, smooth: int):
    """The points of one model: two arrays of equal length, at least one long."""
    log = read_log(run.folder)
    x = "Training FLOPs" if x == "FLOPs" else x
    if x == "Training FLOPs" and x not in log and "Tokens Seen" in log:
        log[x] = 3 * _flops_per_token(run.folder) * log["Tokens Seen"]  # backwards is twice forwards
    for column in (x, y):
        if column not in log:
            close = difflib.get_close_matches(column, log.columns, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            known = ", ".join(log.columns)
            raise ValueError(f"{run.name}: log_data.csv has no column {column!r}{hint} It has: {known}")
    points = log[[x, y]].dropna() if x != y else log[[x]].dropna()
    points = points.iloc[int(len(points) * trim_percentage / 100) :]
    xs, ys = points[x], points[y].rolling(smooth, min_periods=1).mean()
    kept = (xs > 0 if logs[0] else xs == xs) & (ys > 0 if logs[1] else ys == ys)
    if not kept.any():
        raise ValueError(f"{run.name}: no row of log_data.csv can be drawn: {x!r} and {y!r} are nowhere both given")
    return xs[kept].to_numpy(), ys[kept].to_numpy()


def _flops_per_token(folder: Path) -> float:
    from lab.costs import flops_per_token
    from lab.saving import load_model

    return flops_per_token(load_model(folder)[0])


def _colours(runs: list[Run]) -> dict[str, str]:
    """A colour for each family."""
    families = list(dict.fromkeys(run.family for run in runs))
    if len(families) <= len(PALETTE):
        return dict(zip(families, PALETTE))
    from matplotlib import colormaps

    return {family: colormaps["viridis"](0.92 * i / (len(families) - 1)) for i, family in enumerate(families)}


def _dashes(runs: list[Run]) -> dict[str | None, str]:
    """A line style for each tokenizer."""
    tokenizers = dict.fromkeys(run.tokenizer_fingerprint for run in runs)
    return {tokenizer: DASHES[i % len(DASHES)] for i, tokenizer in enumerate(tokenizers)}


def _differ(runs: list[Run], field: str) -> bool:
    return len({getattr(run, field) for run in runs}) > 1


def _warnings(runs: list[Run], per_token: bool) -> list[str]:
    """What a reader must know before comparing these curves."""
    notes = []
    if per_token and _differ(runs, "tokenizer_fingerprint"):
        notes.append(
            f"Different tokenizers ({_listed(runs, 'tokenizer')}): a token of one stands for more text than a token of "
            "another, so compare these models by Bits Per Byte, not here."
        )
    if _differ(runs, "text_fingerprint"):
        notes.append(
            f"Trained on different text ({_listed(runs, 'text')}): these curves don't show which model is better."
        )
    return notes


def _listed(runs: list[Run], field: str) -> str:
    """`bpe_2048: a, b; bpe_4096: c`, with the beginning of the fingerprint where two have the same name."""
    families: dict[tuple, dict[str, None]] = {}
    for run in runs:
        families.setdefault((getattr(run, field), getattr(run, f"{field}_fingerprint")), {})[run.family] = None
    names = [name for name, _ in families]
    shown_as = [
        f"{name or 'not recorded'}" + (f" [{fingerprint[:6]}]" if fingerprint and names.count(name) > 1 else "")
        for name, fingerprint in families
    ]
    return "; ".join(f"{value}: {', '.join(members)}" for value, members in zip(shown_as, families.values()))


def _wrapped(notes: list[str], width: int = 120) -> str:
    import textwrap

    return "\n".join(textwrap.fill(note, width) for note in notes)


# ---------------------------------------------------------------- drawing


def _new_figure(width: float = 9, height: float = 4.8, rows: Sequence[float] = (1,), columns: int = 1, **options):
    """A figure in this file's style, and its axes (an array where there are several); rows: their relative heights.

    It is closed at once as far as pyplot is concerned: a notebook shows it as a cell's result, and only once.
    """
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(rows), columns, figsize=(width, height), layout="constrained", height_ratios=rows,
            **{"sharex": columns == 1} | options,
        )  # fmt: skip
    plt.close(figure)
    return figure, axes


def _set_axes(ax: Axes, x: str, y: str, log_x: bool, log_y: bool) -> None:
    """Scales, ticks and labels that name the unit. Ticks depend on what is drawn already."""
    x = "Training FLOPs" if x == "FLOPs" else x
    ax.set_xlabel(LABELS.get(x, x), parse_math=False)
    ax.set_ylabel(LABELS.get(y, y), parse_math=False)
    if log_x:
        ax.set_xscale("log")
        _set_round_ticks(ax.xaxis)
    if log_y:
        ax.set_yscale("log")
        _set_round_ticks(ax.yaxis)
    for axis, column, logarithmic in ((ax.xaxis, x, log_x), (ax.yaxis, y, log_y)):
        if logarithmic or column == "Tokens Seen":
            axis.set_major_formatter(short_number)


def _set_round_ticks(axis) -> None:
    """Ticks of a logarithmic axis at round numbers, closer where it spans less than a factor of ten, as losses do."""
    from matplotlib.ticker import LogLocator, NullLocator

    low, high = axis.get_data_interval()
    steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8) if high < 10 * low else (1, 2, 5)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_minor_locator(NullLocator())


def short_number(value: float, _position=None) -> str:
    """15000000 -> 15 M"""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size and abs(value) >= 1e4:
            return f"{value / size:.4g} {unit}"
    return f"{value:.4g}"


def _name_curves(ax: Axes, runs: list[Run], curves: list, colours: dict[str, str], with_tokenizer: bool) -> None:
    """Each family's name at the end of its curves, or a legend where there are many."""
    ends: dict[str, list[tuple[float, float]]] = {}
    for run, (xs, ys) in zip(runs, curves):
        ends.setdefault(run.family, []).append((xs[-1], ys[-1]))
    texts = {}
    for family, points in ends.items():
        seeds = f" ({len(points)} seeds)" if len(points) > 1 else ""
        tokenizer = next(run.tokenizer for run in runs if run.family == family)
        texts[family] = f"{family}{seeds}" + (f"\n{tokenizer or 'tokenizer not recorded'}" if with_tokenizer else "")
    if len(texts) > MOST_END_LABELS:
        from matplotlib.lines import Line2D

        lines = [Line2D([], [], color=colours[family]) for family in texts]
        ax.legend(lines, texts.values(), loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
        return
    middles = [tuple(sum(values) / len(points) for values in zip(*points)) for points in ends.values()]
    label_ends(ax, middles, list(texts.values()), [colours[family] for family in texts])


def label_ends(ax: Axes, points: list[tuple[float, float]], texts: list[str], colours: list[str]) -> None:
    """Writes each text to the right of the axes, at the height of its point, or as near as the others leave room."""
    lines = max(text.count("\n") + 1 for text in texts)
    to_axes = ax.transData + ax.transAxes.inverted()
    ax.autoscale_view()
    wanted = [to_axes.transform(point)[1] for point in points]
    for point, text, colour, height in zip(points, texts, colours, spread(wanted, gap=0.05 * lines)):
        ax.annotate(
            text, xy=point, xytext=(1.02, height), textcoords="axes fraction", va="center", color=colour, fontsize=9,
            annotation_clip=False, parse_math=False, arrowprops={**LEADER, "color": colour},
        )  # fmt: skip


def spread(heights: list[float], gap: float) -> list[float]:
    """Moves heights apart until neighbours are `gap` apart, in their order and as near to where they were as possible.

    They end within 0 and 1 where there is room. What crowds together becomes a block around its mean height.
    """
    order = sorted(range(len(heights)), key=heights.__getitem__)
    blocks: list[list[float]] = []  # of each block, where its members would like the block's lowest place to be
    for i in order:
        blocks.append([heights[i]])
        while len(blocks) > 1 and _mean(blocks[-1]) < _mean(blocks[-2]) + gap * len(blocks[-2]):
            above, below = blocks.pop(), blocks.pop()
            blocks.append(below + [height - gap * len(below) for height in above])
    placed = [_mean(block) + gap * i for block in blocks for i in range(len(block))]
    for i in range(len(placed)):  # from below: not under 0
        placed[i] = max(placed[i], gap * i)
    for i in range(1, len(placed) + 1):  # from above: not over 1, but rather that than overlapping
        placed[-i] = min(placed[-i], max(1.0, gap * (len(placed) - 1)) - gap * (i - 1))
    return [placed[order.index(i)] for i in range(len(heights))]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


# ---------------------------------------------------------------- the curve of one training run


def draw_loss_curve(ax: Axes, log: DataFrame, learning_rate_ax: Axes | None = None) -> None:
    """Training and validation loss of one run on `ax`, and its learning rate on a second one where given.

    log: the columns of log_data.csv; what it lacks is left out. Both axes are cleared first, so that the same call
    redraws a running training.
    """
    ax.clear()
    ax.grid(True, color=STYLE["grid.color"])
    colours = {"Train Loss": "#999999", "Validation Loss": PALETTE[0]}
    drawn = [column for column in colours if column in log and log[column].notna().any()]
    ends = []
    for column in drawn:
        points = log[["Step", column]].dropna()
        ax.plot(points["Step"], points[column], color=colours[column], linewidth=1.6)
        ends.append((points["Step"].iloc[-1], points[column].iloc[-1]))
    ax.set_ylabel("loss (nats per token)")
    if drawn:
        names = [f"{column.split()[0].lower()} {y:.3f}" for column, (_, y) in zip(drawn, ends)]
        label_ends(ax, ends, names, [colours[column] for column in drawn])
    if learning_rate_ax is None:
        ax.set_xlabel(LABELS["Step"])
    else:
        _draw_learning_rate(learning_rate_ax, log)


def _draw_learning_rate(ax: Axes, log: DataFrame) -> None:
    ax.clear()
    ax.grid(True, color=STYLE["grid.color"])
    if "Learning Rate" in log:
        ax.fill_between(log["Step"], log["Learning Rate"], color=PALETTE[4], alpha=0.35, linewidth=0)
        ax.plot(log["Step"], log["Learning Rate"], color=PALETTE[4], linewidth=1.2)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("learning\nrate")
    ax.set_xlabel(LABELS["Step"])


def loss_figure(log: DataFrame, title: str = "") -> Figure:
    """Losses above, learning rate below, of one training run; `log` as `read_log` gives it."""
    figure, (ax, learning_rate_ax) = _new_figure(8, 4.6, rows=(4, 1))
    draw_loss_curve(ax, log, learning_rate_ax)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, parse_math=False)
    return figure


def save_loss_curve(model: str | Path) -> Path:
    """Writes loss_curve.png beside the log_data.csv of a model; returns its path. Raises as `read_log`."""
    log, folder = read_log(model), _existing_folder(model)
    title = folder.name
    if "Bits Per Byte" in log and log["Bits Per Byte"].notna().any():
        title += f": {log['Bits Per Byte'].dropna().iloc[-1]:.3f} bits per byte of its validation text"
    path = folder / "loss_curve.png"
    figure = loss_figure(log, title)
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=120))
    return path


# ---------------------------------------------------------------- tables


def compare_table(models: Sequence[str | Path], results: dict[str, dict] | None = None) -> DataFrame:
    """How well each model does, what it is and what it cost: one row per model, NaN or "" where that isn't recorded.

    Columns: bits per byte, perplexity and top-1 (both per token); parameters (tied ones once) = embedding (token and
    position tables and the head) + other; tokens seen, epochs, seconds, tokens/s in training; tokenizer; trained on;
    and measured on.
    results: model name -> scores, as `results_of` gives them. None: the first in each model's evaluation.json; a model
    without one is quoted by the validation in its training, and the last column says so.
    """
    import pandas as pd

    runs = [read_run(model) for model in models]
    scores = [_stored_scores(run) for run in runs] if results is None else [results[run.name] for run in runs]
    return pd.DataFrame({run.name: _row(run, s) for run, s in zip(runs, scores)}).T.infer_objects()


def _row(run: Run, scores: dict) -> dict:
    record = _json_if_there(run.folder / "run.json")
    parameters = record.get("parameters") or _count_parameters(run.folder)
    tokens, seconds = record.get("tokens_seen", math.nan), record.get("seconds", math.nan)
    return {
        "bits per byte": scores.get("bits_per_byte", math.nan),
        "perplexity": scores.get("perplexity", math.nan),
        "top-1": scores.get("top1", math.nan),
        "parameters": parameters["total"],
        "embedding": parameters["embedding"],
        "other": parameters["other"],
        "tokens seen": tokens,
        "epochs": record.get("epochs", math.nan),
        "seconds": seconds,
        "tokens/s": tokens / seconds if seconds else math.nan,
        "tokenizer": run.tokenizer or "",
        "trained on": run.text or "",
        "measured on": f"{scores['text']}, {scores['documents']:,} documents" if scores else "",
    }


def _count_parameters(folder: Path) -> dict[str, int]:
    from lab.runs import count_parameters
    from lab.saving import load_model

    return count_parameters(load_model(folder)[0])


def _stored_scores(run: Run) -> dict:
    from lab.evaluation import read_results

    results = read_results(run.folder)
    if results:
        return results[0]
    final = _json_if_there(run.folder / "run.json").get("final")
    return {**final, "text": "validation in training"} if final else {}


FORMATS = {
    "bits per byte": "{:.4f}", "perplexity": "{:.2f}", "top-1": "{:.1%}", "parameters": "{:,.0f}",
    "embedding": "{:,.0f}", "other": "{:,.0f}", "tokens seen": "{:,.0f}", "epochs": "{:.2f}", "seconds": "{:,.0f}",
    "tokens/s": "{:,.0f}",
    "FLOPs/token": "{:,.0f}", "decode state": "{:,.0f}", "train seconds": "{:,.0f}", "peak MB": "{:,.0f}",
}  # fmt: skip


class Table:
    """A table as a notebook or a terminal shows it best: thousands separated, and as many decimals as mean something.

    A column of text that says the same in every row is said once, above the table.
    """

    def __init__(self, table: DataFrame):
        from pandas.api.types import is_numeric_dtype

        texts = [column for column in table if not is_numeric_dtype(table[column])]
        common = [c for c in texts if len(table) > 1 and table[c].nunique() == 1 and table[c].iloc[0]]
        self.above = "; ".join(f"{column}: {table[column].iloc[0]}" for column in common)
        self.table = table.drop(columns=common)
        self.options = {"formatters": {c: FORMATS[c].format for c in self.table if c in FORMATS}, "na_rep": ""}

    def __repr__(self) -> str:
        return "\n".join(filter(None, [self.above, self.table.to_string(**self.options)]))

    def _repr_html_(self) -> str:
        above = f"<p>{html.escape(self.above)}</p>" if self.above else ""
        return above + self.table.to_html(border=0, **self.options)


def samples(
    models: Sequence[str | Path], prompt: str = "Once upon a time", *, max_new_tokens: int = 120, **settings
) -> SideBySide:
    """The same prompt continued by each model, in columns. settings: as for `generate` (temperature, seed, ...)."""
    from inference import generate
    from lab.inference_plots import SideBySide
    from lab.saving import load_model

    texts = {}
    for name in models:
        model, tok, _ = load_model(name)
        texts[Path(name).name] = generate(model, tok, prompt, max_new_tokens=max_new_tokens, **settings)
    return SideBySide(texts, columns=min(len(texts), 3))
