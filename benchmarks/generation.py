"""Speed of writing: tokens per second for one text and for sixteen, with the key/value cache and without.

    python benchmarks/generation.py
    python benchmarks/generation.py --preset 2m --tokens 200 --repeats 9

Weights are random: the time does not depend on them. With and without cache take turns, so that both meet the same
machine; quoted are medians over the repeats, with the smallest and largest in brackets. A run writes `--tokens` tokens
after a prompt of eight, greedily and without stopping, so it shows the cache's gain for texts of that length.
"""

import platform
import random
import statistics
import sys
import time
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import PRESETS
from inference import Choice, new_tokens
from model import GPT


def tokens_per_second(model: GPT, batch: int, count: int, use_cache: bool) -> float:
    """Speed of writing `count` tokens after each of `batch` prompts, all rows counted."""
    prompts = [[1, *range(10, 17)] for _ in range(batch)]
    generators = [random.Random(i) for i in range(batch)]
    start = time.perf_counter()
    for _ in new_tokens(model, prompts, Choice(0), generators, max_new_tokens=count, use_cache=use_cache):
        pass
    return batch * count / (time.perf_counter() - start)


def spread(values: list[float], digits: int = 0) -> str:
    """Median [smallest, largest]."""
    return f"{statistics.median(values):,.{digits}f} [{min(values):,.{digits}f}, {max(values):,.{digits}f}]"


def main(preset: str = "0.5m_5foot11_and_skinnyfat", tokens: int = 200, repeats: int = 5, threads: int = 1) -> None:
    """Measure and print a table.

    Args:
        preset: a name of PRESETS
        tokens: new tokens per text
        repeats: runs of each kind
        threads: CPU threads
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = GPT(PRESETS[preset]).eval()
    print(f"{preset}, {tokens} tokens, {threads} thread(s), {repeats} repeats, torch {torch.__version__},", end=" ")
    print(f"{platform.machine()}")
    print("texts  tokens/s with cache       tokens/s without          ratio")
    for batch in (1, 16):
        tokens_per_second(model, batch, 5, True)  # warm up
        cached, uncached = [], []
        for _ in range(repeats):
            cached.append(tokens_per_second(model, batch, tokens, True))
            uncached.append(tokens_per_second(model, batch, tokens, False))
        ratio = spread([a / b for a, b in zip(cached, uncached)], digits=1)
        print(f"{batch:>5}  {spread(cached):<24}  {spread(uncached):<24}  {ratio}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
