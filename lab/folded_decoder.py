"""Decoding in plain PyTorch by fewer and larger operations than the model's own modules make, for one new token a text.

    decoder = FoldedDecoder(model)                     # a copy of the weights as they are now
    logits, ctx = last_logits(model, prompts, decode=True)
    decoder.start(ctx)                                 # copies the cache that the model has filled
    logits = decoder.step(last_ids)                    # (B, V); the first step repeats each prompt's last token

A step of a small model has little to compute: its time goes into calling some 150 modules and 500 operations, about one
microsecond each. Here it is some 20 operations a layer, the others saved by arithmetic on the weights beforehand:

- A norm's scale is multiplied into the matrix behind it. Its eps is a channel more of the residual stream, which holds
  sqrt(D eps), so that RMSNorm is a division by the stream's length. LayerNorm is the same where nothing that is added
  to the stream has a mean (Ashkboos et al. 2024, arXiv 2401.15024, section 3.2).
- Queries, keys and values are one product, gate and up another.
- RoPE's pairs of channels are brought side by side (scores don't depend on the order), and are then complex numbers:
  all pairs of all heads turn by one multiplication.
- The caches of all layers are one tensor, of which a step takes its stretch once.

`inference.generate` uses it where `compiled_decoder.why_not` and `why_not_folded` find nothing in the way.
Dimension key: as in model.py, and R = H/G query heads of a group.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import ModelConfig
from lab.compiled_decoder import (
    Half,
    added_by_position,
    layer_halves,
    scale_and_shift,
    taps_and_bias,
    token_vectors,
    why_not,
)
from model import GPT, MQA, NONLINEARITIES, Context, alibi_slopes, rope_tables


def why_not_folded(model: GPT) -> str:
    """What of this model the folded decoder doesn't know, as a phrase; "" if it knows it all."""
    if reason := why_not(model):
        return reason
    cfg = model.cfg
    if any(isinstance(module, MQA) and module.window for module in model.modules()):
        return "attention has a window"
    if cfg.positions.startswith("rope") and cfg.head_dim % 2:
        return f"head_dim={cfg.head_dim} is odd"
    if cfg.norm_type == "LayerNorm" and not all(_is_identity(half.post_norm) for half in layer_halves(model.layers[0])):
        return "a LayerNorm stands behind a block"
    return ""


def _is_identity(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity)


# ---------------------------------------------------------------- what a layer is made of; `stream` is (B, D + 1)


@dataclass
class Matrix:
    """(B, inputs) -> (B, outputs)"""

    weight: Tensor  # (inputs, outputs)
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return torch.mm(x, self.weight) if self.bias is None else torch.addmm(self.bias, x, self.weight)


@dataclass
class Conv:
    """What is kept of the tokens before, and what they are multiplied by. Columns as in the stream."""

    scale: Tensor  # of the norm in front: (D + 1,)
    shift: Tensor
    taps: Tensor  # (width, D + 1), the latest token's last
    before: Tensor | None = None  # the inputs of the last width - 1 tokens: (B, width - 1, D + 1)

    def __call__(self, x: Tensor) -> Tensor:
        x = torch.addcmul(self.shift, x, self.scale)
        seen = torch.cat((self.before, x[:, None]), dim=1)
        self.before = seen[:, 1:]
        return (seen * self.taps).sum(dim=1)


@dataclass
class Reader:
    """A norm, perhaps a convolution, and the first matrix of a block."""

    matrix: Matrix
    conv: Conv | None

    def __call__(self, stream: Tensor) -> Tensor:
        """(B, D + 1) -> (B, outputs)"""
        x = stream / torch.linalg.vector_norm(stream, dim=-1, keepdim=True)
        return self.matrix(x if self.conv is None else self.conv(x))


@dataclass
class Writer:
    """The last matrix of a block, whose outputs are added to the stream, in place."""

    matrix: Matrix
    post_norm: nn.Module

    def __call__(self, stream: Tensor, x: Tensor) -> None:
        if not _is_identity(self.post_norm):
            stream[:, :-1] += self.post_norm(self.matrix(x)[:, :-1])
            return
        stream.addmm_(x, self.matrix.weight)
        if self.matrix.bias is not None:
            stream += self.matrix.bias


@dataclass
class FoldedLayer:
    qkv: Reader  # for each group: its query heads, its key, its value
    head_scales: Tensor | None  # of qk_norm: (R + 1, K)
    value_mix: list[float] | None  # of ValueResidualAttn: how much of the own values and of the first layer's
    out: Writer
    up: Reader
    down: Writer


# ---------------------------------------------------------------- decoding


class FoldedDecoder:
    """See the top of this file. Later changes of the model do not reach it."""

    @torch.inference_mode()
    def __init__(self, model: GPT):
        self.cfg = cfg = model.cfg
        self.layers = [_fold_layer(layer, cfg) for layer in model.layers]
        first = model.readout if model.head is model.readout else model.head[0]
        self.head = _reader(Half(model.final_norm, None, first, nn.Identity()), first.weight, None, cfg)
        self.readout = None if first is model.readout else model.readout.weight.T.contiguous()
        self.tokens = F.pad(_writable(token_vectors(model), cfg), (0, 1), value=math.sqrt(cfg.dim * cfg.norm_eps))
        places = added_by_position(model)
        self.places = None if places is None else F.pad(_writable(places, cfg), (0, 1))
        self.turns = _turns(cfg)
        self.slopes = alibi_slopes(cfg.num_q_heads).view(cfg.num_kv_heads, -1, 1) if cfg.positions == "alibi" else None
        self.nonlinearity = NONLINEARITIES[cfg.mlp_nonlinearity]
        self.tiny = torch.tensor(math.sqrt(cfg.head_dim * cfg.norm_eps))

    def start(self, ctx: Context) -> None:
        """Copies a filled cache. The next step is to repeat the last token of each row."""
        self.positions, self.end = ctx.seen - 1, ctx.span
        self.even = bool((ctx.seen == ctx.span).all())
        self.rows = torch.arange(len(ctx.seen))
        states = iter(ctx.cache.values())  # in the order in which the model's blocks have made them
        caches = []
        for layer in self.layers:
            self._recall(layer.qkv.conv, states)
            caches.append(next(states))
            self._recall(layer.up.conv, states)
        order = _pair_order(self.cfg)
        self.cache = torch.stack([torch.stack((keys[..., order], values)) for keys, values in caches])
        self.slots = self.cache.permute(0, 4, 2, 3, 1, 5).unbind()  # of each layer: (max_seq_len, B, G, 2, K)

    def _recall(self, conv: Conv | None, states) -> None:
        """What a convolution has seen before the token that is to be repeated."""
        if conv is None:
            return
        began, kept = next(states)  # as `blocks.scan.keep` left it
        places = (self.positions - began)[:, None] + torch.arange(len(conv.taps) - 1)
        conv.before = F.pad(kept[torch.arange(len(kept))[:, None], places], (0, 1))

    def step(self, ids: list[int]) -> Tensor:
        """The next token of each row -> logits (B, V)."""
        stream = self.tokens[ids]
        place = self.end - 1 if self.even else self.positions  # one number for all rows is quicker to index by
        if self.places is not None:
            stream += self.places[place]
        turn = None if self.turns is None else self.turns[place]
        slot, mask = place if self.even else (place, self.rows), self._mask()
        keys, values = self.cache[..., : self.end, :].unbind(1)  # (layers, B, G, S, K)
        first_values = None
        for layer, slots, k, v in zip(self.layers, self.slots, keys.unbind(), values.unbind(), strict=True):
            heads = self._heads(layer, layer.qkv(stream))
            if layer.value_mix is not None:
                first_values = _mix(heads[:, :, -1], first_values, layer.value_mix)
            if turn is not None:
                heads = (heads.view(torch.complex64) * turn).view(torch.float32)
            q, slots[slot] = torch.split_with_sizes(heads, (heads.shape[2] - 2, 2), dim=2)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, G, R, K)
            layer.out(stream, out.reshape(len(stream), -1))
            layer.down(stream, self._activate(layer.up(stream)))
        self.positions, self.end = self.positions + 1, self.end + 1
        return self._logits(stream)

    def _heads(self, layer: FoldedLayer, qkv: Tensor) -> Tensor:
        """(B, G * (R + 2) * K) -> (B, G, R + 2, K), with queries and keys normalised where the model has qk_norm"""
        heads = qkv.view(len(qkv), self.cfg.num_kv_heads, -1, self.cfg.head_dim)
        if layer.head_scales is not None:
            qk = heads[:, :, :-1]
            qk *= layer.head_scales / torch.hypot(torch.linalg.vector_norm(qk, dim=-1, keepdim=True), self.tiny)
        return heads

    def _activate(self, up: Tensor) -> Tensor:
        """(B, 2F), or (B, F) without the gate -> (B, F)"""
        if not self.cfg.mlp_gated:
            return self.nonlinearity(up)
        gate, up = up.chunk(2, dim=-1)
        return self.nonlinearity(gate) * up

    def _mask(self) -> Tensor | None:
        """What the rows may look at: bool (B, 1, 1, S), or what ALiBi adds, (B, G, R, S); None: at all in the cache."""
        if self.even and self.slopes is None:
            return None
        back = self.positions[:, None, None, None] - torch.arange(self.end)  # (B, 1, 1, S)
        if self.slopes is None:
            return back >= 0
        return (-self.slopes * back).masked_fill(back < 0, -math.inf)

    def _logits(self, stream: Tensor) -> Tensor:
        logits, cap = self.head(stream), self.cfg.logit_cap
        logits = logits if self.readout is None else torch.mm(logits, self.readout)
        return logits if cap is None else cap * torch.tanh(logits / cap)


def _mix(values: Tensor, first: Tensor | None, mix: list[float]) -> Tensor:
    """Adds the first layer's values (B, G, K) to this layer's, in place; returns the first layer's as they were."""
    first = values.clone() if first is None else first
    values.mul_(mix[0]).add_(first, alpha=mix[1])
    return first


# ---------------------------------------------------------------- folding


def _fold_layer(layer: nn.Module, cfg: ModelConfig) -> FoldedLayer:
    first, second = layer_halves(layer)
    attn, mlp = first.block, second.block
    ups = [linear for linear in (mlp.Wgate, mlp.Wup) if linear is not None]
    up = torch.cat([linear.weight for linear in ups])
    up_bias = None if mlp.Wup.bias is None else torch.cat([linear.bias for linear in ups])
    mix = getattr(attn, "mix", None)  # of ValueResidualAttn
    return FoldedLayer(
        qkv=_reader(first, *_by_group(attn, cfg), cfg),
        head_scales=_head_scales(attn, cfg) if cfg.qk_norm else None,
        value_mix=None if mix is None else mix.tolist(),
        out=_writer(first, attn.Wo, cfg),
        up=_reader(second, up, up_bias, cfg),
        down=_writer(second, mlp.Wdown, cfg),
    )


def _reader(half: Half, weight: Tensor, bias: Tensor | None, cfg: ModelConfig) -> Reader:
    """A block's first matrix, weight (N, D) and bias (N,) or None, with what stands in front of it."""
    scale, shift = scale_and_shift(half.norm, cfg.dim)
    scale = scale * math.sqrt(cfg.dim)
    conv = None
    if half.conv is None:
        weight, added = weight * scale, weight @ shift
    else:
        taps, conv_bias = taps_and_bias(half.conv)
        conv, added = Conv(*(F.pad(part, (0, 1)) for part in (scale, shift, taps.flip(0)))), weight @ conv_bias
    bias = added if bias is None else bias + added
    return Reader(Matrix(F.pad(weight.T, (0, 0, 0, 1)).contiguous(), bias if bias.any() else None), conv)


def _writer(half: Half, linear: nn.Linear, cfg: ModelConfig) -> Writer:
    weight, bias = _writable(linear.weight.T, cfg), linear.bias
    bias = None if bias is None else F.pad(_writable(bias, cfg), (0, 1))
    return Writer(Matrix(F.pad(weight, (0, 1)), bias), half.post_norm)


def _writable(rows: Tensor, cfg: ModelConfig) -> Tensor:
    """What is to be added to the stream, (..., D), without its mean where norms would take it off."""
    return rows - rows.mean(dim=-1, keepdim=True) if cfg.norm_type == "LayerNorm" else rows


def _by_group(attn: MQA, cfg: ModelConfig) -> tuple[Tensor, Tensor | None]:
    """Wq, Wk and Wv as one (G * (R + 2) * K, D), group after group, and their biases likewise."""
    G, K, order = cfg.num_kv_heads, cfg.head_dim, _pair_order(cfg)

    def joined(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.view(G, -1, K, *part.shape[1:]) for part in (q, k, v))
        return torch.cat((q[:, :, order], k[:, :, order], v), dim=1).flatten(0, 2)

    linears = (attn.Wq, attn.Wk, attn.Wv)
    bias = None if attn.Wq.bias is None else joined(*(linear.bias for linear in linears))
    return joined(*(linear.weight for linear in linears)), bias


def _pair_order(cfg: ModelConfig) -> Tensor:
    """A head's K channels, those first that RoPE turns, each beside the other one of its pair."""
    channels = torch.arange(cfg.head_dim)
    if cfg.positions != "rope":
        return channels  # pairs are neighbours already, or there are none
    R = cfg.rope_dim or cfg.head_dim
    return torch.cat((channels[:R].view(2, -1).T.flatten(), channels[R:]))


def _head_scales(attn: MQA, cfg: ModelConfig) -> Tensor:
    """What a group's queries and its key are multiplied by when their length is 1: (R + 1, K)"""
    order, queries = _pair_order(cfg), cfg.num_q_heads // cfg.num_kv_heads
    scales = [attn.q_norm.weight[order]] * queries + [attn.k_norm.weight[order]]
    return torch.stack(scales) * math.sqrt(cfg.head_dim)


def _turns(cfg: ModelConfig) -> Tensor | None:
    """What a group's pairs of channels are multiplied by: complex (max_seq_len, 1, R + 2, K/2), 1 for its values."""
    tables = rope_tables(torch.arange(cfg.max_seq_len), cfg)
    if tables is None:
        return None
    turn = torch.complex(*tables)  # (max_seq_len, pairs)
    turn = torch.cat((turn, turn.new_ones(len(turn), cfg.head_dim // 2 - turn.shape[1])), dim=1)
    heads = cfg.num_q_heads // cfg.num_kv_heads + 2
    turns = turn[:, None, None].repeat(1, 1, heads, 1)
    turns[:, :, -1] = 1
    return turns
