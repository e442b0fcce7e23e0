"""What preparing data costs: the first cache of a text, opening it again, and micro-batches beside a training step.

    python benchmarks/data.py                           # ../shared/data/tinystories_train.txt where it is there
    python benchmarks/data.py --dataset storyworld --tokenizer 1024
    python benchmarks/data.py --big 200                 # 200 MB of storyworld: MB/s and memory of encoding them

Training steps run on one core, encoding on all. Seconds are wall time, with processor time beside the first cache, so
that other work on the machine can be told apart. The aims: a first cache of 9 MB in under 10 s; fetching a batch in
under 2 % of a step.
"""

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import PRESETS, TrainConfig
from lab import storyworld
from lab.data import SEPARATOR, Batches, open_source, tokenize
from lab.files import ROOT
from tokenizer import get_tokenizer
from train import make_step

TEXT = ROOT.parent / "shared" / "data" / "tinystories_train.txt"


def spread(seconds: list[float]) -> str:
    """Median [smallest, largest] in milliseconds."""
    low, middle, high = (1000 * value for value in (min(seconds), statistics.median(seconds), max(seconds)))
    return f"{middle:.3g} ms [{low:.3g}, {high:.3g}]"


def timed(work, *arguments) -> tuple[float, object]:
    """Wall seconds that `work(*arguments)` takes, and what it returns."""
    start = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - start, result


def stories(first: int, count: int = 2000) -> bytes:
    """`count` stories from number `first` on, as they stand in a text file."""
    return "".join(f"{storyworld.story(i)}\n{SEPARATOR}\n" for i in range(first, first + count)).encode()


def write_big(path: Path, megabytes: int) -> None:
    """A text file of at least so many MB, made on all cores."""
    with open(path, "wb") as file, ProcessPoolExecutor() as pool:
        for first in itertools.count(step=16_000):
            file.writelines(pool.map(stories, range(first, first + 16_000, 2000)))
            if file.tell() >= 1e6 * megabytes:
                return


ENCODE = """
import json, os, sys, time
from lab import data
from tokenizer import get_tokenizer
source = data.open_source(sys.argv[1], cache_dir=sys.argv[2])
tok, start, busy = get_tokenizer(sys.argv[3]), time.perf_counter(), sum(os.times()[:4])
packed = data.tokenize(source, "train", tok, progress=False)
print(json.dumps([time.perf_counter() - start, sum(os.times()[:4]) - busy, packed.num_bytes, packed.num_tokens]))
"""


def memory(process: psutil.Process) -> int:
    """Resident bytes of a process and all that it started."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_info().rss
        except psutil.Error:  # ended in between
            continue
    return total


def measure_big(megabytes: int, tokenizer: str) -> None:
    """The first cache of a big text, made by a process of its own whose memory is looked at every 20 ms."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "stories.txt")
        seconds, _ = timed(write_big, text, megabytes)
        print(f"writing {text.stat().st_size / 1e6:.0f} MB of storyworld: {seconds:.0f} s")
        command = [sys.executable, "-c", ENCODE, str(text), folder, tokenizer]
        child, peak = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True), 0
        while child.poll() is None:
            peak = max(peak, memory(psutil.Process(child.pid)))
            time.sleep(0.02)
        wall, busy, num_bytes, num_tokens = json.loads(child.stdout.read())
    print(f"encoding {num_bytes / 1e6:.0f} MB: {wall:.1f} s, {num_bytes / 1e6 / wall:.1f} MB/s, {busy:.1f} s of "
          f"processor time, {num_tokens:,} tokens; at most {peak / 1e6:.0f} MB resident, imports included")


def main(dataset: str = "", tokenizer: str = "2048", preset: str = "0.5m_5foot11_and_skinnyfat", batch_size: int = 8,
         seq_len: int = 512, batches: int = 300, steps: int = 7, big: int = 0) -> None:
    """Measure and print.

    Args:
        dataset: a path, "storyworld" or "tinystories"; empty takes the TinyStories excerpt, else storyworld
        tokenizer: a name or vocabulary size for get_tokenizer
        preset: the model whose step is the measure
        batch_size: rows of a micro-batch
        seq_len: tokens of a row
        batches: micro-batches to fetch
        steps: training steps to time
        big: instead of all this, encode so many MB of storyworld
    """
    if big:
        measure_big(big, tokenizer)
        return
    torch.set_num_threads(1)
    source = open_source(dataset or (str(TEXT) if TEXT.exists() else "storyworld"))
    tok = get_tokenizer(int(tokenizer) if tokenizer.isdigit() else tokenizer)
    print(f"{source.notice}; tokenizer {tokenizer}, {batch_size}×{seq_len}, preset {preset}")
    with tempfile.TemporaryDirectory() as folder:
        processor = time.process_time()
        seconds, packed = timed(lambda: tokenize(source, "train", tok, cache_dir=folder, progress=False))
        processor = time.process_time() - processor
        print(f"first cache of {packed.num_bytes / 1e6:.1f} MB: {seconds:.2f} s ({processor:.2f} s of processor time, "
              f"{packed.num_bytes / 1e6 / processor:.1f} MB/s), {packed.num_tokens:,} tokens")
        again, packed = timed(lambda: tokenize(source, "train", tok, cache_dir=folder, progress=False))
        print(f"opening it again: {1000 * again:.1f} ms")
        rows = Batches(packed, batch_size=batch_size, seq_len=seq_len)
        fetching = [timed(rows.get, i)[0] for i in range(batches)]
        step = make_step(PRESETS[preset].replace(vocab_size=tok.vocab_size, max_seq_len=seq_len), TrainConfig(), "cpu")
        stepping = [timed(step, *rows.get(i))[0] for i in range(steps + 2)][2:]      # the first two warm up
        del rows, packed      # Windows does not delete files that are mapped
    share = statistics.median(fetching) / statistics.median(stepping)
    print(f"fetching a batch: {spread(fetching)}; a training step: {spread(stepping)}; ratio of medians {share:.3%}")


if __name__ == "__main__":
    tyro.cli(main)
