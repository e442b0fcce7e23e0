"""Cards side by side, as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lab.probes.card import Card
from lab.probes.tasks import TASKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_cards(cards: Card | Iterable[Card] | dict[str, Card], columns: int = 4) -> Figure:
    """Accuracy against difficulty: a panel for each task, a colour for each card, a dot for each seed.

    cards: one, several, or {label: card}. The line is the mean over seeds; grey: what guessing scores; hollow dots
    behind a dotted line: longer than any row in training.
    Raises: ValueError for no card, or cards without a task in common.
    """
    from matplotlib import pyplot as plt

    from lab.plots import PALETTE, STYLE

    labelled = _labelled(cards)
    names = [name for name in TASKS if labelled and all(name in card.tasks for card in labelled.values())]
    if not names:
        raise ValueError("cards: there is no card, or no task that all of them hold")
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows, columns, figsize=(2.75 * columns + 0.4, 2.35 * rows + 0.55 + 0.2 * len(labelled)),
            layout="constrained", sharey=True, squeeze=False,
        )  # fmt: skip
    plt.close(figure)
    colours = [PALETTE[i % len(PALETTE)] for i in range(len(labelled))]
    for ax, name in zip(axes.flat, names):
        for i, (card, colour) in enumerate(zip(labelled.values(), colours)):
            _draw_task(ax, card.tasks[name], colour, shift=0.05 * (i - (len(labelled) - 1) / 2))
        _finish_panel(ax, name, [card.tasks[name] for card in labelled.values()])
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("accuracy (per cent)")
    handles = [plt.Line2D([], [], color=colour, marker="o", linewidth=1.8) for colour in colours]
    handles.append(plt.Line2D([], [], color="#9A9A9A", linewidth=1.2, linestyle="dashed"))
    texts = [f"{label}  (mean {100 * card.score:.1f})" for label, card in labelled.items()] + ["guessing"]
    figure.legend(handles, texts, loc="outside upper left", frameon=False, fontsize=9, borderaxespad=0.2)
    return figure


def _labelled(cards: Card | Iterable[Card] | dict[str, Card]) -> dict[str, Card]:
    if isinstance(cards, dict):
        return cards
    labelled: dict[str, Card] = {}
    for card in [cards] if isinstance(cards, Card) else cards:
        number = sum(other.name == card.name for other in labelled.values())
        labelled[f"{card.name} ({number + 1})" if number else card.name] = card
    return labelled


def _draw_task(ax: Axes, task: dict, colour: str, shift: float) -> None:
    levels = task["levels"]
    places = [i + shift for i in range(len(levels))]
    means = [100 * statistics.mean(level["accuracy"]) for level in levels]
    trained = sum(level["trained"] for level in levels)
    ax.plot(places[:trained], means[:trained], color=colour, linewidth=1.8)
    ax.plot(places[trained - 1 :], means[trained - 1 :], color=colour, linewidth=1.4, linestyle="dotted")
    for place, level in zip(places, levels):
        ax.plot(
            [place] * len(level["accuracy"]), [100 * share for share in level["accuracy"]], "o", color=colour,
            markersize=4, markerfacecolor=colour if level["trained"] else "white", alpha=0.9,
        )  # fmt: skip


def _finish_panel(ax: Axes, name: str, tasks: Sequence[dict]) -> None:
    longest = max((task["levels"] for task in tasks), key=len)
    guesses = [100 * level["chance"] for level in longest]
    ax.plot(range(len(longest)), guesses, color="#9A9A9A", linewidth=1.2, linestyle="dashed", zorder=1)
    ax.set_xticks(range(len(longest)), [f"{level['level']}{'' if level['trained'] else '*'}" for level in longest])
    ax.set(ylim=(-3, 104), xlim=(-0.25, len(longest) - 0.75), yticks=(0, 25, 50, 75, 100))
    ax.set_xlabel(TASKS[name].unit, fontsize=9)
    ax.set_title(TASKS[name].title, fontsize=10, loc="left")
