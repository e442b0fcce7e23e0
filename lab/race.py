"""`race`: train several architectures for the same number of seconds, on the same batches, and say what came of it.

    from lab.race import race
    race({"mine": "Norm->[Attn|MLP]->+", "base": "Norm->Attn->+->Norm->MLP->+"}, seconds=120)

The entrants take turns of a few seconds, so that whatever else the machine does hits all alike. The learning rate
follows the seconds, not the steps: every entrant is fully annealed when its time is over, however fast its steps are.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from config import PRESETS, ModelConfig, TrainConfig
from lab import data
from lab.evaluation import evaluate
from lab.runs import count_parameters
from tokenizer import get_tokenizer
from train import Step, keep_memory, make_step

TURNS = 12  # turns of each entrant; after each it is scored
CLOCK = 1000  # the schedule's steps, which here are thousandths of the time
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}  # Student's t


@dataclass
class Entrant:
    """One architecture with one seed. `curve`: (seconds trained, steps, bits per byte) after each turn."""

    name: str
    seed: int
    cfg: ModelConfig
    step: Step
    seconds: float = 0.0
    steps: int = 0
    curve: list[tuple[float, int, float]] = field(default_factory=list)

    @property
    def bits_per_byte(self) -> float:
        return self.curve[-1][2]

    def turn(self, batches: data.Batches, until: float, total: float) -> None:
        """Trains until it has had `until` seconds of `total`."""
        begun = time.perf_counter() - self.seconds
        while self.seconds < until:
            self.step.count = min(CLOCK - 1, int(CLOCK * self.seconds / total))  # where the schedule is
            self.step(*batches.get(self.steps))
            self.steps += 1
            self.seconds = time.perf_counter() - begun


@dataclass
class Race:
    """What came of a race. print(it) gives the table and the verdict; in a notebook the curves stand above."""

    entrants: list[Entrant]
    seconds: float
    text: str  # what was read

    def mean(self, name: str) -> float:
        return statistics.mean(e.bits_per_byte for e in self.entrants if e.name == name)

    def names(self) -> list[str]:
        """The entrants' names, best first."""
        return sorted({e.name for e in self.entrants}, key=self.mean)

    def df(self) -> Any:
        """One row for each architecture: bits per byte, parameters, steps and tokens per second, recipe."""
        import pandas as pd

        rows = {}
        for name in self.names():
            own = [e for e in self.entrants if e.name == name]
            tokens = own[0].step.tcfg.batch_size * own[0].cfg.max_seq_len
            rows[name] = {
                "bits per byte": round(self.mean(name), 4),
                "seeds": len(own),
                "parameters": count_parameters(own[0].step.model)["total"],
                "steps": round(statistics.mean(e.steps for e in own)),
                "tokens/s": round(statistics.mean(e.steps * tokens / e.seconds for e in own)),
                "recipe": own[0].cfg.recipe or "(ResidualLayer)",
            }
        return pd.DataFrame(rows).T

    def verdict(self) -> str:
        """Who is ahead, by how much, and how far that can be believed."""
        names = self.names()
        if len(names) < 2:
            return f"{names[0]}: {self.mean(names[0]):.4f} bits per byte"
        first, second = names[:2]
        pairs = [self._of(second, seed) - self._of(first, seed) for seed in sorted({e.seed for e in self.entrants})]
        ahead = statistics.mean(pairs)
        start = (
            f"{first} is ahead of {second} by {ahead:.4f} bits per byte after {self.seconds:g} s each on {self.text}"
        )
        if len(pairs) == 1:
            return f"{start}. One seed proves nothing: race(..., seeds=3) says more."
        spread = T_975.get(len(pairs) - 1, 1.96) * statistics.stdev(pairs) / math.sqrt(len(pairs))
        if spread >= ahead:
            difference = f"{ahead:.4f} ± {spread:.4f} bits per byte (95 %, {len(pairs)} seeds)"
            return f"no difference beyond noise between {first} and {second}: {difference}"
        return f"{start}: {ahead:.4f} ± {spread:.4f} (95 %, {len(pairs)} seeds)"

    def _of(self, name: str, seed: int) -> float:
        return next(e.bits_per_byte for e in self.entrants if e.name == name and e.seed == seed)

    def figure(self) -> Any:
        """Bits per byte against seconds trained."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4), layout="constrained")
        ax = figure.subplots()
        colours = dict(zip(dict.fromkeys(e.name for e in self.entrants), (f"C{i}" for i in range(10)), strict=False))
        for entrant in self.entrants:
            if not entrant.curve:
                continue
            seconds, _, bits = zip(*entrant.curve, strict=True)
            first = entrant.seed == self.entrants[0].seed
            ax.plot(
                seconds,
                bits,
                color=colours[entrant.name],
                alpha=1 if first else 0.5,
                marker=".",
                label=entrant.name if first else None,
            )
        ax.set(xlabel="seconds trained", ylabel="bits per byte", xlim=(0, self.seconds))
        ax.grid(alpha=0.3)
        ax.legend()
        return figure

    def __str__(self) -> str:
        return f"{self.df().to_string()}\n{self.verdict()}"

    __repr__ = __str__


def race(
    entrants: dict[str, str | ModelConfig],
    *,
    seconds: float = 120,
    seeds: int = 1,
    cfg: ModelConfig | None = None,
    tcfg: TrainConfig | None = None,
    documents: int = 50,
) -> Race:
    """Trains each entrant for `seconds` (of training alone, each seed) on the same batches; returns the `Race`.

    entrants: by name, a recipe (put into `cfg`) or a whole ModelConfig of the same vocabulary and context.
    cfg: sizes for the recipes, PRESETS["debug"] with the shipped 512-piece tokenizer unless given.
    tcfg: text, batch size, learning rates (dataset "auto" unless given). documents: how many are scored.
    Raises ValueError for entrants that cannot be compared, RecipeError for a recipe that cannot be built.
    """
    cfg, tcfg = cfg or PRESETS["debug"].replace(qk_norm=True), tcfg or TrainConfig(batch_size=16)
    configs = {name: e if isinstance(e, ModelConfig) else cfg.replace(recipe=e) for name, e in entrants.items()}
    _check(configs, seconds, seeds)
    tok = get_tokenizer(str(cfg.vocab_size) if tcfg.tokenizer == "auto" else tcfg.tokenizer)
    source = data.open_source(tcfg.dataset, valid_dataset=tcfg.valid_dataset, limit_bytes=tcfg.dataset_limit)
    packed, held_out = data.tokenize(source, "train", tok), data.validation_documents(source, documents)
    clock = dataclasses.replace(tcfg, max_iters=CLOCK, warmup_iters=CLOCK // 20)
    keep_memory()
    result, screen = Race([], seconds, source.name), _Screen()
    batches = {}
    for seed in range(tcfg.seed, tcfg.seed + seeds):
        shape = {"batch_size": tcfg.batch_size, "seq_len": next(iter(configs.values())).max_seq_len}
        batches[seed] = data.Batches(packed, seed=seed, **shape)
        for name, config in configs.items():
            own = dataclasses.replace(clock, seed=seed)
            result.entrants.append(Entrant(name, seed, config, make_step(config, own, tcfg.device)))
    for turn in range(1, TURNS + 1):
        for entrant in result.entrants:
            entrant.turn(batches[entrant.seed], seconds * turn / TURNS, seconds)
            bits = evaluate(entrant.step.model, tok, held_out)["bits_per_byte"]
            entrant.curve.append((entrant.seconds, entrant.steps, bits))
        screen.show(result)
    screen.close()
    return result


def _check(configs: dict[str, ModelConfig], seconds: float, seeds: int) -> None:
    if len(configs) < 1 or seconds <= 0 or seeds < 1:
        raise ValueError(f"entrants={list(configs)}, seconds={seconds}, seeds={seeds}: at least one of each is needed")
    for field_name in ("vocab_size", "max_seq_len"):
        values = {name: getattr(config, field_name) for name, config in configs.items()}
        if len(set(values.values())) > 1:
            raise ValueError(
                f"{field_name} differs between the entrants ({values}): they could not read the same batches"
            )


class _Screen:
    """The curves, growing: redrawn in place in a notebook, a line for each turn elsewhere."""

    def __init__(self):
        ipython = sys.modules.get("IPython")
        shell = ipython.get_ipython() if ipython else None
        self.notebook = type(shell).__name__ == "ZMQInteractiveShell"
        self.handle: Any = None

    def show(self, race: Race) -> None:
        if not self.notebook:
            print("  ".join(f"{name} {race.mean(name):.4f}" for name in race.names()), flush=True)
            return
        from IPython.display import display

        figure = race.figure()
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)

    def close(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
