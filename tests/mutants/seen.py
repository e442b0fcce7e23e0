"""Right modules, first half: those whose mutants may be looked at while the tracer's hints are written.

Small, and written the way different people write them, on purpose. `MODULES` says what each is called with.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from mutants.inputs import activations, activations_and_mask, activations_and_memory, tokens_and_targets
from tools import LoggingModule, log_io


class HandAttention(nn.Module):
    """Causal multi-head attention, step by step."""

    def __init__(self, cfg):
        super().__init__()
        self.n_head = cfg.num_q_heads
        self.d_head = cfg.head_dim
        inner = self.n_head * self.d_head
        self.query = nn.Linear(cfg.dim, inner)
        self.key = nn.Linear(cfg.dim, inner)
        self.value = nn.Linear(cfg.dim, inner)
        self.proj = nn.Linear(inner, cfg.dim)
        self.register_buffer("mask", torch.tril(torch.ones(cfg.max_seq_len, cfg.max_seq_len)), persistent=False)

    def forward(self, x):
        B, T, _ = x.shape
        q = self.query(x).view(B, T, self.n_head, self.d_head).transpose(1, 2)
        k = self.key(x).view(B, T, self.n_head, self.d_head).transpose(1, 2)
        v = self.value(x).view(B, T, self.n_head, self.d_head).transpose(1, 2)
        att = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(self.d_head)
        att = att.masked_fill(self.mask[:T, :T] == 0, float("-inf"))
        att = F.softmax(att, dim=-1)
        y = torch.matmul(att, v)
        y = y.transpose(1, 2).contiguous().view(B, T, self.n_head * self.d_head)
        return self.proj(y)


class GroupedAttention(LoggingModule):
    """Grouped-query attention with the mask as an argument; key/value heads are repeated."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        H, G, K = cfg.num_q_heads, cfg.num_kv_heads, cfg.head_dim
        self.Wq = nn.Linear(cfg.dim, H * K, bias=False)
        self.Wk = nn.Linear(cfg.dim, G * K, bias=False)
        self.Wv = nn.Linear(cfg.dim, G * K, bias=False)
        self.Wo = nn.Linear(H * K, cfg.dim, bias=False)

    @log_io
    def forward(self, x, mask):
        """(B, T, D), (max_seq_len, max_seq_len) -> (B, T, D)"""
        T = x.shape[1]
        H, G, K = self.cfg.num_q_heads, self.cfg.num_kv_heads, self.cfg.head_dim
        q = self.Wq(x).unflatten(-1, (H, K)).transpose(1, 2)  # (B, H, T, K)
        k = self.Wk(x).unflatten(-1, (G, K)).transpose(1, 2)  # (B, G, T, K)
        v = self.Wv(x).unflatten(-1, (G, K)).transpose(1, 2)  # (B, G, T, K)
        k = k.repeat_interleave(H // G, dim=1)  # (B, H, T, K)
        v = v.repeat_interleave(H // G, dim=1)  # (B, H, T, K)
        out = self.attend(q, k, v, mask[:T, :T].bool())
        return self.Wo(out.transpose(1, 2).flatten(2))  # (B, T, D)

    @log_io
    def attend(self, q, k, v, allowed):
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B, H, T, T)
        scores = scores.masked_fill(~allowed, -torch.inf)
        return scores.softmax(dim=-1) @ v  # (B, H, T, K)


def rotate_pairs(x, cos, sin):
    """Rotates channel pairs (i, i + K/2) of x (B, H, T, K) by the angles of cos and sin (T, K/2)."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class RotaryAttention(nn.Module):
    """Rotary positions, and PyTorch's own attention with fewer key/value heads."""

    def __init__(self, cfg):
        super().__init__()
        self.num_q_heads, self.num_kv_heads, self.head_dim = cfg.num_q_heads, cfg.num_kv_heads, cfg.head_dim
        self.q_proj = nn.Linear(cfg.dim, cfg.num_q_heads * cfg.head_dim, bias=False)
        self.kv_proj = nn.Linear(cfg.dim, 2 * cfg.num_kv_heads * cfg.head_dim, bias=False)
        self.out_proj = nn.Linear(cfg.num_q_heads * cfg.head_dim, cfg.dim, bias=False)
        rates = cfg.rope_theta ** (-torch.arange(0, cfg.head_dim, 2) / cfg.head_dim)  # (K/2,)
        angles = torch.arange(cfg.max_seq_len).unsqueeze(1) * rates  # (max_seq_len, K/2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x):
        batch, length, _ = x.size()
        q = self.q_proj(x).reshape(batch, length, self.num_q_heads, self.head_dim)
        k, v = self.kv_proj(x).chunk(2, dim=-1)
        k = k.reshape(batch, length, self.num_kv_heads, self.head_dim)
        v = v.reshape(batch, length, self.num_kv_heads, self.head_dim)
        q, k, v = (t.permute(0, 2, 1, 3) for t in (q, k, v))
        cos, sin = self.cos[:length], self.sin[:length]
        q = rotate_pairs(q, cos, sin)
        k = rotate_pairs(k, cos, sin)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.out_proj(out.permute(0, 2, 1, 3).flatten(start_dim=2))


class EinsumAttention(nn.Module):
    """Attention whose every contraction is an einsum, with weights kept as (D, H, K) tensors."""

    def __init__(self, cfg):
        super().__init__()
        D, H, K = cfg.dim, cfg.num_q_heads, cfg.head_dim
        self.scale = K**-0.5
        self.Wq = nn.Parameter(torch.randn(D, H, K) * D**-0.5)
        self.Wk = nn.Parameter(torch.randn(D, H, K) * D**-0.5)
        self.Wv = nn.Parameter(torch.randn(D, H, K) * D**-0.5)
        self.Wo = nn.Parameter(torch.randn(H, K, D) * (H * K) ** -0.5)

    def forward(self, x):
        T = x.shape[1]
        q = torch.einsum("btd,dhk->bthk", x, self.Wq)
        k = torch.einsum("btd,dhk->bthk", x, self.Wk)
        v = torch.einsum("btd,dhk->bthk", x, self.Wv)
        logits = torch.einsum("bthk,bshk->bhts", q, k) * self.scale
        future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
        weights = logits.masked_fill(future, float("-inf")).softmax(-1)
        out = torch.einsum("bhts,bshk->bthk", weights, v)
        return torch.einsum("bthk,hkd->btd", out, self.Wo)


class CrossAttention(LoggingModule):
    """Queries from x, keys and values from a memory of another length, some of whose places are empty."""

    def __init__(self, cfg):
        super().__init__()
        self.heads, self.width = cfg.num_q_heads, cfg.head_dim
        self.to_q = nn.Linear(cfg.dim, self.heads * self.width, bias=False)
        self.to_kv = nn.Linear(cfg.dim, 2 * self.heads * self.width, bias=False)
        self.to_out = nn.Linear(self.heads * self.width, cfg.dim)

    def split(self, t):
        """(B, L, H*K) -> (B, H, L, K)"""
        B, L, _ = t.shape
        return t.view(B, L, self.heads, self.width).permute(0, 2, 1, 3)

    def forward(self, x, memory, filled):
        B, T, _ = x.shape
        q = self.split(self.to_q(x))
        k, v = self.to_kv(memory).chunk(2, dim=2)
        k, v = self.split(k), self.split(v)
        scores = (q @ k.transpose(2, 3)) / self.width**0.5
        empty = ~filled.bool()
        scores = scores.masked_fill(empty[:, None, None, :], -1e9)
        out = torch.softmax(scores, dim=3) @ v
        out = out.permute(0, 2, 1, 3).reshape(B, T, self.heads * self.width)
        return self.to_out(out)


class GatedMLP(nn.Module):
    """x + Wdown(silu(gate) * up) of the RMS-normalised x, with gate and up from one projection."""

    def __init__(self, cfg):
        super().__init__()
        self.eps = cfg.norm_eps
        self.d_ff = cfg.mlp_hidden
        self.weight = nn.Parameter(torch.ones(cfg.dim))
        self.w_in = nn.Linear(cfg.dim, 2 * cfg.mlp_hidden, bias=False)
        self.w_out = nn.Linear(cfg.mlp_hidden, cfg.dim, bias=False)

    def norm(self, x):
        rms = x.pow(2).mean(dim=-1, keepdim=True).add(self.eps).sqrt()
        return x / rms * self.weight

    def forward(self, x):
        gate, up = self.w_in(self.norm(x)).split(self.d_ff, dim=-1)
        return x + self.w_out(F.silu(gate) * up)


class CenterNorm(nn.Module):
    """LayerNorm written out."""

    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(dim))
        self.shift = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        var = ((x - mean) ** 2).mean(-1, keepdim=True)
        return (x - mean) / torch.sqrt(var + self.eps) * self.gain + self.shift


class FusedAttention(nn.Module):
    """Attention with queries, keys and values from one Linear."""

    def __init__(self, cfg):
        super().__init__()
        self.num_heads, self.head_dim = cfg.num_q_heads, cfg.head_dim
        self.qkv = nn.Linear(cfg.dim, 3 * cfg.num_q_heads * cfg.head_dim)
        self.out = nn.Linear(cfg.num_q_heads * cfg.head_dim, cfg.dim)

    def forward(self, x, mask):
        B, T, _ = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        scores = torch.matmul(q, k.mT) * self.head_dim**-0.5 + mask
        mixed = scores.softmax(-1).matmul(v).transpose(1, 2)
        return self.out(mixed.flatten(-2))


class ResidualBlock(LoggingModule):
    """Two sublayers, each behind a norm and added to the stream; the additive mask is cut to length here."""

    def __init__(self, cfg):
        super().__init__()
        self.norm1 = CenterNorm(cfg.dim)
        self.attn = FusedAttention(cfg)
        self.norm2 = CenterNorm(cfg.dim)
        self.mlp = nn.Sequential(nn.Linear(cfg.dim, cfg.mlp_hidden), nn.GELU(), nn.Linear(cfg.mlp_hidden, cfg.dim))
        mask = torch.full((cfg.max_seq_len, cfg.max_seq_len), float("-inf")).triu(1)
        self.register_buffer("causal_mask", mask, persistent=False)

    @log_io
    def mix(self, x):
        T = x.size(1)
        return x + self.attn(self.norm1(x), self.causal_mask[None, None, :T, :T])

    def forward(self, x):
        x = self.mix(x)
        return x + self.mlp(self.norm2(x))


class SoftExperts(nn.Module):
    """A mixture of experts in which every expert works on every token and a softmax weighs their answers."""

    num_experts = 9

    def __init__(self, cfg):
        super().__init__()
        E, D, F_ = self.num_experts, cfg.dim, cfg.mlp_hidden
        self.router = nn.Linear(D, E)
        self.w1 = nn.Parameter(torch.randn(E, D, F_) * D**-0.5)
        self.w2 = nn.Parameter(torch.randn(E, F_, D) * F_**-0.5)

    def forward(self, x):
        B, T, D = x.shape
        gates = self.router(x).softmax(dim=-1).view(B * T, self.num_experts)
        flat = x.reshape(B * T, D)
        hidden = F.relu(torch.einsum("nd,edf->nef", flat, self.w1))
        answers = torch.einsum("nef,efd->ned", hidden, self.w2)
        mixed = (gates.unsqueeze(-1) * answers).sum(dim=1)
        return mixed.view(B, T, D)


class ConvMixer(nn.Module):
    """A causal depthwise convolution mixes positions, two 1x1 matrices mix channels."""

    def __init__(self, cfg, width=7):
        super().__init__()
        self.width = width
        self.depthwise = nn.Conv1d(cfg.dim, cfg.dim, width, groups=cfg.dim)
        self.up = nn.Linear(cfg.dim, cfg.mlp_hidden)
        self.down = nn.Linear(cfg.mlp_hidden, cfg.dim)
        self.scale = nn.Parameter(torch.ones(cfg.dim))

    def forward(self, x):
        seq_len = x.shape[1]
        h = x.transpose(1, 2)
        h = F.pad(h, (self.width - 1, self.width - 1))
        h = self.depthwise(h)[:, :, :seq_len]
        h = h * self.scale[:, None]
        x = x + h.transpose(1, 2)
        return x + self.down(F.gelu(self.up(x)))


class TinyLM(LoggingModule):
    """Token and position embeddings, one mean-pooling layer over the past, a head, and the loss."""

    def __init__(self, cfg):
        super().__init__()
        self.tok_emb = nn.Embedding(cfg.vocab_size, cfg.dim)
        self.pos_emb = nn.Parameter(torch.randn(cfg.max_seq_len, cfg.dim) * 0.02)
        self.past = nn.Linear(cfg.dim, cfg.dim, bias=False)
        self.ln_f = nn.LayerNorm(cfg.dim)
        self.lm_head = nn.Linear(cfg.dim, cfg.vocab_size, bias=False)

    def running_mean(self, x):
        counts = torch.arange(1, x.shape[1] + 1, device=x.device)
        return x.cumsum(dim=1) / counts[:, None]

    @log_io
    def forward(self, idx, targets):
        B, T = idx.shape
        x = self.tok_emb(idx) + self.pos_emb[:T]
        x = x + self.past(self.running_mean(x))
        logits = self.lm_head(self.ln_f(x))
        V = logits.shape[-1]
        return F.cross_entropy(logits.view(B * T, V), targets.reshape(B * T).long())


MODULES = {
    HandAttention: activations,
    GroupedAttention: activations_and_mask,
    RotaryAttention: activations,
    EinsumAttention: activations,
    CrossAttention: activations_and_memory,
    GatedMLP: activations,
    ResidualBlock: activations,
    SoftExperts: activations,
    ConvMixer: activations,
    TinyLM: tokens_and_targets,
}
