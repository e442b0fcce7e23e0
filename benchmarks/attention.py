"""Attention for training on a CPU, forward and backward: PyTorch's own, in chunks (model.py), compiled (lab/).

    python benchmarks/attention.py                        # one thread
    python benchmarks/attention.py --threads 2 --repeats 21

Two shapes of the models in benchmarks/speed.py: S, heads of 16 that share keys by fours, 512 tokens; M, heads of 32,
256 tokens; 32 rows each. The three take turns, so that they meet the same machine. Shown are milliseconds of processor
time (all threads together) and of the clock, and how many times faster the compiled one is by processor time: medians,
with the quartiles of the ratios of the same turn. Other work on the machine makes the clock's times longer.
"""

import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lab.fused_attention import load
from model import Context, attend_in_chunks
from train import keep_memory

SHAPES = {"S": (32, 8, 2, 512, 16), "M": (32, 8, 8, 256, 32)}  # B, H, G, T, K


def ways(T: int) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    ctx, fused = Context(torch.arange(T)), load(say=print)
    return {
        "sdpa": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
        "chunks": lambda q, k, v: attend_in_chunks(q, k, v, ctx),
        "compiled": fused,
    }


def milliseconds(way: Callable, tensors: list[Tensor], grad: Tensor) -> tuple[float, float]:
    """Processor time and the clock's, of one forward and backward pass."""
    cpu, clock = time.process_time(), time.perf_counter()
    torch.autograd.grad(way(*tensors), tensors, grad)
    return 1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - clock)


def take_turns(shape: tuple[int, ...], dtype: torch.dtype, repeats: int) -> dict[str, list[tuple[float, float]]]:
    B, H, G, T, K = shape
    tensors = [torch.randn(B, T, heads, K).to(dtype).transpose(1, 2).requires_grad_() for heads in (H, G, G)]
    grad = torch.randn(B, T, H, K).to(dtype).transpose(1, 2)
    found = {name: [] for name in ways(T)}
    for turn in range(repeats + 1):
        for name, way in ways(T).items():
            times = milliseconds(way, tensors, grad)
            if turn:  # the first one warms up
                found[name].append(times)
    return found


def main(threads: int = 1, repeats: int = 11) -> None:
    """Measure and print a table.

    Args:
        threads: CPU threads
        repeats: turns of each way
    """
    keep_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    print(f"{load()}, {threads} thread(s), {repeats} turns, torch {torch.__version__}, {platform.machine()}")
    print("shape  numbers   way         processor ms   clock ms   compiled is faster by (quartiles)")
    for name, shape in SHAPES.items():
        for dtype in (torch.float32, torch.bfloat16):
            found = take_turns(shape, dtype, repeats)
            for way, times in found.items():
                ratios = [other[0] / ours[0] for other, ours in zip(times, found["compiled"], strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4)
                cpu, clock = (statistics.median(t) for t in zip(*times, strict=True))
                gain = "" if way == "compiled" else f"{middle:5.1f} times ({low:.1f} to {high:.1f})"
                numbers = str(dtype).removeprefix("torch.")
                print(f"{name:<6} {numbers:<9} {way:<10} {cpu:13.0f} {clock:10.0f}   {gain}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
