"""Decoding in plain PyTorch by fewer and larger operations than the model's own modules make, for one new token a text.

    decoder = FoldedDecoder(model)                     # a copy of the weights as they are now
    logits, ctx = last_logits(model, prompts, decode=True)
    decoder.start(ctx)                                 # copies the cache that the model has filled
    logits = decoder.step(last_ids)                    # (B, V); the first step repeats each prompt's last token

A step of a small model has little to compute: its time goes into calling some 150 modules and 500 operations. Here a
norm's scale is multiplied into the matrix behind it, and what reads the same input is one product: queries, keys and
values, and once more all three with the channels of each pair exchanged, which is what RoPE adds, so that turning all
of them is one multiplication by cosines and one by sines (1 and 0 for values, which are not turned).
`inference.generate` uses it where `compiled_decoder.why_not` and `why_not_folded` find nothing in the way.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import ModelConfig
from lab.compiled_decoder import added_by_position, layer_parts, token_vectors, why_not
from model import GPT, MQA, NONLINEARITIES, Context, RMSNorm, rope_tables


def why_not_folded(model: GPT) -> str:
    """What of this model the folded decoder doesn't know, as a phrase; "" if it knows it all."""
    windowed = any(isinstance(module, MQA) and module.window for module in model.modules())
    return why_not(model) or ("attention has a window" if windowed else "")


@dataclass
class Folded:
    """A matrix (inputs, outputs) with what stands before it multiplied in, and a bias or None."""

    matrix: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(B, inputs) -> (B, outputs), added to the residual where there is one."""
        y = torch.mm(x, self.matrix) if residual is None else torch.addmm(residual, x, self.matrix)
        return y if self.bias is None else y + self.bias


@dataclass
class FoldedLayer:
    qkv: Folded
    cos: Tensor  # (max_seq_len, H + 2G, K), for queries, keys and values, with the scales of qk_norm
    sin: Tensor
    out: Folded
    attn_post: RMSNorm | nn.Identity
    up: Folded
    down: Folded
    mlp_post: RMSNorm | nn.Identity
    cache: Tensor | None = None  # (B, 2G, max_seq_len, K), keys before values


class FoldedDecoder:
    """See the top of this file. Later changes of the model do not reach it."""

    @torch.inference_mode()
    def __init__(self, model: GPT):
        self.cfg = cfg = model.cfg
        turns = None if cfg.qk_norm else _turns(None, cfg)  # the same in all layers, where these have no norm for heads
        self.layers = [_fold_layer(block, cfg, turns) for block in model.layers]
        self.head = _fold(model.final_norm, [model.readout] if model.head is model.readout else list(model.head))
        self.tokens, self.places = token_vectors(model), added_by_position(model)
        self.nonlinearity = NONLINEARITIES[cfg.mlp_nonlinearity]
        self.tiny, self.tiny_head = (torch.tensor(math.sqrt(n * cfg.norm_eps)) for n in (cfg.dim, cfg.head_dim))

    def start(self, ctx: Context) -> None:
        """Copies a filled cache. The next step is to repeat the last token of each row."""
        for layer, (keys, values) in zip(self.layers, ctx.cache.values()):  # each (B, G, S, K)
            layer.cache = torch.cat((keys, values), dim=1)
        self.positions, self.end = ctx.seen - 1, ctx.span
        self.even = bool((ctx.seen == ctx.span).all())
        self.rows = torch.arange(len(ctx.seen))

    def step(self, ids: list[int]) -> Tensor:
        """The next token of each row -> logits (B, V)."""
        x = self.tokens[ids]  # (B, D)
        place, mask = self.end - 1, None  # one number for all rows, where that can be: indexing by it is quicker
        if not self.even:
            place = self.positions  # (B,)
            mask = (torch.arange(self.end) <= place[:, None])[:, None, None]  # (B, 1, 1, S)
        x = x if self.places is None else x + self.places[place]
        for layer in self.layers:
            x = self._attend(layer, x, place, mask)
            up = layer.up(unit(x, self.tiny))  # (B, 2F), or (B, F) without the gate
            if self.cfg.mlp_gated:
                gate, up = up.chunk(2, dim=-1)
                up = self.nonlinearity(gate) * up
            else:
                up = self.nonlinearity(up)
            x = _add(x, up, layer.down, layer.mlp_post)
        self.positions, self.end = self.positions + 1, self.end + 1
        return self.head(unit(x, self.tiny))

    def _attend(self, layer: FoldedLayer, x: Tensor, place: int | Tensor, mask: Tensor | None) -> Tensor:
        """The residual stream with what attention adds: (B, D) -> (B, D)"""
        H, G, K = self.cfg.num_q_heads, self.cfg.num_kv_heads, self.cfg.head_dim
        heads, exchanged = layer.qkv(unit(x, self.tiny)).view(len(x), 2, H + 2 * G, K).unbind(1)
        turned = torch.addcmul(heads * layer.cos[place], exchanged, layer.sin[place])
        if self.cfg.qk_norm:
            lengths = torch.hypot(torch.linalg.vector_norm(heads, dim=-1, keepdim=True), self.tiny_head)
            lengths[:, H + G :] = 1  # values are not normalised
            turned = turned / lengths
        rows = slice(None) if self.even else self.rows
        layer.cache[rows, :, place] = turned[:, H:]
        k, v = layer.cache[:, :, : self.end].chunk(2, dim=1)  # (B, G, S, K)
        q = turned[:, :H].unflatten(1, (G, H // G))  # a group's query heads are rows that look at the same keys
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return _add(x, out.reshape(len(x), H * K), layer.out, layer.attn_post)


def unit(x: Tensor, tiny: Tensor) -> Tensor:
    """RMSNorm without its factor sqrt(D) and its scale: x / sqrt(|x|^2 + D eps), `tiny` being sqrt(D eps)."""
    return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), tiny)


def _add(x: Tensor, y: Tensor, last: Folded, post_norm: nn.Module) -> Tensor:
    return last(y, residual=x) if isinstance(post_norm, nn.Identity) else x + post_norm(last(y))


def _fold(norm: RMSNorm | None, linears: list[nn.Linear]) -> Folded:
    """Linear layers, one after the other, with the norm before them."""
    weight, bias = linears[0].weight, linears[0].bias
    for linear in linears[1:]:
        weight = linear.weight @ weight
    if norm is not None:
        if norm.bias is not None:
            bias = weight @ norm.bias + (0 if bias is None else bias)
        weight = weight * norm.weight * math.sqrt(weight.shape[1])
    return Folded(weight.T.contiguous(), bias)


def _side_by_side(parts: list[Folded]) -> Folded:
    """Matrices with the same inputs as one."""
    bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
    return Folded(torch.cat([part.matrix for part in parts], dim=1), bias)


def _fold_layer(block: nn.Module, cfg: ModelConfig, turns: tuple[Tensor, Tensor] | None) -> FoldedLayer:
    attn_norm, attn, attn_post, mlp_norm, mlp, mlp_post = layer_parts(block)
    qkv = _side_by_side([_fold(attn_norm, [linear]) for linear in (attn.Wq, attn.Wk, attn.Wv)])
    exchanged = _exchange(qkv, cfg)
    ups = [linear for linear in (mlp.Wgate, mlp.Wup) if linear is not None]
    up = _side_by_side([_fold(mlp_norm, [linear]) for linear in ups])
    cos, sin = turns or _turns(attn, cfg)
    out, down = _fold(None, [attn.Wo]), _fold(None, [mlp.Wdown])
    return FoldedLayer(_side_by_side([qkv, exchanged]), cos, sin, out, attn_post, up, down, mlp_post)


def _pairs(cfg: ModelConfig) -> tuple[Tensor, Tensor]:
    """The first and the second channels of the pairs that RoPE turns within a head; none where it is not used."""
    R = (cfg.rope_dim or cfg.head_dim) if cfg.positions.startswith("rope") else 0
    if cfg.positions == "rope_interleaved":
        return torch.arange(0, R, 2), torch.arange(1, R, 2)
    return torch.arange(R // 2), torch.arange(R // 2, R)


def _partners(cfg: ModelConfig) -> Tensor:
    """For each of K channels the other one of its pair, or itself."""
    first, second = _pairs(cfg)
    partners = torch.arange(cfg.head_dim)
    partners[first], partners[second] = second, first
    return partners


def _exchange(qkv: Folded, cfg: ModelConfig) -> Folded:
    """The same matrix with each head's outputs in the places of their partners."""
    order = torch.arange(qkv.matrix.shape[1]).view(-1, cfg.head_dim)[:, _partners(cfg)].flatten()
    return Folded(qkv.matrix[:, order], None if qkv.bias is None else qkv.bias[order])


def _turns(attn: MQA | None, cfg: ModelConfig) -> tuple[Tensor, Tensor]:
    """What heads and their exchanged copies are multiplied by at each position: two of (max_seq_len, H + 2G, K).

    attn: whose scales of qk_norm are multiplied in; None where there are none.
    """
    H, G, K, S = cfg.num_q_heads, cfg.num_kv_heads, cfg.head_dim, cfg.max_seq_len
    first, second = _pairs(cfg)
    cos, sin = torch.ones(S, K), torch.zeros(S, K)
    if len(first):
        cos[:, first], sin[:, second] = rope_tables(torch.arange(S), cfg)
        cos[:, second], sin[:, first] = cos[:, first], -sin[:, second]
    scales = torch.ones(H + 2 * G, K)
    if cfg.qk_norm:
        scales[:H], scales[H : H + G] = attn.q_norm.weight * math.sqrt(K), attn.k_norm.weight * math.sqrt(K)
    cos, sin = cos[:, None] * scales, sin[:, None] * scales[:, _partners(cfg)]
    cos[:, H + G :], sin[:, H + G :] = 1, 0
    return cos, sin
