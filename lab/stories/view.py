"""To look at: what models write as a table, a picture and samples, with what must be said beside the figures."""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lab.kept import documents_fingerprint
from lab.plots import NOTE, PALETTE, STYLE
from lab.stories.measures import METRICS
from lab.stories.prompts import read_prompts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame


def rows(results: dict[str, dict]) -> list[dict[str, str]]:
    """A line for each run, in the order given, and one for each kind of real stories that they are laid beside."""
    named = [(name, record["metrics"]) for name, record in results.items()]
    named += [(name, reference["metrics"]) for name, reference in references(results).items()]
    return [
        {"model": name, **{heading: cell(metrics[key], form) for key, (heading, form) in METRICS.items()}}
        for name, metrics in named
    ]


def references(results: dict[str, dict]) -> dict[str, dict]:
    """The references of the records by a name for each, equal ones once: texts are cut after tokens, so that another
    tokenizer makes another one."""
    found: dict[str, tuple[dict, str]] = {}
    for record in results.values():
        if record["reference"]:
            found.setdefault(json.dumps(record["reference"]), (record["reference"], record["tokenizer"]))
    if len(found) == 1:
        return {"real stories": next(iter(found.values()))[0]}
    return {f"real stories ({tokenizer}, {i})": own for i, (own, tokenizer) in enumerate(found.values(), 1)}


def cell(found: dict | None, form: str) -> str:
    """A mean with its interval, such as `0.82 (0.80 to 0.84)`."""
    if found is None:
        return "not known"
    return f"{form.format(found['mean'])} ({form.format(found['low'])} to {form.format(found['high'])})"


def table(results: dict[str, dict]) -> "DataFrame":
    """The same as a DataFrame, models as rows."""
    import pandas as pd

    return pd.DataFrame(rows(results)).set_index("model")


def notes(results: dict[str, dict]) -> list[str]:
    """What must be said beside the figures: prompts, settings, texts that outgrew the context."""
    lines = []
    settings = {json.dumps([r["name"], r["fingerprint"], r["prompts"], r["decoding"]]): r for r in results.values()}
    for record in settings.values():
        own = record["decoding"]
        lines.append(
            f"{record['name']}: {record['prompts']} prompts, {own['completions']} completions of each, at most "
            f"{own['max_new_tokens']} tokens, temperature {own['temperature']:g}, top_p {own['top_p']}."
        )
    if any(record["metrics"]["overlap_words"] for record in results.values()):
        lines.append("Longest overlap: the longest piece of a text that stands in the model's training text, too.")
    if len(settings) > 1:
        lines.append("These were not made with the same prompts and settings: they cannot be compared.")
    if len({record["tokenizer"] for record in results.values()}) > 1:
        lines.append("Texts are cut after the same number of tokens, so other tokenizers cut at other lengths.")
    outgrown = [f"{n}: {r['over_context']} of {r['texts']}" for n, r in results.items() if r["over_context"]]
    return lines + ([f"Texts that outgrew the model's context: {', '.join(outgrown)}."] if outgrown else [])


def samples(results: dict[str, dict], prompts: str | Path | Sequence[str] | None = None, most: int = 300) -> str:
    """Three completions of each run, cut to `most` characters.  prompts: as they were given, to show them as well."""
    texts = read_prompts(prompts)[1] if prompts is not None else None
    parts = []
    for name, record in results.items():
        if texts is not None and documents_fingerprint(texts) != record["fingerprint"]:
            raise ValueError(f"prompts: {name} did not continue these, but {record['name']}")
        for story in record["samples"]:
            before = f"{texts[story['prompt']]} >>>" if texts is not None else "..."
            whole = story["ended"] and len(story["text"]) <= most
            after = story["text"][:most] + ("" if whole else " ...")
            parts.append(f"{name}, prompt {story['prompt']}: {before}{after}")
    return "\n\n".join(parts)


def plot_stories(results: dict[str, dict]) -> "Figure":
    """A panel for each metric: a dot with its interval for each run, and where real stories are (dashed, on grey).

    Runs of one model (name, name-seed2, ...) share a line.
    """
    import matplotlib.pyplot as plt

    families: dict[str, list[dict]] = {}
    for record in results.values():
        families.setdefault(record["model"], []).append(record)
    most = max(map(len, families.values()))
    with plt.rc_context(STYLE):
        height = 1.3 + 3 * (0.75 + len(families) * (0.22 + 0.08 * most))
        figure, axes = plt.subplots(3, 3, figsize=(10, height), sharey=True, layout="constrained")
    plt.close(figure)  # so that a notebook shows it once
    for ax, key in zip(axes.flat, METRICS):
        _panel(ax, key, list(families.values()))
    for ax in axes[:, 0]:
        ax.set_yticks(range(len(families)), list(families), parse_math=False)
        ax.set_ylim(len(families) - 0.5, -0.5)
    with_real = any(record["reference"] for record in results.values())
    dashed = "; dashed, with its interval in grey: real stories, continued from their own beginnings" * with_real
    text = [f"What the models write. A dot for each run, 95 % intervals{dashed}", *notes(results)]
    text = [piece for line in text for piece in textwrap.wrap(line, 140)]
    figure.suptitle("\n".join(text), x=0.01, ha="left", fontsize=9, parse_math=False)
    return figure


def _panel(ax: "Axes", key: str, families: list[list[dict]]) -> None:
    from matplotlib.ticker import PercentFormatter

    heading, form = METRICS[key]
    for row, records in enumerate(families):
        reference = (records[0]["reference"] or {"metrics": {key: None}})["metrics"][key]
        if reference is not None:
            ax.fill_betweenx([row - 0.5, row + 0.5], reference["low"], reference["high"], color="#DDDDDD", linewidth=0)
            ax.plot([reference["mean"]] * 2, [row - 0.5, row + 0.5], color="#444444", linestyle="dashed", linewidth=1)
        for place, record in enumerate(records):
            found = record["metrics"][key]
            if found is not None:
                y = row + (place - (len(records) - 1) / 2) * 0.7 / len(records)
                ax.plot([found["low"], found["high"]], [y, y], color=PALETTE[0], linewidth=1.2)
                ax.plot(found["mean"], y, "o", color=PALETTE[0], markersize=4)
    if all(record["metrics"][key] is None for records in families for record in records):
        ax.text(0.5, 0.5, "not known", transform=ax.transAxes, ha="center", color=NOTE)
    ax.set_title(heading, loc="left", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.margins(x=0.1)
    if form.endswith("%}"):
        ax.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    ax.locator_params(axis="x", nbins=5)
