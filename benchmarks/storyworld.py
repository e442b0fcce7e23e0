"""How much of the built-in stories takes a long memory: bits per byte of n-gram models and of a 0.5 M transformer.

    python benchmarks/storyworld.py
    python benchmarks/storyworld.py --max-iters 8000
    python benchmarks/storyworld.py --model first_model        # a model that was already trained on storyworld

The n-gram models (lab/ngram.py, interpolated modified Kneser-Ney) and the transformer read the same training stories
through the same tokenizer and are scored on the same validation stories, as everywhere in this project: negative
log-likelihood of the text tokens / ln 2 / UTF-8 bytes. The n-gram models' discounts are tuned on the last 300 training
stories. For comparison, n-grams over bytes are shown too. Prints the speed of the generator first.
"""

import re
import sys
import tempfile
import time
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import PRESETS, TrainConfig
from lab import data, ngram, storyworld
from lab.evaluation import evaluate
from tokenizer import Tokenizer, get_tokenizer

HELD_OUT = 300  # training stories on which the discounts are tuned


def show_generator(count: int) -> None:
    """Speed in CPU time, so that other work on the machine does not count; distinct words; sizes."""
    start = time.process_time()
    stories = list(storyworld.generate_stories(count))
    seconds = time.process_time() - start
    sizes = sorted(len(story.encode()) for story in stories)
    words = set(re.findall("[a-z]+", " ".join(stories).lower()))
    megabytes = sum(sizes) / 1e6
    print(f"{count:,} stories, {megabytes:.1f} MB in {seconds:.1f} s of one core: {megabytes / seconds:.2f} MB/s")
    print(f"{len(set(stories)):,} different, {len(words):,} different words")
    middle, low, high = (sizes[int(count * share)] for share in (0.5, 0.05, 0.95))
    print(f"bytes per story: median {middle}, 90 % between {low} and {high}")


def ngram_bits(tok: Tokenizer, train: list[str], valid: list[str], orders: tuple[int, ...]) -> dict[int, float]:
    """Order -> bits per byte on `valid`."""
    train_ids, valid_ids = (tok.encode_batch(texts, bos=True, eos=True) for texts in (train, valid))
    bits = {}
    for order in orders:
        tuned = ngram.tune(ngram.fit(train_ids[:-HELD_OUT], order, tok.vocab_size), train_ids[-HELD_OUT:])
        model = ngram.fit(train_ids, order, tok.vocab_size)  # now that the factor is known, all stories count
        model.scale = tuned.scale
        bits[order] = ngram.bits_per_byte(model, valid_ids, valid, skip=(tok.eos_id,))
        print(f"{order}-gram over {tok.vocab_size} pieces: {bits[order]:.4f} bits per byte (discounts x {model.scale})")
    return bits


def transformer_bits(preset: str, model: str, settings: TrainConfig, valid: list[str]) -> float:
    """Bits per byte of a saved model, or of one that is trained now."""
    if model:
        from lab.saving import load_model

        network, tok, _ = load_model(model)
        return evaluate(network, tok, valid)["bits_per_byte"]
    from train import train

    with tempfile.TemporaryDirectory() as folder:
        run = train(PRESETS[preset], settings, root=Path(folder))
        return evaluate(run.model, run.tok, valid)["bits_per_byte"]


def main(
    max_iters: int = 4000,
    preset: str = "0.5m_5foot11_and_skinnyfat",
    model: str = "",
    threads: int = 0,
    stories: int = 20_000,
    skip_transformer: bool = False,
) -> None:
    """Measure and print.

    Args:
        max_iters: training steps of the transformer
        preset: a name of PRESETS
        model: a saved model trained on storyworld, instead of training one now
        threads: CPU threads of the training; 0: all cores
        stories: stories to generate for the first table
        skip_transformer: the n-gram figures only
    """
    show_generator(stories)
    source = data.open_source("storyworld")
    train, valid = list(source.documents("train")), data.validation_documents(source)
    print(source.notice, f"{len(train):,} stories; validation: {len(valid)} stories", sep="; ")
    bits = ngram_bits(get_tokenizer(PRESETS[preset].vocab_size), train, valid, (2, 3, 4, 5))
    ngram_bits(get_tokenizer("byte"), train, valid, (5, 7))
    if skip_transformer:
        return
    settings = TrainConfig(
        model_name="storyworld_benchmark", dataset="storyworld", max_iters=max_iters, num_threads=threads
    )
    ours = transformer_bits(preset, model, settings, valid)
    print(f"{model or preset}: {ours:.4f} bits per byte, {bits[5] - ours:.4f} better than the 5-gram (asked for: 0.15)")


if __name__ == "__main__":
    tyro.cli(main)
