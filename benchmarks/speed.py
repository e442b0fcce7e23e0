"""Speed of training beside transformers' Llama of the same shape, and the bars that this project sets itself.

    python benchmarks/speed.py
    python benchmarks/speed.py --quick
    python benchmarks/speed.py --busy          # on a machine with other work: one thread, CPU seconds

Each row is a process of its own, set up as its user would get it: ours is `make_step` with `TrainConfig`'s defaults
(Muon, clipping, bf16 where the processor has it), transformers' Llama is tied, with sdpa, in fp32, with AdamW and no
memory settings. The processes take turns step by step in an order that rotates, so that all meet the same machine: a
row's ratio is the median over the rounds of (Llama's seconds / this row's seconds), with the middle half in brackets.

Then, in the loop of `train` itself with evaluation off: the share of its time outside of model and optimizer, and the
peak of resident memory. Needs transformers (requirements-test.txt).
"""

import contextlib
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import PRESETS, ModelConfig, TrainConfig

SIZES = {
    "S": ModelConfig(
        dim=64, num_layers=8, vocab_size=2051, max_seq_len=512, mlp_hidden=128,
        num_q_heads=8, num_kv_heads=2, head_dim=16,
    ),
    "M": ModelConfig(
        dim=256, num_layers=6, vocab_size=4096, max_seq_len=256, mlp_hidden=768,
        num_q_heads=8, num_kv_heads=8, head_dim=32,
    ),
}  # fmt: skip
BATCH = 32  # rows
ROWS = {  # name -> what TrainConfig is given beside its defaults
    "plain": dict(kernel="plain"),
    "compiled": dict(kernel="compiled"),
    "plain, fp32": dict(kernel="plain", precision="fp32"),
    "plain, AdamW": dict(kernel="plain", optimizer="adamw"),
}
YARDSTICK = "transformers' Llama"
# The plain path's bar is held against its row with the yardstick's own optimizer, too.
PLAIN, COMPILED = {"S": 2.7, "M": 2.3}, {"S": 3.8, "M": 3.3}
BARS = {(size, row): bar for size, bar in PLAIN.items() for row in ("plain", "plain, AdamW")}
BARS |= {(size, "compiled"): bar for size, bar in COMPILED.items()}
STRETCH = {"S": 5.5, "M": 4.5}
MEMORY_BARS = {8: 700, 32: 1700}  # batch rows of 512 tokens -> MB
LOOP_BAR = 0.03  # share of a step outside of model and optimizer


# ---------------------------------------------------------------- what a process of its own does


def ours(cfg: ModelConfig, settings: dict) -> Callable:
    """step(tokens, targets) of `make_step` with TrainConfig's defaults but `settings`."""
    from train import make_step

    return make_step(cfg, TrainConfig(batch_size=BATCH, **settings), "cpu")


def transformers_llama(cfg: ModelConfig) -> Callable:
    """step(tokens, targets) as transformers' users write it. Its loss shifts the tokens by itself."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=cfg.dim, num_hidden_layers=cfg.num_layers, intermediate_size=cfg.mlp_hidden,
            num_attention_heads=cfg.num_q_heads, num_key_value_heads=cfg.num_kv_heads, head_dim=cfg.head_dim,
            vocab_size=cfg.vocab_size, max_position_embeddings=cfg.max_seq_len, tie_word_embeddings=True,
            attn_implementation="sdpa",
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step(tokens, targets):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()

    return step


def serve(pipe: Connection, row: str, size: str, threads: int, busy: bool) -> None:
    """Answers every message with the seconds of one more step, or, if this row can't run here, says why and leaves."""
    cfg = SIZES[size]
    clock = time.process_time if busy else time.perf_counter
    try:
        step = transformers_llama(cfg) if row == YARDSTICK else ours(cfg, ROWS[row])
    except (ValueError, ImportError) as error:
        return pipe.send(str(error))
    import torch  # only now: what `train` sets before it imports torch is part of what is measured

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    pipe.send(None)
    while pipe.recv():
        tokens = torch.randint(0, cfg.vocab_size, (BATCH, cfg.max_seq_len))
        started = clock()
        step(tokens, tokens)
        pipe.send(clock() - started)


def serve_loop(pipe: Connection, batch: int, steps: int, threads: int) -> None:
    """Trains a 0.5m preset by `train` with evaluation off; sends the share outside of `Step` and the peak in MB."""
    import train as training
    from lab.progress import TerminalProgress
    from lab.runs import most_memory

    spans, peaks = [], []  # start and end of each step; largest memory until then

    class Timed(training.Step):
        def __call__(self, x, y):
            started = time.perf_counter()
            loss = super().__call__(x, y)
            spans.append((started, time.perf_counter()))
            peaks.append(most_memory(self.device)["peak_memory_mb"])  # before the loss curve is drawn
            return loss

    training.Step = Timed
    cfg = PRESETS["0.5m_5foot11_and_skinnyfat"]
    tcfg = TrainConfig(
        dataset="storyworld", batch_size=batch, max_iters=steps, eval_interval=steps, checkpoint_interval=steps,
        eval_documents=1, sample_prompt="", num_threads=threads, device="cpu",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        training.train(cfg, tcfg, root=Path(folder), progress=TerminalProgress())
    loop = spans[-steps:]  # those before belong to the probe
    outside = 1 - sum(end - start for start, end in loop) / (loop[-1][1] - loop[0][0])
    pipe.send((outside, peaks[-1]))


# ---------------------------------------------------------------- taking turns


@dataclass
class Worker:
    """A process and the pipe to it."""

    process: multiprocessing.Process
    pipe: Connection

    @classmethod
    def start(cls, target: Callable, *arguments) -> "Worker":
        context = multiprocessing.get_context("spawn")  # nothing of this process is inherited
        pipe, other = context.Pipe()
        process = context.Process(target=target, args=(other, *arguments), daemon=True)
        process.start()
        other.close()
        return cls(process, pipe)

    def ask(self) -> float:
        self.pipe.send(True)
        return self.pipe.recv()

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()


def take_turns(size: str, rows: list[str], rounds: int, threads: int, busy: bool) -> dict[str, list[float]]:
    """Seconds of each row's steps, the first one included; rows that can't run here are named and left out."""
    workers, seconds = {}, {}
    try:
        for row in rows:
            worker = Worker.start(serve, row, size, threads, busy)
            problem = worker.pipe.recv()
            if problem is None:
                workers[row], seconds[row] = worker, []
            else:
                print(f"{size}  {row}: not here ({problem})")
                worker.stop()
        names = list(workers)
        for turn in range(rounds + 2):  # the first step builds and warms up; the second still settles
            for i in range(len(names)):
                row = names[(turn + i) % len(names)]
                seconds[row].append(workers[row].ask())
    finally:
        for worker in workers.values():
            worker.stop()
    return seconds


# ---------------------------------------------------------------- tables


def verdict(value: float, bar: float, *, at_least: bool = True) -> str:
    reached = value >= bar if at_least else value <= bar
    return f"{'reached' if reached else 'MISSED'} (bar {bar:g})"


def print_size(size: str, seconds: dict[str, list[float]]) -> None:
    """One line for each row: tokens/s, ratio to transformers' Llama, seconds of the first step, where it stands."""
    cfg = SIZES[size]
    llama = seconds[YARDSTICK][2:]
    for row, times in seconds.items():
        ratios = [a / b for a, b in zip(llama, times[2:], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        speed = BATCH * cfg.max_seq_len / statistics.median(times[2:])
        stands = ""
        if (size, row) in BARS:
            stands = f"{verdict(middle, BARS[size, row])}, stretch {STRETCH[size]}"
        ratio = f"{middle:.2f}x [{low:.2f}, {high:.2f}]"
        print(f"{size:<5} {row:<20} {speed:>9,.0f}   {ratio:<22} {times[0]:>8.1f}   {stands}", flush=True)


def print_loop(batch: int, outside: float, megabytes: float) -> None:
    share = f"{100 * outside:.2f} % outside of the step, {verdict(100 * outside, 100 * LOOP_BAR, at_least=False)}"
    peak = f"peak {megabytes:,.0f} MB, {verdict(megabytes, MEMORY_BARS[batch], at_least=False)}"
    print(f"train, batch {batch:>2} x 512: {share}; {peak}", flush=True)


def main(
    rounds: int = 12, threads: int = 2, quick: bool = False, busy: bool = False, sizes: tuple[str, ...] = ("S", "M")
) -> None:
    """Measure and print the tables.

    Args:
        rounds: steps of each row that count
        threads: CPU threads of each process, of which one works at a time
        quick: four rounds, and only the rows with a bar
        busy: one thread and its CPU seconds, which say more than the clock where other programs run
        sizes: S (0.5 M parameters) and M (6.2 M)
    """
    rounds, rows = (4, list(ROWS)[:2]) if quick else (rounds, list(ROWS))
    threads = 1 if busy else threads
    print(f"{rounds} rounds, {threads} thread(s) of {os.cpu_count()}, batch {BATCH}, {machine()}")
    print("size  row                   tokens/s   x transformers' Llama  1st step s", flush=True)
    for size in sizes:
        print_size(size, take_turns(size, [YARDSTICK, *rows], rounds, threads, busy))
    for batch in MEMORY_BARS:
        worker = Worker.start(serve_loop, batch, 10 if quick else 30, threads)
        print_loop(batch, *worker.pipe.recv())
        worker.stop()


def machine() -> str:
    from lab.runs import describe_machine, versions

    settings = TrainConfig(device="cpu", num_threads=1)
    return f"{describe_machine(settings)['processor']}, torch {versions()['torch']}, {platform.system()}"


if __name__ == "__main__":
    tyro.cli(main)
