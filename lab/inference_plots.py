"""Pictures for `inference.ipynb`: next-token probabilities, what filters leave, the cache's speed, stories in columns.

Each function takes what `inference` returned and draws it with matplotlib, or gives an object that shows itself as an
HTML table.
"""

from __future__ import annotations

import html
import random
import statistics
import textwrap
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from inference import Choice
    from model import GPT
    from tokenizer import Tokenizer

BEFORE, AFTER = "#c9ced6", "#2f6db3"  # bar colours: the model's distribution, what is sampled from


def plot_next_tokens(probabilities: list[tuple[str, float]], title: str = "", ax: Axes | None = None) -> Axes:
    """A bar per token, likeliest on top: `next_token_probabilities(...)` as a picture. A space is shown as \u2581."""
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(6, 0.5 + 0.28 * len(probabilities)), layout="constrained")
    pieces, values = zip(*probabilities, strict=True)
    bars = ax.barh(range(len(values)), values, color=AFTER)
    ax.bar_label(bars, [f"{p:.1%}" for p in values], padding=3, fontsize=8)
    ax.set_yticks(range(len(values)), pieces, parse_math=False)
    ax.invert_yaxis()
    ax.set_xlim(0, max(values) * 1.15)
    ax.set_xlabel("probability")
    ax.set_title(title, loc="left", fontsize=10, parse_math=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_survivors(logits: Tensor, tok: Tokenizer, choices: dict[str, Choice], k: int = 16) -> Figure:
    """One panel per choice: the k likeliest tokens before (grey, temperature 1) and after it (blue).

    logits: (V,), from `next_token_logits`. Each title says how many tokens stay and how probable they were together.
    """
    import matplotlib.pyplot as plt

    from inference import Choice

    plain = Choice(temperature=1.0).probabilities(logits)
    before, ids = plain.topk(min(k, len(plain)))
    labels, places = [tok.piece(i) for i in ids.tolist()], range(len(ids))
    rows = -(-len(choices) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(11, 2.3 * rows), layout="constrained", sharex=True, squeeze=False)
    for ax, (name, choice) in zip(axes.flat, choices.items(), strict=False):
        after = choice.probabilities(logits)
        kept = after > 0
        ax.bar(places, before.tolist(), width=0.8, color=BEFORE, label="model")
        ax.bar(places, after[ids].tolist(), width=0.45, color=AFTER, label="sampled from")
        title = f"{name}: {int(kept.sum())} of {len(plain)} tokens stay, {plain[kept].sum():.0%} of the probability"
        ax.set_title(title, loc="left", fontsize=9)
        ax.set_xticks(places, labels, rotation=60, ha="right", fontsize=8, parse_math=False)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes.flat[len(choices) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("probability")
    axes.flat[0].legend(frameon=False, fontsize=8)
    return figure


def step_times(model: GPT, prompt: list[int], count: int, *, use_cache: bool = True) -> list[float]:
    """Seconds that each of `count` new tokens took, after the given token ids; greedy, and going on after EOS."""
    from inference import Choice, new_tokens

    steps = new_tokens(
        model, [prompt], Choice(temperature=0), [random.Random(0)], max_new_tokens=count, use_cache=use_cache
    )
    times = [time.perf_counter()]
    for _ in steps:
        times.append(time.perf_counter())
    return [after - before for before, after in zip(times, times[1:], strict=False)]


def plot_step_times(times: dict[str, list[float]], first: int = 1, smooth: int = 9) -> Axes:
    """Milliseconds per new token against its position in the text, a line per entry.

    first: position of the first new token. smooth: running median over this many tokens, against a busy machine.
    """
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(7, 3), layout="constrained")
    for name, seconds in times.items():
        windows = [seconds[max(0, i - smooth // 2) : i + smooth // 2 + 1] for i in range(len(seconds))]
        label = f"{name}: {len(seconds) / sum(seconds):.0f} tokens/s"
        ax.plot(range(first, first + len(seconds)), [1e3 * statistics.median(w) for w in windows], label=label)
    ax.set_xlabel("position of the token in the text")
    ax.set_ylabel("milliseconds per token")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


class SideBySide:
    """Texts in columns, wrapped: a table in a notebook, one text below the other in a terminal.

    texts: heading -> text. columns: how many stand in one row.
    """

    def __init__(self, texts: dict[str, str], columns: int = 3):
        self.texts, self.columns = texts, columns

    def _repr_html_(self) -> str:
        entries, rows = list(self.texts.items()), []
        for i in range(0, len(entries), self.columns):
            heads, cells = zip(*entries[i : i + self.columns], strict=True)
            rows.append("".join(f'<th style="text-align:left">{html.escape(h)}</th>' for h in heads))
            rows.append("".join(f"<td {self._style()}>{_paragraphs(c)}</td>" for c in cells))
        return '<table style="width:100%">' + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"

    def __repr__(self) -> str:
        wrapped = ["\n".join(map(textwrap.fill, text.splitlines())) for text in self.texts.values()]
        return "\n\n".join(f"--- {name}\n{text}" for name, text in zip(self.texts, wrapped, strict=True))

    def _style(self) -> str:
        return f'style="width:{100 // self.columns}%;text-align:left;vertical-align:top;white-space:normal"'


def _paragraphs(text: str) -> str:
    return "<br>".join(html.escape(line) for line in text.splitlines())
