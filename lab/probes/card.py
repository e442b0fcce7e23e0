"""The capability card: all runs of all tasks, put together, kept, shown and drawn.

How the figures come about. Every task is trained with each learning rate and each seed, a copy for all its levels of
difficulty at once (`full=True`: a copy for each level). The best rate is the one with the highest mean over seeds on
rows that are looked at during training; the accuracies shown are those of that rate on other rows. A task's score is
the mean over the levels that were trained, the card's score the mean over tasks.
"""

from __future__ import annotations

import hashlib
import html
import inspect
import json
import statistics
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from config import ModelConfig
from lab.costs import decode_state
from lab.data import cache_folder
from lab.files import read_json, shown, write_json
from lab.kept import keep, matches, read_section
from lab.probes.tasks import TASKS, chance, draw_rows, fingerprint
from lab.probes.training import TEST_SEED, TESTED, Job, check_subject, is_recipe, run_job, small_copy
from lab.runs import count_parameters
from lab.saving import model_folder
from model import GPT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

PROTOCOL = 1  # rises whenever the same architecture would get another card


@dataclass(frozen=True)
class Settings:
    """How much is trained. The quick card's settings are the default."""

    seconds: float = 15.0  # CPU seconds of training for each run, at most
    seeds: int = 2
    rates: tuple[float, ...] = (0.15, 0.6)  # learning rates, in units of those in training.py
    full: bool = False  # a copy for each level of difficulty, and harder levels, too

    def __post_init__(self):
        if self.seconds <= 0 or self.seeds < 1 or not self.rates or min(self.rates) <= 0:
            raise ValueError(
                f"seconds={self.seconds}, seeds={self.seeds}, rates={self.rates}: seconds and rates must be positive, "
                "seeds at least 1, and there must be a rate"
            )

    def to_dict(self) -> dict:
        """As JSON holds it."""
        return asdict(self) | {"seconds": float(self.seconds), "rates": [float(rate) for rate in self.rates]}


FULL = Settings(seeds=3, rates=(0.1, 0.2, 0.4, 0.8), full=True)


# ---------------------------------------------------------------- the card


@dataclass(frozen=True)
class Card:
    """What `probe` found. `tasks`: name -> what `summarise` returns; everything in it is plain JSON."""

    name: str
    architecture: str  # the recipe of a layer in its canonical form
    config: dict  # of the small copy
    settings: dict
    parameters: int  # of the small copy's layers and final norm; embeddings depend on the task
    decode_state: int | None  # numbers that the small copy keeps for a row after 128 tokens; None: it cannot decode
    tasks: dict[str, dict]
    protocol: int = PROTOCOL

    @property
    def score(self) -> float:
        """Mean accuracy over the tasks, 0 to 1."""
        return statistics.mean(task["score"] for task in self.tasks.values())

    @property
    def chance(self) -> float:
        """What guessing scores."""
        return statistics.mean(task["chance"] for task in self.tasks.values())

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> Card:
        """The card that `to_dict` was asked of. Raises ValueError where a field is missing."""
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in values]
        if missing:
            raise ValueError(f"a card of probes lacks {', '.join(missing)}: measure it again with fresh=True")
        return cls(**{name: values[name] for name in names})

    def df(self) -> DataFrame:
        """A row for each task and level: accuracy (mean over seeds), lowest and highest seed, chance, rate, ..."""
        import pandas as pd

        rows = []
        for name, task in self.tasks.items():
            for level in task["levels"]:
                own = level["accuracy"]
                rows.append({
                    "task": name, "level": level["level"], "unit": TASKS[name].unit, "trained": level["trained"],
                    "accuracy": statistics.mean(own), "lowest": min(own), "highest": max(own),
                    "chance": level["chance"], "rate": level["rate"], "cpu seconds to 99 %": level["seconds_to_99"],
                    "diverged": level["diverged"],
                })  # fmt: skip
        return pd.DataFrame(rows)

    def rows(self) -> list[dict[str, str]]:
        """The lines of the card's table, as text."""
        lines = [_line(TASKS[name].title, TASKS[name].unit, task) for name, task in self.tasks.items()]
        spread = _seed_scores(self.tasks)
        lines.append({
            "task": "mean", "accuracy": _percent(self.score), "seeds": _range(spread), "chance": _percent(self.chance),
            "by difficulty": "", "99 % after": "", "rate": "",
        })  # fmt: skip
        return lines

    def heading(self) -> str:
        """What was probed, in which size, and what that costs."""
        s, named = self.settings, "" if self.name == self.architecture else f" of {self.name}"
        state = (
            "no decoding"
            if self.decode_state is None
            else f"decode state {self.decode_state:,} numbers after 128 tokens"
        )
        return (
            f"Capability card{named}: {self.architecture}\n2 layers of width 64, {self.parameters:,} parameters beside "
            f"the embeddings, {state}; {s['seeds']} seeds, rates "
            f"{', '.join(f'{rate:g}' for rate in s['rates'])}, at most {s['seconds']:g} CPU seconds a run"
        )

    def notes(self) -> list[str]:
        """What must be said beside the table."""
        lines = ["Accuracy in per cent, mean over seeds at the best rate. Chance: the best rule that ignores the task."]
        if any(not level["trained"] for task in self.tasks.values() for level in task["levels"]):
            lines.append("*: longer than any row in training; not part of the score.")
        if smaller := [TASKS[name].title for name in self.tasks if TASKS[name].deviates]:
            lines.append(f"Smaller than in MAD, arXiv 2403.17844 (TASKS[...].deviates says how): {', '.join(smaller)}.")
        for name, task in self.tasks.items():
            runs, broken = len(task["runs"]), [run for run in task["runs"] if run["diverged"]]
            if broken:
                first = f"rate {broken[0]['rate']:g}, seed {broken[0]['seed']}: {broken[0]['diverged']}"
                lines.append(f"{TASKS[name].title}: {len(broken)} of {runs} runs diverged ({first}).")
        return lines

    def __str__(self) -> str:
        rows = self.rows()
        widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
        left = ("task", "by difficulty")
        lines = [
            "  ".join(row[key].ljust(w) if key in left else row[key].rjust(w) for key, w in widths.items()).rstrip()
            for row in [{key: key for key in widths}, *rows]
        ]
        return "\n".join([self.heading(), "", *lines, "", *self.notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = self.rows()
        head = "".join(f"<th style='text-align:left'>{html.escape(key)}</th>" for key in rows[0])
        body = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row.values()) + "</tr>"
            for row in rows
        )
        title = html.escape(self.heading()).replace("\n", "<br>")
        notes = "<br>".join(map(html.escape, self.notes()))
        return f"<p>{title}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{notes}</p>"


def _line(title: str, unit: str, task: dict) -> dict[str, str]:
    levels, reached = task["levels"], task["seconds_to_99"]
    solved = [seconds for seconds in reached if seconds is not None]
    after = f"{statistics.mean(solved):.1f} s" if solved else "never"
    if solved and len(solved) < len(reached):
        after += f" ({len(solved)} of {len(reached)})"
    marks = ["" if level["trained"] else "*" for level in levels]
    by = [
        f"{level['level']}{mark}: {100 * statistics.mean(level['accuracy']):.0f}" for level, mark in zip(levels, marks)
    ]
    return {
        "task": title, "accuracy": _percent(task["score"]), "seeds": _range(task["by_seed"]),
        "chance": _percent(task["chance"]), "by difficulty": f"{unit} {', '.join(by)}", "99 % after": after,
        "rate": " ".join(f"{rate:g}" for rate in dict.fromkeys(level["rate"] for level in levels)),
    }  # fmt: skip


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _range(shares: Sequence[float]) -> str:
    return f"{100 * min(shares):.1f}–{100 * max(shares):.1f}"


def _seed_scores(tasks: dict[str, dict]) -> list[float]:
    """The card's score seed by seed."""
    return [statistics.mean(scores) for scores in zip(*(task["by_seed"] for task in tasks.values()))]


# ---------------------------------------------------------------- probing


def probe(
    subject: str | Path | ModelConfig,
    *,
    full: bool = False,
    settings: Settings | None = None,
    tasks: Sequence[str] | None = None,
    name: str | None = None,
    workers: int = 2,
    fresh: bool = False,
    save: bool = True,
    progress: bool = True,
) -> Card:
    """Trains small copies of an architecture on the synthetic tasks; returns its `Card`.

    subject: a recipe, a saved model (its name, or a path to its folder), or a ModelConfig.
    full: a copy for each level of difficulty, harder levels, more rates and seeds: up to 12 times as long.
    settings: other amounts than the quick card's or the full one's. tasks: some of TASKS; None: all.
    name: what the card is called; None: the saved model's name, or the recipe.
    workers: processes, one thread each. With 1, and for blocks that were defined in a notebook, all runs here.
    fresh: train again what was found before. Each finished run is kept in the cache folder, so that an interrupted
    call goes on where it was; a saved model's card is also kept in its evaluation.json, with save=False it is not.
    Raises: ValueError for an unknown task or an architecture that cannot do the tasks (it needs a memory, sees ahead),
    FileNotFoundError for a model that isn't there.
    """
    settings = settings or (FULL if full else Settings())
    names = _task_names(tasks)
    if workers < 1:
        raise ValueError(f"workers={workers} must be at least 1, this process")
    cfg = small_copy(subject)
    saved = None if isinstance(subject, ModelConfig) or is_recipe(subject) else subject
    key = {"protocol": PROTOCOL, "config": cfg.to_dict(), "settings": settings.to_dict(), "names": list(names)}
    kept = read_section(saved, "probes") if saved is not None and not fresh else []
    for record in kept:
        if matches(record, key):
            return _named(Card.from_dict(record), name)
    with torch.random.fork_rng(devices=[]):  # whoever asks keeps their random state
        check_subject(cfg, names)
        model = GPT(cfg)
        state = decode_state(model) if all(getattr(module, "decodes", True) for module in model.modules()) else None
        found = _measure(cfg, settings, names, workers, fresh, progress)
    card = Card(
        name=cfg.architecture if saved is None else model_folder(saved).name, architecture=cfg.architecture,
        config=cfg.to_dict(), settings=settings.to_dict(), parameters=count_parameters(model)["other"],
        decode_state=state, tasks=found,
    )  # fmt: skip
    if saved is not None and save:
        keep(saved, "probes", key, key | card.to_dict())
    return _named(card, name)


def _task_names(tasks: Sequence[str] | None) -> tuple[str, ...]:
    """The tasks asked for, each once. Raises ValueError for an unknown one, or none."""
    names = tuple(dict.fromkeys(TASKS if tasks is None else [tasks] if isinstance(tasks, str) else tasks))
    for name in names:
        if name not in TASKS:
            raise ValueError(f"task {name!r} is unknown; choose from {', '.join(TASKS)}")
    if not names:
        raise ValueError("tasks=[] asks for nothing: name at least one, or None for all")
    return names


def _named(card: Card, name: str | None) -> Card:
    return card if name is None else replace(card, name=name)


def _measure(
    cfg: ModelConfig, settings: Settings, names: Sequence[str], workers: int, fresh: bool, progress: bool
) -> dict[str, dict]:
    """What `summarise` says of each task: runs from the cache, or trained and put there as soon as they end."""
    code = _fingerprint_of_code(cfg)
    jobs = [job for name in names for job in jobs_of(cfg, settings, name)]
    runs = {} if fresh or code is None else {job: run for job in jobs if (run := _read_cache(job, code))}
    left = [job for job in jobs if job not in runs]
    for job, run in _run_all(left, 1 if _needs_this_process(cfg) else workers, progress):
        runs[job] = run
        if code is not None:
            path, key = _cache_file(job, code)
            write_json(path, {"key": key, "run": run})
    return {name: summarise(name, [runs[job] for job in jobs if job.task == name]) for name in names}


def jobs_of(cfg: ModelConfig, settings: Settings, name: str) -> list[Job]:
    """The copies to train for a task: each rate with each seed; with `full`, for each level by itself."""
    task = TASKS[name]
    levels = task.levels + (task.more if settings.full else ())
    groups = [(level,) for level in levels] if settings.full else [levels]
    beyond = (2 * levels[-1],) if task.beyond else ()
    tested = [group + (beyond if levels[-1] in group else ()) for group in groups]
    return [
        Job(cfg.to_dict(), name, group, asked, float(rate), seed, float(settings.seconds))
        for group, asked in zip(groups, tested) for rate in settings.rates for seed in range(settings.seeds)
    ]  # fmt: skip


def _run_all(jobs: Sequence[Job], workers: int, progress: bool) -> Iterator[tuple[Job, dict]]:
    """Each job with its result, as they are finished. Raises RuntimeError if worker processes can't be started."""
    from tqdm import tqdm

    one_by_one = workers == 1 or len(jobs) < 2
    bar = tqdm(
        total=len(jobs), desc="probing", unit=" runs", disable=not progress or not jobs, leave=False, file=sys.stderr
    )
    with bar:
        for job, run in ((job, run_job(job)) for job in jobs) if one_by_one else _run_in_processes(jobs, workers):
            bar.update()
            yield job, run


def _run_in_processes(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, dict]]:
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        started = {pool.submit(run_job, job): job for job in jobs}
        for future in as_completed(started):
            yield started[future], future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process ended by itself: in a script, call probe() below `if __name__ == '__main__':`; where "
            "memory is short or processes can't be started, use workers=1"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def summarise(name: str, runs: Sequence[dict]) -> dict:
    """A task's runs in short, for each level at the rate that was best on the watched rows.

    Returns {"score", "by_seed" (the score seed by seed), "chance", "seconds_to_99" (of each chosen run, None: never),
    "levels": [...], "runs": those given, in order}. A level: level, trained, accuracy (seed by seed), chance, rate,
    seconds_to_99 (seed by seed), diverged (how many runs of all rates).
    """
    runs = sorted(runs, key=lambda run: (run["levels"], run["rate"], run["seed"]))
    levels, reached = [], []
    for group in dict.fromkeys(tuple(run["levels"]) for run in runs):
        own = [run for run in runs if tuple(run["levels"]) == group]
        best = _best_rate(own)
        chosen = [run for run in own if run["rate"] == best]
        reached += [run["seconds_to_99"] for run in chosen]
        for level in map(int, chosen[0]["accuracy"]):
            levels.append({
                "level": level, "trained": level in group, "accuracy": [run["accuracy"][str(level)] for run in chosen],
                "chance": _chance(name, level), "rate": best, "seconds_to_99": [run["seconds_to_99"] for run in chosen],
                "diverged": sum(run["diverged"] is not None for run in own),
            })  # fmt: skip
    trained = [level for level in levels if level["trained"]]
    by_seed = [round(statistics.mean(scores), 4) for scores in zip(*(level["accuracy"] for level in trained))]
    return {
        "score": round(statistics.mean(by_seed), 4), "by_seed": by_seed,
        "chance": round(statistics.mean(level["chance"] for level in trained), 4), "seconds_to_99": reached,
        "levels": levels, "runs": runs,
    }  # fmt: skip


def _best_rate(runs: Sequence[dict]) -> float:
    """The rate with the highest mean over seeds on the watched rows; of equals the faster one."""

    def merit(rate: float) -> tuple[float, float]:
        own = [run for run in runs if run["rate"] == rate]
        return statistics.mean(run["watched"] for run in own), -statistics.mean(run["cpu_seconds"] for run in own)

    return max(dict.fromkeys(run["rate"] for run in runs), key=merit)


@cache
def _chance(name: str, level: int) -> float:
    x, y = draw_rows(TASKS[name], level, TESTED, TEST_SEED, held_out=True)
    return round(chance(TASKS[name], x, y), 4)


# ---------------------------------------------------------------- the cache


def _cache_file(job: Job, code: str) -> tuple[Path, dict]:
    """Where a run is kept, and what it depends on. A card with more seeds or rates so goes on from a smaller one."""
    key = {"protocol": PROTOCOL, "rows": fingerprint(TASKS[job.task]), "code": code} | asdict(job)
    key |= {"levels": list(job.levels), "tested": list(job.tested)}  # as JSON holds them
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / "probes" / f"{job.task}-{digest}.json", key


def _read_cache(job: Job, code: str) -> dict | None:
    """The run kept there, None if there is none. A damaged file is named in a warning, and its run is done again."""
    path, key = _cache_file(job, code)
    if not path.is_file():
        return None
    try:
        content = read_json(path)
        if content.get("key") != key:
            raise ValueError(f"{shown(path)} does not hold what its name says")
        summarise(job.task, [content["run"]])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(f"{shown(path)} is damaged ({error}): this run is done again", stacklevel=2)
        return None
    return content["run"]


def _blocks(cfg: ModelConfig) -> list[type]:
    """The classes of this project, or a notebook's, that the model is made of."""
    kinds = {type(module) for module in GPT(cfg).modules()}
    return sorted(
        (kind for kind in kinds if not kind.__module__.startswith("torch")), key=lambda kind: kind.__qualname__
    )


def _fingerprint_of_code(cfg: ModelConfig) -> str | None:
    """Stands for the blocks' source, so that a changed block is trained again; None where a source can't be read."""
    try:
        sources = [inspect.getsource(kind) for kind in _blocks(cfg)]
    except (OSError, TypeError):
        return None
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()[:16]


def _needs_this_process(cfg: ModelConfig) -> bool:
    """Whether a block is defined in a notebook or a script, where no other process can find it."""
    return any(kind.__module__.partition(".")[0] not in ("model", "blocks", "tools") for kind in _blocks(cfg))


# ---------------------------------------------------------------- pictures


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
    texts = [f"{label}  (mean {_percent(card.score)})" for label, card in labelled.items()] + ["guessing"]
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
