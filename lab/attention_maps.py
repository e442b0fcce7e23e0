"""What a model looks at, and what it would say after each layer: figures for small multiples of pictures.

    maps = attention_maps(model, tok, "Tom has a red ball. Tom", layers=[0, 3])   # weights (H, T, T) of each block
    lens = next_tokens(model, tok, "Once upon a", layers=[0, 3, 7])               # likeliest tokens by layer

The weights are worked out again from the queries and keys of the block's own `project`, with its own mask and its own
way from scores to weights, while the model runs as always.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model import MQA, Context, make_context


def attention_maps(
    model: nn.Module, tok, text: str, layers: Sequence[int] | None = None, heads: Sequence[int] | None = None
) -> dict:
    """Attention weights of chosen layers on a text.

    layers: numbers in the stack, negative ones from its end; None: all.  heads: None: all.
    Returns {"tokens": pieces of the T inputs, BOS first, "heads": [...], "maps": [{"layer", "block", "weights"}]} with
    weights (len(heads), T, T) fp32: row = the token that looks, column = the token looked at.
    Raises: ValueError for a layer or head that isn't there, a text beyond the context, or layers without a block whose
    weights can be shown (those that attend as `MQA` does).
    """
    ids = _ids(model, tok, text)
    chosen = _chosen("layers", layers, len(model.layers))
    blocks = {name: block for i in chosen for name, block in _blocks(model, i).items()}
    if not blocks:
        raise ValueError(f"layers={chosen}: no block there attends as MQA does, so there are no weights to show")
    found: dict[str, list[Tensor]] = {name: [] for name in blocks}

    def keep(name: str):
        return lambda block, args, kwargs: found[name].append(weights_of(block, *args, **kwargs)[0].float())

    hooks = [b.register_forward_pre_hook(keep(name), with_kwargs=True) for name, b in blocks.items()]
    _run(model, ids, hooks)
    maps = [(name, weights) for name, calls in found.items() for weights in calls]
    heads = _chosen("heads", heads, min(len(weights) for _, weights in maps))
    return {
        "tokens": [tok.piece(i) for i in ids],
        "heads": heads,
        "maps": [{"layer": int(n.split(".")[1]), "block": n, "weights": w[heads]} for n, w in maps],
    }


def _blocks(model: nn.Module, layer: int) -> dict[str, MQA]:
    """The attention blocks of a layer that run MQA's own forward, by their names in the model."""
    inside = model.layers[layer].named_modules(prefix=f"layers.{layer}")
    return {n: m for n, m in inside if isinstance(m, MQA) and type(m).forward is MQA.forward}


def weights_of(block: MQA, x: Tensor, ctx: Context | None = None) -> Tensor:
    """The weights with which a block attends in this call: x (B, T, D) -> (B, H, T, T), 0 where the mask forbids."""
    ctx = block.view(make_context(block.cfg, x) if ctx is None else ctx)
    if ctx.cache is not None:
        raise ValueError("ctx.cache is set: maps are drawn of a whole text, not of a step of decoding")
    q, k, _ = block.project(x, ctx)
    B, H, T, K = q.shape
    G = k.shape[1]
    scores = (q.reshape(B, G, H // G, T, K) * K**-0.5) @ k[:, :, None].transpose(-1, -2)  # (B, G, H/G, T, T)
    bias = ctx.bias(0, T, T, dtype=scores.dtype)
    if bias.ndim > 2:
        bias = bias.unflatten(-3, (G, H // G) if bias.shape[-3] == H else (1, 1))
    weights = (scores + bias).softmax(-1) if ctx.weigh is None else ctx.weigh(scores, bias)
    return weights.reshape(B, H, T, T)


def next_tokens(model: nn.Module, tok, text: str, layers: Sequence[int] | None = None, k: int = 5) -> dict:
    """What the model's ends read off the residual stream after each chosen layer, at each position ("logit lens").

    The last layer's are the model's own next-token distributions; those of earlier layers show when a guess is made.
    Returns {"tokens": pieces of the T inputs, BOS first, "layers": [{"layer", "pieces": T lists of k, "probabilities":
    (T, k), "entropy": (T,) nats}]}.
    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    Raises: ValueError as `attention_maps`, or for a k outside 1..V.
    """
    if not 1 <= k <= model.cfg.vocab_size:
        raise ValueError(f"k={k} must be between 1 and vocab_size={model.cfg.vocab_size}")
    ids = _ids(model, tok, text)
    chosen = _chosen("layers", layers, len(model.layers))
    streams: dict[int, Tensor] = {}

    def keep(layer: int):
        return lambda block, args, out: streams.update({layer: out})

    _run(model, ids, [model.layers[i].register_forward_hook(keep(i)) for i in chosen])
    return {"tokens": [tok.piece(i) for i in ids], "layers": [_read(model, tok, i, streams[i], k) for i in chosen]}


@torch.no_grad()
def _read(model: nn.Module, tok, layer: int, stream: Tensor, k: int) -> dict:
    log_p = model.predict(stream)[0].float().log_softmax(-1)  # (T, V)
    best, places = log_p.exp().topk(k)
    return {
        "layer": layer,
        "pieces": [[tok.piece(i) for i in row] for row in places.tolist()],
        "probabilities": best,
        "entropy": -(log_p.exp() * log_p).nan_to_num().sum(-1),
    }


def _run(model: nn.Module, ids: list[int], hooks: list) -> None:
    """One forward pass in eval mode; the hooks are taken off again, whatever happens."""
    from inference import eval_mode

    try:
        with eval_mode(model), torch.no_grad():
            model.features(torch.tensor([ids], device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()


def _ids(model: nn.Module, tok, text: str) -> list[int]:
    ids = tok.encode(text, bos=True)
    if len(ids) > model.cfg.max_seq_len:
        raise ValueError(f"text: {len(ids)} tokens with BOS exceed max_seq_len={model.cfg.max_seq_len}; shorten it")
    return ids


def _chosen(what: str, numbers: Sequence[int] | None, count: int) -> list[int]:
    if numbers is None:
        return list(range(count))
    wrong = [i for i in numbers if not -count <= i < count]
    if wrong or not numbers:
        raise ValueError(f"{what}={list(numbers)}: choose from 0..{count - 1}, or negative numbers from the end")
    return [i % count for i in numbers]
