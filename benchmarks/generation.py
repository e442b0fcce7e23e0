"""Speed of writing: tokens per second of the model itself, of its compiled copy, and of transformers' `generate`.

    python benchmarks/generation.py                              # the shape that the README quotes, 1 and 2 threads
    python benchmarks/generation.py --preset 2m --tokens 200 --repeats 9

Weights are random: the time does not depend on them. All continue the same prompts of eight tokens by `--tokens` more,
at temperature 0.8 without a filter, with their cache and without stopping, and each call is timed whole, the compiled
copy's packing of the weights and its comparison with the model included. They take turns, so that all meet the same
machine. Quoted are medians over the repeats, with the smallest and largest in brackets. transformers writes with a
Llama of the same shape, in fp32, with its default (dynamic) cache. Llama has no QK-norm, so that ours goes without it
too; `--qk-norm` keeps it, to see what it costs. On a busy machine, `--clock cpu --threads 1` counts processor time.
"""

import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import PRESETS, ModelConfig
from inference import Choice, _generators, compiled_new_tokens, new_tokens
from model import GPT

BARS = {("plain", 1): 4, ("plain", 16): 2, ("compiled", 1): 20, ("compiled", 16): 10}  # times transformers
PROMPT = [1, *range(10, 17)]


def llama(cfg: ModelConfig):
    """transformers' Llama of the same shape, with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=cfg.vocab_size, hidden_size=cfg.dim, intermediate_size=cfg.mlp_hidden,
        num_hidden_layers=cfg.num_layers, num_attention_heads=cfg.num_q_heads, num_key_value_heads=cfg.num_kv_heads,
        head_dim=cfg.head_dim, max_position_embeddings=cfg.max_seq_len, tie_word_embeddings=cfg.tied_head,
    )  # fmt: skip
    return LlamaForCausalLM(shape).eval()


def writers(cfg: ModelConfig, tokens: int) -> dict[str, Callable[[int], object]]:
    """By name: a function that continues that many texts by `tokens` tokens."""
    model, other = GPT(cfg).eval(), llama(cfg)

    def ours(write: Callable, **more) -> Callable[[int], object]:
        return lambda texts: list(
            write(model, [PROMPT] * texts, Choice(0.8), _generators(0, texts), max_new_tokens=tokens, **more)
        )

    def theirs(texts: int) -> None:
        ids = torch.tensor([PROMPT] * texts)
        settings = dict(max_new_tokens=tokens, min_new_tokens=tokens, do_sample=True, temperature=0.8, top_k=0)
        other.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **settings)

    return {
        "compiled": ours(compiled_new_tokens, must=True),
        "compiled, streamed": ours(compiled_new_tokens, must=True, stream=True),
        "plain": ours(new_tokens, folded=True),
        "the model itself": ours(new_tokens),
        "plain, no cache": ours(new_tokens, use_cache=False),
        "transformers": theirs,
    }


def measure(
    write: dict[str, Callable[[int], object]], texts: int, tokens: int, repeats: int, now: Callable[[], float]
) -> dict[str, list[float]]:
    """Tokens per second of each writer, over all texts, one number for each repeat."""
    speeds: dict[str, list[float]] = {name: [] for name in write}
    for turn in range(repeats + 1):  # the first warms up
        for name, go in write.items():
            start = now()
            go(texts)
            if turn:
                speeds[name].append(texts * tokens / (now() - start))
    return speeds


def spread(values: list[float], digits: int = 0) -> str:
    """Median [smallest, largest]."""
    return f"{statistics.median(values):,.{digits}f} [{min(values):,.{digits}f}, {max(values):,.{digits}f}]"


def verdict(name: str, texts: int, ratio: float) -> str:
    """Where a ratio to transformers stands against its bar."""
    bar = BARS.get((name, texts))
    return "" if bar is None else f"bar {bar}: {'met' if ratio >= bar else 'missed'}"


def main(
    preset: str = "0.5m_5foot11_and_skinnyfat",
    vocab_size: int = 2051,
    qk_norm: bool = False,
    tokens: int = 200,
    repeats: int = 5,
    threads: tuple[int, ...] = (1, 2),
    clock: Literal["wall", "cpu"] = "wall",
) -> None:
    """Measure and print a table.

    Args:
        preset: a name of PRESETS
        vocab_size: in place of the preset's
        qk_norm: leave ours its QK-norm, which Llama doesn't have
        tokens: new tokens per text
        repeats: runs of each kind
        threads: CPU threads, one table for each
        clock: what a second is: of the wall clock, or of processor time
    """
    torch.manual_seed(0)
    cfg = PRESETS[preset].replace(vocab_size=vocab_size, qk_norm=qk_norm)
    write = writers(cfg, tokens)
    print(f"{preset}, vocab_size={vocab_size}, {tokens} tokens, {repeats} repeats, torch {torch.__version__},", end=" ")
    print(f"{platform.machine()}")
    for count in threads:
        torch.set_num_threads(count)
        for texts in (1, 16):
            now = time.perf_counter if clock == "wall" else time.process_time
            chosen = write if texts == 1 else {name: go for name, go in write.items() if name != "plain, no cache"}
            speeds = measure(chosen, texts, tokens, repeats, now)
            print(f"\n{count} thread(s), {texts} text(s): {'tokens/s':<24} times transformers")
            for name, values in speeds.items():
                ratios = [a / b for a, b in zip(values, speeds["transformers"])]
                note = verdict(name, texts, statistics.median(ratios))
                print(f"  {name:<20} {spread(values):<30} {spread(ratios, 2):<22} {note}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
