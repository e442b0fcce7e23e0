"""Training, the same for notebook and terminal: schedule, optimizers, one step, the loop.

    run = train(PRESETS["0.5m_5foot11_and_skinnyfat"], TrainConfig(model_name="mine", dataset="storyworld"))
    run.model, run.tok, run.folder, run.record["final"]["bits_per_byte"]

    python train.py --preset 0.5m_5foot11_and_skinnyfat --dataset my_stories.txt --model-name mine --max-iters 1000
    torchrun --nproc-per-node=2 train.py --preset 2m          # on two GPUs: lab/distributed.py

Stop it at any time (Ctrl-C, or the notebook's stop button) and start it again with the same settings: it goes on from
where it was, and on a CPU ends with the very bits that an undisturbed run would have had.
"""

import contextlib
import copy
import ctypes
import itertools
import math
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# An idle thread spins for some microseconds, then sleeps. To spin for milliseconds, PyTorch's default, makes a step
# many times slower on a machine with other work; to sleep at once, up to twice as slow on a quiet one. It counts where
# this file is imported before torch, as by `python train.py`. (Read by GNU's OpenMP, on Linux.)
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import PRESETS, TRAINING, ModelConfig, TrainConfig
from lab import chunked_loss, data, distributed, files, fused_attention, machine, runs
from lab.evaluation import evaluate
from lab.muon import Muon
from lab.progress import Progress, make_progress
from lab.saving import load_model, save_model
from model import GPT
from tokenizer import Tokenizer, get_tokenizer

# ---------------------------------------------------------------- schedule


def lr_at(step: int, tcfg: TrainConfig) -> float:
    """AdamW's learning rate at `step` (0 to max_iters - 1): warm-up, annealing in cycles, a flat end.

    Warm-up rises linearly and reaches lr_max at step `warmup_iters`. Annealing falls from lr_max towards lr_min in
    num_restarts + 1 cycles, each T_mult times as long as the one before, and starts each from lr_max. The last
    `final_flat_iters` steps stay at lr_min. "constant" stays at lr_max, "wsd" does so until its decay.
    Source: cosine with warm restarts: Loshchilov & Hutter 2016, arXiv 1608.03983, eq. 5; warm-up-stable-decay: Hu et
    al. 2024, arXiv 2404.06395, section 4.2.
    """
    if step < tcfg.warmup_iters:
        return tcfg.lr_max * (step + 1) / (tcfg.warmup_iters + 1)
    span = tcfg.max_iters - tcfg.warmup_iters - tcfg.final_flat_iters  # steps of annealing
    step = step - tcfg.warmup_iters
    if step >= span:
        return tcfg.lr_max if tcfg.anneal_type == "constant" else tcfg.lr_min
    height = SHAPES[tcfg.anneal_type](step / span, tcfg)  # 1 at the peak, 0 at the end
    return tcfg.lr_min + (tcfg.lr_max - tcfg.lr_min) * height


def _through_cycle(done: float, tcfg: TrainConfig) -> float:
    """How far the current restart cycle is, 0 to 1, when a share `done` of all annealing has passed."""
    lengths = [tcfg.T_mult**cycle for cycle in range(tcfg.num_restarts + 1)]
    done = done * sum(lengths)
    for length in lengths[:-1]:
        if done < length:
            return done / length
        done -= length
    return done / lengths[-1]


SHAPES = {
    "cosine": lambda done, tcfg: 0.5 * (1 + math.cos(math.pi * _through_cycle(done, tcfg))),
    "linear": lambda done, tcfg: 1 - _through_cycle(done, tcfg),
    "constant": lambda done, tcfg: 1.0,
    "wsd": lambda done, tcfg: min(1.0, (1 - done) / tcfg.wsd_decay_fraction),
}


# ---------------------------------------------------------------- one step


def make_optimizers(model: nn.Module, tcfg: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the layers' matrices and AdamW for embeddings, head, norms and biases.

    Only matrices decay. Each group remembers its peak as "peak_lr", which the schedule scales.
    Source: AdamW: Loshchilov & Hutter 2017, arXiv 1711.05101; Muon: Jordan et al. 2024, as in `torch.optim.Muon`.
    """
    named = list(dict(model.named_parameters()).items())
    muon = [p for n, p in named if tcfg.optimizer == "muon" and p.ndim == 2 and n.startswith("layers.")]
    rest = [p for _, p in named if not any(p is m for m in muon)]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": tcfg.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    settings = dict(lr=tcfg.lr_max, betas=(tcfg.beta1, tcfg.beta2), eps=tcfg.adam_eps)
    on_gpu = any(p.is_cuda for p in rest)
    optimizers = [torch.optim.AdamW(groups, fused=on_gpu or None, **settings)]
    if muon:
        optimizers.append(Muon(muon, lr=tcfg.muon_lr, weight_decay=tcfg.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


class Step:
    """One optimizer step: forward and backward through every micro-batch, clipping, update.

    step(x, y) takes (A*B, T) tokens and targets, where A is grad_accum_steps, and returns the mean loss in nats per
    token as a number; `grad_norm` is then the gradient's length before clipping, `lr` AdamW's learning rate and
    `count` the number of steps taken.
    Raises FloatingPointError, before anything is changed, when loss or gradient are not finite.
    """

    def __init__(self, model: nn.Module, tcfg: TrainConfig):
        self.model, self.tcfg = model, tcfg
        self.device = next(model.parameters()).device
        self.precision = pick_precision(tcfg.precision, self.device)
        self.kernel = pick_kernel(tcfg.kernel, self.device)
        self.fused = fused_attention.load() if self.kernel == "compiled" else None
        graph = self.device.type == "cuda" if tcfg.compile is None else tcfg.compile
        self.features = torch.compile(model.features) if graph else model.features
        self.losses = distributed.wrap(model, self._losses)
        self.optimizers = make_optimizers(model, tcfg)
        self.count, self.lr, self.grad_norm = 0, 0.0, 0.0

    def __call__(self, x: Tensor, y: Tensor) -> float:
        self.lr = lr_at(self.count, self.tcfg)
        distributed.own_dropout(self.tcfg.seed, self.count)
        loss = distributed.mean(self.backward(x, y))
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.tcfg.grad_clip or math.inf)
        self.grad_norm = norm.item()
        if not math.isfinite(loss + self.grad_norm):
            self.model.zero_grad(set_to_none=True)
            raise FloatingPointError(self.what_went_wrong(loss))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * self.lr / self.tcfg.lr_max
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        for module in self.model.modules():
            if hasattr(module, "after_step"):  # what a block changes by rule, not by gradient
                module.after_step()
        self.count += 1
        return loss

    def backward(self, x: Tensor, y: Tensor) -> float:
        """Adds up the gradients of all micro-batches; returns the mean loss, without the blocks' auxiliary losses."""
        total, parts = 0.0, self.tcfg.grad_accum_steps
        if len(x) % parts:
            raise ValueError(f"grad_accum_steps={parts} must divide the {len(x)} rows of the batch")
        self.model.train()
        for part, (part_x, part_y) in enumerate(zip(x.chunk(parts), y.chunk(parts), strict=True), start=1):
            with distributed.exchange(self.losses, now=part == parts):
                loss, auxiliary = self.losses(self._on_device(part_x), self._on_device(part_y))
                ((loss + auxiliary) / parts).backward()
            total = total + loss.detach() / parts
        return total.item()  # the one moment when the CPU waits for a GPU's forward and backward passes

    def _on_device(self, rows: Tensor) -> Tensor:
        """The rows where the model is; to a GPU they travel while the CPU goes on."""
        if self.device.type != "cuda":
            return rows.to(self.device)
        return rows.pin_memory().to(self.device, non_blocking=True)

    def _losses(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | int]:
        """The mean loss in nats per token, and the sum of the blocks' auxiliary losses."""
        ctx = self.model.context(x)
        ctx.fused = self.fused
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = chunked_loss.cross_entropy(self.features(x, ctx), y, self.model.head)
        return loss, sum(ctx.aux.values())

    def what_went_wrong(self, loss: float) -> str:
        """Step, learning rate and the likely cause of a number that is not finite."""
        broken = [n for n, p in self.model.named_parameters() if not p.isfinite().all()]
        if broken:
            cause = f"the weights were not finite before this step ({broken[0]} first): start from another checkpoint"
        elif math.isfinite(loss):
            cause = "the loss is finite but its gradient is not: a division by zero or a root of zero in a block"
        elif self.count <= self.tcfg.warmup_iters:
            cause = "this early, most likely an operation of a block (log, sqrt, division) on this batch"
        else:
            cause = "most likely a learning rate that is too high: halve lr_max and muon_lr, or warm up for longer"
        return f"loss={loss} and gradient norm={self.grad_norm} at step {self.count} (lr={self.lr:.3g}): {cause}"

    def state_dict(self) -> dict:
        """What has to be kept to go on exactly: weights, optimizers, step, and all random state."""
        state = {"step": self.count, "model": self.model.state_dict(), "torch_rng": torch.get_rng_state()}
        state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        return state

    def load_state_dict(self, state: dict) -> None:
        self.count = state["step"]
        self.model.load_state_dict(state["model"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        torch.set_rng_state(state["torch_rng"])
        if "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)


def make_step(cfg: ModelConfig, tcfg: TrainConfig, device: str = "auto") -> Step:
    """A fresh model and `step(x, y) -> loss`: one optimizer step on it, exactly as the loop takes it."""
    keep_memory()
    torch.manual_seed(tcfg.seed)
    return Step(GPT(cfg).to(pick_device(device)), tcfg)


# ---------------------------------------------------------------- machine


def pick_device(name: str) -> torch.device:
    """ "auto" is a GPU where there is one, else the CPU. Raises ValueError for a device this machine lacks."""
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in have.items() if there))
    if not have[name.partition(":")[0]]:
        raise ValueError(f"device={name!r} is not on this machine; it has {[k for k, there in have.items() if there]}")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> str:
    """ "auto" is bf16 where the processor multiplies it in hardware, else fp32; never fp16, whose range is small."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "fp32"


def pick_kernel(name: str, device: torch.device, say: Callable[[str], object] = print) -> str:
    """ "auto" is "compiled" on a CPU where that attention can be had, else "plain".

    `say` gets a line before the kernel is built for the first time, and why it can't be had where it can't.
    Raises ValueError if "compiled" is asked for in vain.
    """
    if name == "plain" or (name == "auto" and device.type != "cpu"):
        return "plain"
    if device.type != "cpu":
        raise ValueError(f"kernel='compiled' is for a CPU, not for device='{device}': use 'plain' or 'auto'")
    try:
        fused_attention.load(say=say)
    except fused_attention.Unavailable as error:
        if name == "compiled":
            raise ValueError(f"kernel='compiled' can't be had here: {error}. Use kernel='plain' or 'auto'") from error
        say(f"attention in plain PyTorch: {error}")
        return "plain"
    return "compiled"


def keep_memory() -> None:
    """Asks glibc (Linux) to keep freed memory for the next step; giving it back costs up to half of a step's time."""
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # from glibc's malloc.h
    mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, 2**31 - 1), mallopt(M_TOP_PAD, 2**28)


# ---------------------------------------------------------------- the loop

PROBE_TOKENS = 1024  # tokens of a trial step that helps to choose precision and kernel


@dataclass
class Run:
    """What `train` returns. `finished` is False after an interruption; the same call then goes on."""

    folder: Path
    model: GPT
    tok: Tokenizer
    record: dict  # as in run.json
    finished: bool

    def __repr__(self) -> str:
        return f"Run({self.folder.name!r}, finished={self.finished}, final={self.record.get('final')})"


def train(cfg: ModelConfig, tcfg: TrainConfig, *, root: Path | None = None, progress: Progress | None = None) -> Run:
    """Trains a GPT of `cfg` as `tcfg` says and saves it under `root` (trained_models/); returns the `Run`.

    An unfinished run of the same name and settings is resumed; a finished one is left alone and the new one gets the
    name with -2 (-3, ...). Ctrl-C saves a checkpoint and returns. The saved model is the best by validation.
    Raises ValueError for settings that don't fit one another or an unfinished run of the same name, and
    FloatingPointError when the loss stops being finite; what was trained until then is kept.
    """
    keep_memory()
    distributed.join(pick_device(tcfg.device))
    silent = None if distributed.is_first() else Progress()
    job = _Job(cfg, tcfg, silent or progress or make_progress())
    with job.claim(root or files.TRAINED_MODELS):
        return job.run()


class _Job:
    """One call of `train`: checks that text, tokenizer and model fit, claims the folder, then runs the loop."""

    def __init__(self, cfg: ModelConfig, tcfg: TrainConfig, progress: Progress):
        self.cfg, self.tcfg, self.progress = cfg, tcfg, progress
        self.device = pick_device(tcfg.device)
        self.initial, self.tok = self._start_from(cfg, tcfg)
        if self.tok.vocab_size != cfg.vocab_size:
            raise ValueError(
                f"vocab_size={cfg.vocab_size} differs from the tokenizer's {self.tok.vocab_size}: "
                f"use cfg.replace(vocab_size=tok.vocab_size), or another tokenizer than {tcfg.tokenizer!r}"
            )
        self._open_text()

    @staticmethod
    def _start_from(cfg: ModelConfig, tcfg: TrainConfig) -> tuple[GPT | None, Tokenizer]:
        """The saved model to go on with, or None, and the tokenizer."""
        if not tcfg.init_from:
            return None, get_tokenizer(str(cfg.vocab_size) if tcfg.tokenizer == "auto" else tcfg.tokenizer)
        model, tok, saved = load_model(tcfg.init_from)
        if saved != cfg:
            raise ValueError(
                f"init_from={tcfg.init_from!r} has another architecture ({runs.differences(saved, cfg)}): "
                "pass its own config, the third thing that load_model returns"
            )
        return model, tok

    @contextlib.contextmanager
    def claim(self, root: Path) -> Iterator[None]:
        """Takes a folder for this run alone, and builds the model there or restores its checkpoint."""
        asked, threads = self.tcfg, self.tcfg.num_threads or torch.get_num_threads()
        here = asked.replace(device=str(self.device), num_threads=threads)
        first = distributed.is_first()  # the folder that it finds is everyone's
        claimed = distributed.share(runs.claim_folder(root, self.cfg, asked, here) if first else None)
        self.folder, self.tcfg, checkpoint = claimed
        with runs.locked(self.folder) if first else contextlib.nullcontext():
            torch.set_num_threads(self.tcfg.num_threads)
            torch.manual_seed(self.tcfg.seed)
            model = (self.initial or GPT(self.cfg)).to(self.device)
            self.tcfg = self._choose(model)
            self.step = Step(model, self.tcfg)
            self.log, self.best, self.elapsed, self.losses = runs.Log(self.folder), None, 0.0, []
            self.memory: dict[str, float | None] = {}
            self.past = runs.past_of(self.tcfg.init_from)
            if checkpoint is not None:
                self._restore(runs.load_checkpoint(checkpoint))
            yield

    def _open_text(self) -> None:
        tcfg = self.tcfg
        distributed.check_rows(tcfg.batch_size)
        with distributed.first_then_others():
            source = data.open_source(tcfg.dataset, valid_dataset=tcfg.valid_dataset, limit_bytes=tcfg.dataset_limit)
            self.progress.say(source.notice)
            packed = data.tokenize(source, "train", self.tok)
        if distributed.share(packed.fingerprint) != packed.fingerprint:  # "auto" depends on the hub's answer
            raise ValueError(f"dataset={tcfg.dataset!r} is not the same text in all processes: give a path")
        rows = tcfg.batch_size * tcfg.grad_accum_steps
        self.batches = data.Batches(packed, batch_size=rows, seq_len=self.cfg.max_seq_len, seed=tcfg.seed)
        self.documents = data.validation_documents(source, tcfg.eval_documents)
        self.tokens_per_step = rows * self.cfg.max_seq_len
        self.text = {
            "name": source.name, "fingerprint": source.fingerprint, "documents": packed.num_documents,
            "bytes": packed.num_bytes, "tokens": packed.num_tokens,
        }  # fmt: skip

    @property
    def tokens(self) -> int:
        """Tokens processed so far, with those of the model that this run started from."""
        return self.past.get("tokens_seen", 0) + self.step.count * self.tokens_per_step

    @property
    def seconds(self) -> float:
        return self.past.get("seconds", 0.0) + self.elapsed

    # ------------------------------------------------ running

    def run(self) -> Run:
        self._announce()
        if not self.log.rows:
            self._evaluate()
            self._checkpoint()
        with _stop_button() as stop:
            self.clock = time.perf_counter() - self.elapsed
            while self.step.count < self.tcfg.max_iters and not self._stopped(stop):
                self._one_step()
        finished = self.step.count == self.tcfg.max_iters
        record = None
        if distributed.is_first():
            record = self._finish() if finished else self._pause()
        record, best = distributed.share((record, self.best))
        if finished:
            self.step.model.load_state_dict(best["weights"])
        return Run(self.folder, self.step.model.eval(), self.tok, record, finished)

    def _stopped(self, stop: threading.Event) -> bool:
        """Whether any process was asked to stop: all of them answer alike, and so stop after the same step."""
        return distributed.mean(float(stop.is_set())) > 0

    def _batch(self) -> tuple[Tensor, Tensor]:
        """The next step's inputs and targets, of which each process takes its own rows."""
        x, y = self.batches.get(self.step.count)
        parts = self.tcfg.grad_accum_steps
        return distributed.own_rows(x, parts), distributed.own_rows(y, parts)

    def _one_step(self) -> None:
        tcfg, started = self.tcfg, time.perf_counter()
        try:
            loss = self.step(*self._batch())
        except FloatingPointError:  # in all processes alike
            self._checkpoint()  # weights and optimizer are still those after the last good step
            distributed.wait()
            raise
        now = time.perf_counter()
        self.elapsed = now - self.clock
        self.losses.append((loss, now - started))
        done = self.step.count
        self.progress.step(done, tcfg.max_iters, loss, self.tokens_per_step)
        if done % tcfg.eval_interval == 0 or done == tcfg.max_iters:
            self._evaluate()
        if done % tcfg.checkpoint_interval == 0 and done < tcfg.max_iters:
            self._checkpoint()

    def _evaluate(self) -> None:
        """Scores the validation documents, writes a row of the log, keeps the weights if they are the best so far.

        That is the first process's work; the others go on and wait for it in the next step.
        """
        if not distributed.is_first():
            self.losses = []
            return
        scores = evaluate(self.step.model, self.tok, self.documents)
        losses, seconds = zip(*self.losses or [(self._first_loss(), math.inf)], strict=True)
        row = {
            "Step": self.step.count,
            "Learning Rate": self.step.lr,
            "Train Loss": sum(losses) / len(losses),
            "Validation Loss": scores["nats_per_token"],
            "Perplexity": scores["perplexity"],
            "Time Elapsed": self.seconds,
            "Bits Per Byte": scores["bits_per_byte"],
            "Tokens Seen": self.tokens,
            "Tokens Per Second": len(losses) * self.tokens_per_step / sum(seconds),
            "Gradient Norm": self.step.grad_norm,
        }
        self.losses = []
        self.log.add(row)
        if self.best is None or row["Bits Per Byte"] < self.best["bits_per_byte"]:
            weights = {name: p.detach().cpu().clone() for name, p in self.step.model.state_dict().items()}
            self.best = {"step": self.step.count, **scores, "weights": weights}
        self.progress.evaluation(self.log, self._sample())

    @torch.no_grad()
    def _first_loss(self) -> float:
        """The untrained model's loss on the first batch: about ln V."""
        x, y = self.batches.get(0)
        logits = self.step.model.eval()(x[:8].to(self.step.device))
        return F.cross_entropy(logits.flatten(0, 1), y[:8].flatten().to(self.step.device)).item()

    def _sample(self) -> str:
        from inference import generate

        if not self.tcfg.sample_prompt:
            return ""
        prompt, seed = self.tcfg.sample_prompt, self.tcfg.seed
        return generate(self.step.model, self.tok, prompt, max_new_tokens=60, temperature=0.7, seed=seed)

    # ------------------------------------------------ keeping

    def _checkpoint(self) -> None:
        if not distributed.is_first():
            return
        self.memory = runs.larger(self.memory, runs.most_memory(self.device))
        state = {**self.step.state_dict(), "elapsed": self.elapsed, "losses": self.losses, "best": self.best}
        state["memory"] = self.memory
        runs.save_checkpoint(self.folder, self.cfg, self.tcfg, state | {"log": self.log.rows})

    def _restore(self, kept: dict) -> None:
        rows = kept.pop("log")
        if distributed.is_first():
            self.log.restore(rows)
        self.elapsed, self.losses, self.best = kept.pop("elapsed"), kept.pop("losses"), kept.pop("best")
        self.memory = kept.pop("memory", {})  # earlier checkpoints lack it
        self.step.load_state_dict(kept)
        self.progress.say(f"resuming {self.folder.name} at step {self.step.count}")

    def _pause(self) -> dict:
        self._checkpoint()
        record = self._record(finished=False)
        self.progress.close(f"stopped at step {self.step.count}; start again with the same settings to go on from here")
        return record

    def _finish(self) -> dict:
        from lab.plots import save_loss_curve

        self.step.model.load_state_dict(self.best["weights"])
        record = self._record(finished=True)
        save_model(self.step.model.cpu(), self.tok, self.folder, train_config=self.tcfg, run=record)
        picture = save_loss_curve(self.folder)
        runs.drop_checkpoints(self.folder)
        shown = [files.shown(path) for path in (self.folder, picture, self.log.path)]
        self.progress.close("model: {}\nloss curve: {}\nlog: {}".format(*shown))
        return record

    def _record(self, *, finished: bool) -> dict:
        """What stands in run.json: enough to repeat and to judge the run. Tokens and seconds include `init_from`'s."""
        return {
            "finished": finished,
            "architecture": self.cfg.architecture,
            "text": self.text,
            "init_from": self.past,
            "steps": self.step.count,
            "tokens_seen": self.tokens,
            "epochs": self.step.count * self.tokens_per_step / self.batches.tokens_per_epoch,
            "seconds": self.seconds,
            "seed": self.tcfg.seed,
            "parameters": runs.count_parameters(self.step.model),
            "speed": self.speed,
            **runs.larger(self.memory, runs.most_memory(self.device)),
            "machine": runs.describe_machine(self.tcfg) | {"processes": distributed.size()},
            "versions": runs.versions(),
            "commit": runs.commit(),
            "best_step": self.best["step"],
            "final": {key: value for key, value in self.best.items() if key not in ("step", "weights")},
        }

    # ------------------------------------------------ before the start

    def _choose(self, model: GPT) -> TrainConfig:
        """The settings with precision and kernel chosen, where they say "auto", with the help of trial steps.

        What the processor is made for wins unless something else is clearly faster, so that noise seldom decides. A run
        that is resumed has made its choice. A GPU needs no trial.
        """
        asked, say = self.tcfg, self.progress.say
        with distributed.first_then_others():  # who comes second finds the kernel built
            kernel = pick_kernel(asked.kernel, self.device, say)
        made_for = asked.replace(precision=pick_precision(asked.precision, self.device), kernel=kernel)
        others = [made_for.replace(precision="fp32")] if asked.precision == "auto" else []
        others += [made_for.replace(kernel="plain")] if asked.kernel == "auto" else []
        choices = [made_for, *(other for other in others if other != made_for)]
        if len(choices) == 1 or self.device.type != "cpu":
            return made_for
        x, y = (rows[: max(1, PROBE_TOKENS // self.cfg.max_seq_len)] for rows in self.batches.get(0))
        seconds = [self._trial(model, choice.replace(grad_accum_steps=1), x, y) for choice in choices]
        seconds[0] *= 0.9
        return distributed.share(choices[seconds.index(min(seconds))])

    def _announce(self) -> None:
        """Parameters, tokens, time, memory and speed, the last three from steps on a copy that is thrown away."""
        left, step = self.tcfg.max_iters - self.step.count, self.step
        seconds = self._trial(step.model, self.tcfg, *self._batch())
        parameters = runs.count_parameters(step.model)["total"]
        tokens, speed = left * self.tokens_per_step, self.tokens_per_step / seconds
        flops = speed * machine.flops_per_token(step.model, self.cfg.max_seq_len)
        limit = machine.matmul_limit(self.device, step.precision) * distributed.size()
        self.speed = {"tokens_per_second": speed, "gflops": flops / 1e9, "mfu": flops / limit}
        self.progress.say(
            f"{self.folder.name}: {parameters:,} parameters, {left:,} steps of {self.tokens_per_step:,} tokens "
            f"({tokens / 1e6:.1f} M, {tokens / self.batches.tokens_per_epoch:.2f} epochs), about "
            f"{runs.minutes(left * seconds)} and {runs.peak_memory(step.device):,.0f} MB on {self.device.type} in "
            f"{step.precision}, {step.kernel} attention: {speed:,.0f} tokens/s, {flops / 1e9:,.0f} GFLOP/s, "
            f"{flops / limit:.0%} of what its matrix products reach (MFU)"
        )

    def _trial(self, model: GPT, tcfg: TrainConfig, x: Tensor, y: Tensor) -> float:
        """Seconds per step, measured on a copy; weights, optimizer and random state stay as they were.

        The best of three, since whatever else the machine is doing can only add to them.
        """
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            trial = Step(copy.deepcopy(model), tcfg)
            trial(x, y)  # the first one warms up
            clock = [time.perf_counter()]
            for _ in range(3):
                trial(x, y)
                clock.append(time.perf_counter())
            return min(end - start for start, end in itertools.pairwise(clock))


class _stop_button:
    """Turns Ctrl-C, which the notebook's stop button sends too, into an event that the loop looks at between steps.

    A step is thus never torn in two. A second Ctrl-C interrupts at once. In a thread, where signals can't be caught,
    nothing is changed.
    """

    def __enter__(self) -> threading.Event:
        self.event, self.old = threading.Event(), None
        if threading.current_thread() is threading.main_thread():
            self.old = signal.signal(signal.SIGINT, self._pressed)
        return self.event

    def _pressed(self, number, frame) -> None:
        if self.event.is_set():
            raise KeyboardInterrupt
        self.event.set()

    def __exit__(self, *error) -> None:
        if self.old is not None:
            signal.signal(signal.SIGINT, self.old)


# ---------------------------------------------------------------- terminal


def main(arguments: list[str] | None = None) -> None:
    """`python train.py --preset NAME [--setting VALUE]`: any field of TrainConfig, and of ModelConfig as --model.X."""
    import tyro

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    preset = _take_preset(arguments)
    model_default, train_default = PRESETS[preset], TrainConfig(**TRAINING.get(preset, {}))
    settings = tyro.conf.OmitArgPrefixes[TrainConfig]

    def command(train_config: settings = train_default, model: ModelConfig = model_default) -> None:
        train(model, train_config)

    # tyro shows this text in --help
    command.__doc__ = f"Train a small GPT. --preset NAME (now {preset}) is one of: {', '.join(PRESETS)}."
    try:
        tyro.cli(command, args=arguments, prog="train.py")
    except (ValueError, OSError, FloatingPointError) as error:
        if not distributed.is_first():  # the first process says it, and needs a moment: torchrun ends it with this one
            time.sleep(2)
            raise SystemExit(1) from error
        raise SystemExit(f"train.py: {error}") from error


def _take_preset(arguments: list[str]) -> str:
    """Removes `--preset NAME` from the arguments and returns NAME: the other options' defaults depend on it."""
    name = "0.5m"
    for i, argument in enumerate(arguments):
        if argument == "--preset" or argument.startswith("--preset="):
            name = argument.partition("=")[2] or "".join(arguments[i + 1 : i + 2])
            del arguments[i : i + (1 if "=" in argument else 2)]
            break
    if name not in PRESETS:
        raise SystemExit(f"train.py: --preset {name!r} is unknown; choose from {', '.join(PRESETS)}")
    return name


if __name__ == "__main__":
    main()
    distributed.leave()
