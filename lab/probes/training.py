"""Trains one small copy of an architecture on one task: what the capability card repeats for rates and seeds.

cfg = small_copy("Norm->RGLRU->+->Norm->MLP->+")            # the card's sizes, the recipe's architecture
run_job(Job(cfg.to_dict(), "recall", (2, 4, 8), (2, 4, 8), rate=1.0, seed=0, seconds=15))
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import ModelConfig, TrainConfig
from lab.checks import randomised
from lab.probes.tasks import IGNORE, TASKS, Task, draw_rows
from lab.saving import load_model
from model import GPT, Context
from train import keep_memory, make_optimizers

ROWS = 32  # in a batch
ADAMW_RATE, MUON_RATE = 0.01, 0.02  # at rate=1; Muon learns the layers' matrices, AdamW everything else
WARM_UP = 40  # steps
WATCHED, WATCHES = 64, 20  # rows of each level that decide when to stop; how often in a run they are looked at
TESTED = 256  # rows of each level that the accuracy is measured on
SOLVED = 0.99
TRAIN_SEED, WATCH_SEED, TEST_SEED = 1_000_003, 11, 12
DIM, LAYERS, HEADS = 64, 2, 4


# ---------------------------------------------------------------- what is trained


def small_copy(subject: str | Path | ModelConfig) -> ModelConfig:
    """The architecture of a recipe, a saved model or a config, in the card's sizes: 2 layers of width 64, 4 heads.

    Kept are the recipe, kinds of blocks, norms and positions, and the proportions of MLP and key/value heads. A recipe
    by itself gets the settings of a ModelConfig, with QK-norm, without which attention learns much more slowly.
    Raises: ValueError for a recipe that cannot be read, FileNotFoundError for a model that isn't there.
    """
    cfg = subject if isinstance(subject, ModelConfig) else _config_of(subject)
    width = DIM // HEADS
    turned = None if cfg.rope_dim is None else max(2, 2 * (width * cfg.rope_dim // cfg.head_dim // 2))
    shared = max(1, HEADS * cfg.num_kv_heads // cfg.num_q_heads)
    return cfg.replace(
        dim=DIM, num_layers=LAYERS, num_q_heads=HEADS, num_kv_heads=max(g for g in (1, 2, 4) if g <= shared),
        head_dim=None, rope_dim=turned, rope_factor=1.0, rope_original_len=None, mlp_hidden=None,
        mlp_hidden_mult=cfg.mlp_hidden / cfg.dim, embed_dim=None, dropout_rate=0.0, vocab_size=64, max_seq_len=128,
    )  # fmt: skip


def is_recipe(subject: object) -> bool:
    """Whether this is a recipe, not a saved model's name or path: a recipe adds or sets something."""
    return isinstance(subject, str) and "->" in subject


def _config_of(subject: str | Path) -> ModelConfig:
    if is_recipe(subject):
        return ModelConfig(recipe=subject, qk_norm=True)
    return load_model(subject)[2]


def model_for(cfg: ModelConfig, task: Task, levels: tuple[int, ...]) -> GPT:
    """A fresh model whose vocabulary and context fit the task's rows, weights from PyTorch's random state."""
    lengths = [task.length(level) for level in levels]
    fitted = cfg.replace(vocab_size=task.vocab(max(levels)), max_seq_len=max(lengths))
    return Compressor(fitted) if task.whole else GPT(fitted)


class Compressor(GPT):
    """A GPT whose last position has to hold the whole row: place t is read off its vector and a learned position.

    norm(Wout(gelu(Win(x_T + p_t)))), x_T being what the layers and the final norm made of the last position: the same
    small decoder for every architecture, whose parameters don't count as the architecture's.
    Source: the autoencoder of MAD, arXiv 2403.17844, whose positions are fixed sines.
    """

    def __init__(self, cfg: ModelConfig):
        super().__init__(cfg)
        self.places = nn.Embedding(cfg.max_seq_len, cfg.dim)
        self.decoder = nn.Sequential(
            nn.Linear(cfg.dim, 2 * cfg.dim), nn.GELU(), nn.Linear(2 * cfg.dim, cfg.dim), nn.RMSNorm(cfg.dim)
        )

    def features(self, tokens: Tensor, ctx: Context | None = None) -> Tensor:
        """(B, T) int64 -> (B, T, D)"""
        code = super().features(tokens, ctx)[:, -1:]  # (B, 1, D)
        return self.decoder(code + self.places.weight[: tokens.shape[1]])


def check_subject(cfg: ModelConfig, tasks: tuple[str, ...]) -> None:
    """Raises ValueError if the tasks can't be given to this architecture: it needs more than tokens, or sees ahead."""
    name = cfg.architecture
    model = GPT(cfg)
    for module in model.modules():
        if getattr(module, "needs", ()):
            raise ValueError(
                f"recipe={name!r}: {type(module).__name__} needs ctx.{module.needs[0]}, which the tasks have not; "
                "probe the recipe without it"
            )
    try:
        for task in map(TASKS.get, tasks):
            for level in task.levels:
                _try_rows(cfg, task, level)
        _check_causality(randomised(model).double(), draw_rows(TASKS["recall"], 8, 4, 0)[0] % cfg.vocab_size)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"recipe={name!r} can't be probed: {error}") from error


def _try_rows(cfg: ModelConfig, task: Task, level: int) -> None:
    model = model_for(cfg, task, (level,))
    x = torch.from_numpy(draw_rows(task, level, 2, 0)[0])
    out = model(x)
    if out.shape[:2] != x.shape:
        raise ValueError(f"{tuple(x.shape)} tokens give logits {tuple(out.shape)}, not one answer for each token")


def _check_causality(model: GPT, rows: np.ndarray) -> None:
    """A block that sees ahead would read the answer, which stands one token later."""
    x = torch.from_numpy(rows)
    other = x.clone()
    other[:, -8:] = (other[:, -8:] + 1) % model.cfg.vocab_size
    with torch.no_grad():
        before, after = (model(tokens)[:, :-8] for tokens in (x, other))
    if not torch.allclose(before, after, rtol=1e-6, equal_nan=True):
        raise ValueError("changing the last tokens of a row changes what comes before them: a block sees ahead")


# ---------------------------------------------------------------- one run


@dataclass(frozen=True, eq=False)
class Job:
    """One copy to train: plain values, so that it can be sent to another process. Each job equals itself alone."""

    cfg: dict
    task: str
    levels: tuple[int, ...]  # trained on, by turns
    tested: tuple[int, ...]
    rate: float  # of both learning rates at their peak, in units of ADAMW_RATE and MUON_RATE
    seed: int
    seconds: float  # CPU seconds of training, at most


def run_job(job: Job) -> dict:
    """Trains one copy on one thread; returns what the card keeps of it.

    Keys: task, levels, rate, seed, steps, cpu_seconds, seconds_to_99 (None: never), watched (accuracy on the rows that
    were looked at while training), accuracy ({level: share of right answers} on rows seen at the end alone), diverged
    (what happened, or None). Only the training steps' CPU time counts, not drawing rows or looking.
    """
    keep_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.seed)
            return _Run(job).result()
    finally:
        torch.set_num_threads(threads)


class _Run:
    def __init__(self, job: Job):
        self.job, self.task = job, TASKS[job.task]
        self.model = model_for(ModelConfig.from_dict(job.cfg), self.task, (*job.levels, *job.tested))
        tcfg = TrainConfig(lr_max=ADAMW_RATE * job.rate, muon_lr=MUON_RATE * job.rate)
        self.optimizers = make_optimizers(self.model, tcfg)
        self.watched = [_tensors(self.task, level, WATCHED, WATCH_SEED, held_out=True) for level in job.levels]
        self.steps, self.spent, self.solved_at, self.diverged = 0, 0.0, None, None

    def result(self) -> dict:
        job, watched = self.job, 0.0
        for watch in range(1, WATCHES + 1):
            while self.spent < job.seconds * watch / WATCHES and self.diverged is None:
                self._step()
            accuracies = [accuracy(self.model, x, y) for x, y in self.watched]
            watched = sum(accuracies) / len(accuracies)
            if min(accuracies) >= SOLVED:
                self.solved_at = self.spent
            if self.solved_at or self.diverged:
                break
        tests = {level: _tensors(self.task, level, TESTED, TEST_SEED, held_out=True) for level in job.tested}
        return {
            "task": job.task, "levels": list(job.levels), "rate": job.rate, "seed": job.seed, "steps": self.steps,
            "cpu_seconds": round(self.spent, 2),
            "seconds_to_99": None if self.solved_at is None else round(self.solved_at, 2),
            "watched": round(watched, 4),
            "accuracy": {str(level): round(accuracy(self.model, x, y), 4) for level, (x, y) in tests.items()},
            "diverged": self.diverged,
        }  # fmt: skip

    def _step(self) -> None:
        level = self.job.levels[self.steps % len(self.job.levels)]
        x, y = _tensors(self.task, level, ROWS, TRAIN_SEED * (self.job.seed + 1) + self.steps)
        begun = time.process_time()
        loss = answer_loss(self.model, x, y)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if not math.isfinite(loss.item() + norm.item()):
            self.diverged = f"loss {loss.item():.3g} and gradient {norm.item():.3g} after {self.steps} steps"
            return
        share = min(1.0, (self.steps + 1) / WARM_UP) * max(0.0, 1 - self.spent / self.job.seconds)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * share
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        for module in self.model.modules():
            if hasattr(module, "after_step"):
                module.after_step()
        self.steps += 1
        self.spent += time.process_time() - begun


def _tensors(task: Task, level: int, count: int, seed: int, *, held_out: bool = False) -> tuple[Tensor, Tensor]:
    x, y = draw_rows(task, level, count, seed % 2**32, held_out=held_out)
    return torch.from_numpy(x), torch.from_numpy(y)


def answer_loss(model: GPT, x: Tensor, y: Tensor) -> Tensor:
    """Mean of -ln p(answer) in nats over the positions that ask for one, and the blocks' auxiliary losses."""
    ctx = model.context(x)
    features, asked = model.features(x, ctx), y != IGNORE
    return F.cross_entropy(model.head(features[asked]), y[asked]) + sum(ctx.aux.values())


@torch.no_grad()
def accuracy(model: GPT, x: Tensor, y: Tensor) -> float:
    """Share of the answers that are the likeliest token. Logits that are not numbers are never right."""
    model.eval()
    asked = y != IGNORE
    logits = model.head(model.features(x)[asked]).nan_to_num(nan=-math.inf, posinf=math.inf)
    right = (logits.argmax(-1) == y[asked]) & logits.isfinite().all(-1)
    model.train()
    return right.float().mean().item()
