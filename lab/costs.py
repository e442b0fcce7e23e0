"""What saved models cost: parameters, FLOPs, decode state, training time and speed, in one table.

    costs(["a", "b"])                      # one dict per run, by name
    table(costs(["a", "b"]), scores)       # a DataFrame, best bits per byte first

Counts are exact and the same on every machine; seconds, speed and memory are what the run recorded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lab.files import read_json
from lab.kept import check_names
from lab.runs import count_parameters
from lab.saving import load_model, model_folder

COLUMNS = {  # key -> (heading, what it counts, with its unit)
    "parameters": ("parameters", "numbers learned, tied ones once"),
    "embedding": ("embedding", "of these in token and position tables and the head"),
    "other": ("other", "of these in all other layers"),
    "flops_per_token": ("FLOPs/token", "FLOPs per token, forward, over a whole context"),
    "decode_state": ("decode state", "numbers kept per token of context while decoding"),
    "train_seconds": ("train seconds", "seconds of training"),
    "tokens_per_second": ("tokens/s", "tokens per second in training"),
    "peak_memory_mb": ("peak MB", "MB of memory at most in training"),
    "peak_gpu_memory_mb": ("peak GPU MB", "MB of GPU memory at most in training"),
}


def costs(names: Sequence[str | Path]) -> dict[str, dict[str, float]]:
    """The costs of each saved model by its folder's name; nan where a run did not record them.

    Keys: those of COLUMNS, with `context` (tokens). FLOPs are those that lab/tracer/cost.py counts: two for each
    multiply-add of a matrix product. Attention's products grow with the context, so theirs is the mean over a whole
    one. `decode_state` is what is kept after a whole context, divided by its tokens: for a recurrent block a constant
    state, shared out. `train_seconds` includes those of the model that a run went on from.
    Timings depend on the machine: compare those of one machine only.
    Raises: as `load_model`; ValueError for two folders of one name.
    """
    check_names(names)
    return {model_folder(name).name: _costs_of(name) for name in names}


def _costs_of(name: str | Path) -> dict[str, float]:
    model, _, cfg = load_model(name)
    path = model_folder(name) / "run.json"
    record = read_json(path) if path.is_file() else {}
    seconds, tokens = record.get("seconds", math.nan), record.get("tokens_seen", math.nan)
    past = record.get("init_from") or {}
    counted = count_parameters(model)
    return {
        "parameters": counted["total"], "embedding": counted["embedding"], "other": counted["other"],
        "flops_per_token": flops_per_token(model), "decode_state": decode_state(model) / cfg.max_seq_len,
        "train_seconds": seconds + past.get("seconds", 0.0),
        "tokens_per_second": (tokens - past.get("tokens_seen", 0)) / seconds if seconds else math.nan,
        "peak_memory_mb": record.get("peak_memory_mb") or math.nan,
        "peak_gpu_memory_mb": record.get("peak_gpu_memory_mb") or math.nan, "context": cfg.max_seq_len,
    }  # fmt: skip


def flops_per_token(model: nn.Module, context: int | None = None) -> float:
    """FLOPs of a forward pass over `context` tokens (the model's whole context if None), per token.

    What is counted is what is computed: masked parts of attention that are skipped do not count.
    """
    from lab.tracer.cost import flops
    from tools import trace

    T = context or model.cfg.max_seq_len
    tokens = torch.zeros(1, T, dtype=torch.int64, device=next(model.parameters()).device)
    with torch.no_grad(), trace(model, names=model.cfg, probe=False) as tr:
        model(tokens)
    return flops(tr.calls[0]) / T


def decode_state(model: nn.Module) -> int:
    """How many numbers one row keeps after a whole context, its last token read by itself as when a text is written."""
    tokens = torch.zeros(1, model.cfg.max_seq_len, dtype=torch.int64, device=next(model.parameters()).device)
    ctx = model.context(tokens, decode=True)
    with torch.no_grad():
        for part in tokens.split([tokens.shape[1] - 1, 1], dim=1):
            model(part, ctx)
    return sum(tensor.numel() for tensor in _tensors(ctx.cache))


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def table(found: dict[str, dict[str, float]], scores: dict[str, float] | None = None):
    """The costs as a DataFrame, a row for each model; with `scores` (name -> bits per byte), the best first."""
    import pandas as pd

    rows = {}
    for name, cost in found.items():
        score = {} if scores is None else {"bits per byte": scores.get(name, math.nan)}
        rows[name] = score | {heading: cost[key] for key, (heading, _) in COLUMNS.items()}
    frame = pd.DataFrame(rows).T
    if scores is not None:
        frame = frame.sort_values("bits per byte")
    return frame.dropna(axis=1, how="all")  # what no run recorded


def unbeaten(prices: dict[str, float], result: dict) -> set[str]:
    """The models that no other beats: none that costs no more is better beyond noise.

    prices: name -> cost, lower being better; a model whose cost is nan is left out.  result: from `compare`.
    """
    beaten = set()
    for pair in result["pairs"]:
        winner, loser = (pair["a"], pair["b"]) if pair["difference"] < 0 else (pair["b"], pair["a"])
        if pair["told_apart"] and prices.get(winner, math.nan) <= prices.get(loser, math.nan):
            beaten.add(loser)
    return {name for name, price in prices.items() if not math.isnan(price)} - beaten
