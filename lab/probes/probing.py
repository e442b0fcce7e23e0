"""`probe`: plans the runs of a card, trains what no cache holds, and puts them together.

How the figures come about. Every task is trained with each learning rate and each seed, a copy for all its levels of
difficulty at once (`full=True`: a copy for each level). The best rate is the one with the highest mean over seeds on
rows that are looked at during training; the accuracies shown are those of that rate on rows drawn by themselves (of
parity with 8 bits there are so few that they are the same). A task's score is the mean over the levels that were
trained, the card's score the mean over tasks.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch

from config import ModelConfig
from lab.costs import decode_state
from lab.kept import keep, matches, read_section
from lab.probes.cache import blocks_of, code_of, read_run, write_run
from lab.probes.card import PROTOCOL, Card
from lab.probes.summary import summarise
from lab.probes.tasks import TASKS
from lab.probes.training import Job, check_subject, is_recipe, run_job, small_copy
from lab.runs import count_parameters
from lab.saving import model_folder
from model import GPT


@dataclass(frozen=True)
class Settings:
    """How much is trained. The quick card's settings are the default."""

    seconds: float = 15.0  # CPU seconds of training for each run, at most
    seeds: int = 2
    rates: tuple[float, ...] = (0.15, 0.6)  # learning rates, in units of those in training.py
    full: bool = False  # a copy for each level of difficulty, and harder levels, too

    def __post_init__(self):
        amounts = (self.seconds, *self.rates)
        if not all(0 < amount < math.inf for amount in amounts) or self.seeds < 1 or not self.rates:
            raise ValueError(
                f"seconds={self.seconds}, seeds={self.seeds}, rates={self.rates}: seconds and rates must be positive "
                "and finite, seeds at least 1, and there must be a rate"
            )

    def to_dict(self) -> dict:
        """As JSON holds it."""
        return asdict(self) | {"seconds": float(self.seconds), "rates": [float(rate) for rate in self.rates]}


FULL = Settings(seeds=3, rates=(0.1, 0.2, 0.4, 0.8), full=True)


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
    code = code_of(cfg)
    jobs = [job for name in names for job in jobs_of(cfg, settings, name)]
    runs = {} if fresh or code is None else {job: run for job in jobs if (run := read_run(job, code))}
    left = [job for job in jobs if job not in runs]
    for job, run in _run_all(left, 1 if _needs_this_process(cfg) else workers, progress):
        runs[job] = run
        if code is not None:
            write_run(job, code, run)
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


def _needs_this_process(cfg: ModelConfig) -> bool:
    """Whether a block is defined in a notebook or a script, where no other process can find it."""
    return any(kind.__module__.partition(".")[0] not in ("model", "blocks", "tools") for kind in blocks_of(cfg))
