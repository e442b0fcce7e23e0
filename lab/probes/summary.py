"""What becomes of a task's runs: the best rate, and the accuracies that it reached."""

import statistics
from collections.abc import Sequence
from functools import cache

from lab.probes.tasks import TASKS, chance, draw_rows
from lab.probes.training import TEST_SEED, TESTED


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
