"""Gated DeltaNet: against Qwen3-Next and a plain loop, and how large the state is."""

import pytest
import torch
import torch.nn.functional as F
from toy_models import randomised

from blocks.delta import GatedDeltaNet, delta_chunk
from blocks.state_space import scan_in_chunks
from config import ModelConfig
from model import GPT, make_context

SMALL = ModelConfig(
    dim=32, num_layers=1, vocab_size=50, max_seq_len=160, num_q_heads=4, num_kv_heads=2, head_dim=6, mlp_hidden=80
)
SPECS = ["GatedDeltaNet", "GatedDeltaNet(heads=6, key_heads=3, key_dim=5, expand=3, conv=3)"]
specs = pytest.mark.parametrize("spec", SPECS)
HYBRID = "{Norm->GatedDeltaNet(key_heads=2)->+->Norm->MLP->+}*2->Norm->Attn->+->Norm->MLP->+"


def model_of(spec: str, dtype=torch.float64) -> GPT:
    return randomised(GPT(SMALL.replace(recipe=f"Norm->{spec}->+")), dtype)


def some_tokens(rows=3, length=24):
    return torch.randint(0, SMALL.vocab_size, (rows, length))


# ---------------------------------------------------------------- the delta rule


def tokens_of(length, rows=2, G=2, R=2, K=3, P=5, dtype=torch.float64):
    """q, k, v, log a, b, and a first state."""
    q, k = F.normalize(torch.randn(2, rows, length, G, 1, K, dtype=dtype), dim=-1)
    v = torch.randn(rows, length, G, R, P, dtype=dtype)
    log_a, b = F.logsigmoid(torch.randn(2, rows, length, G, R, 1, dtype=dtype))
    return [value.requires_grad_() for value in (q, k, v, log_a, b.exp(), torch.randn(rows, G, R, K, P, dtype=dtype))]


def plain_delta_rule(q, k, v, log_a, b, S, first=None):
    """The definition, token by token."""
    out = []
    for t in range(v.shape[1]):
        a = log_a[:, t, ..., None].exp()  # (B, G, R, 1, 1)
        S = a * S if first is None else a * S * ~first[:, t, None, None, None, None]
        key = k[:, t, ..., None]  # (B, G, 1, K, 1)
        held = (S * key).sum(-2)  # (B, G, R, P)
        S = S + key * (b[:, t] * (v[:, t] - held))[..., None, :]
        out.append((S * q[:, t, ..., None]).sum(-2))
    return torch.stack(out, dim=1), S


@pytest.mark.parametrize("length", [1, 2, 17])
@pytest.mark.parametrize("packed", [False, True])
def test_a_chunk_equals_the_loop_forward_and_backward(length, packed):
    inputs, first = tokens_of(length), torch.rand(2, length) < 0.3 if packed else None
    ours, theirs = delta_chunk(*inputs, first), plain_delta_rule(*inputs, first)
    weights = [torch.randn_like(value) for value in ours]
    gradients = [
        torch.autograd.grad(sum((w * value).sum() for w, value in zip(weights, out, strict=True)), inputs)
        for out in (ours, theirs)
    ]
    for a, b in zip([*ours, *gradients[0]], [*theirs, *gradients[1]], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("length", [64, 65, 150])
@pytest.mark.parametrize("packed", [False, True])
def test_chunks_in_a_row_equal_the_loop(length, packed):
    *tokens, start = tokens_of(length)
    segments = (torch.rand(2, length) < 0.05).cumsum(1) if packed else None
    ctx = make_context(SMALL, tokens[2], segments=segments)
    first = None if segments is None else F.pad(segments.diff(dim=1) != 0, (1, 0), value=True)
    start = torch.zeros_like(start) if packed else start
    torch.testing.assert_close(
        scan_in_chunks(delta_chunk, tuple(tokens), start, ctx), plain_delta_rule(*tokens, start, first)[0]
    )


def test_a_value_written_with_full_strength_replaces_the_one_before():
    q = k = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]).view(1, 3, 1, 1, 2)
    v = torch.tensor([[3.0], [5.0], [7.0]]).view(1, 3, 1, 1, 1)
    kept, full, empty = torch.zeros(1, 3, 1, 1, 1), torch.ones(1, 3, 1, 1, 1), torch.zeros(1, 1, 1, 2, 1)
    y, S = delta_chunk(q, k, v, kept, full, empty, None)
    assert y.flatten().tolist() == [3.0, 5.0, 7.0] and S.flatten().tolist() == [7.0, 5.0]


def test_small_decays_are_not_lost_beside_large_ones():
    q, k, v, log_a, b, S = tokens_of(40, dtype=torch.float32)
    log_a = log_a.detach() * 1e-3
    log_a[:, 3] = -1e6  # forgets all; a difference of sums from the start would drown what comes after it
    ours = delta_chunk(q, k, v, log_a, b, S, None)
    exact = plain_delta_rule(*(value.double() for value in (q, k, v, log_a, b, S)))
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- oracles


@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_the_rule_equals_qwen3_next(form):
    from transformers.models.qwen3_next import modeling_qwen3_next as qwen

    rule = {"chunk": qwen.torch_chunk_gated_delta_rule, "recurrent": qwen.torch_recurrent_gated_delta_rule}[form]
    q, k, v, log_a, b, S = (value.detach() for value in tokens_of(50, G=4, R=1, dtype=torch.float32))
    given = (q[..., 0, :], k[..., 0, :], v[..., 0, :])
    expected, state = rule(
        *given, g=log_a[..., 0, 0], beta=b[..., 0, 0], initial_state=S[:, :, 0].clone(), output_final_state=True
    )
    y, S = delta_chunk(q * q.shape[-1] ** -0.5, k, v, log_a, b, S, None)
    torch.testing.assert_close(y[..., 0, :], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(S[:, :, 0], state, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("key_heads", "length"), [(4, 5), (2, 64), (1, 150)])
def test_gated_delta_net_equals_qwen3_next(key_heads, length):
    from transformers import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    G, R, K, P = key_heads, 4 // key_heads, 6, 12
    config = Qwen3NextConfig(
        hidden_size=32, linear_num_value_heads=4, linear_num_key_heads=G, linear_key_head_dim=K,
        linear_value_head_dim=P, linear_conv_kernel_dim=4, rms_norm_eps=1e-5, num_hidden_layers=1,
        layer_types=["linear_attention"],
    )  # fmt: skip
    theirs = randomised(Qwen3NextGatedDeltaNet(config, 0), torch.float32)
    ours = GatedDeltaNet(SMALL, key_heads=G)
    # they keep the rows of a key head together: its q, k, values and gates; and its strengths and decays
    q, k, v, gate = theirs.in_proj_qkvz.weight.unflatten(0, (G, -1)).split([K, K, R * P, R * P], dim=1)
    b, a = theirs.in_proj_ba.weight.unflatten(0, (G, -1)).split([R, R], dim=1)
    matrices = {"Wq": q, "Wk": k, "Wv": v, "Wgate": gate, "Wb": b, "Wa": a}
    convs = theirs.conv1d.weight.split([G * K, G * K, 4 * P])
    ours.load_state_dict(
        {f"{name}.weight": w.flatten(0, 1) for name, w in matrices.items()}
        | {f"conv_{name}.weight": w for name, w in zip("qkv", convs, strict=True)}
        | {"A_log": theirs.A_log, "dt_bias": theirs.dt_bias}
        | {"norm.weight": theirs.norm.weight, "Wo.weight": theirs.out_proj.weight}
    )
    x = torch.randn(3, length, 32)
    expected = theirs(x).detach()
    assert expected.abs().mean() > 0.05
    torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- decoding


@specs
def test_the_state_stays_as_small_as_documented(spec):
    model, tokens = model_of(spec), some_tokens()
    ctx = model.context(tokens, decode=True)
    for t in range(5):
        model(tokens[:, t : t + 1], ctx)
    tails = [state[1][0, 1:] for slot, state in ctx.cache.items() if "conv" in slot]  # without what allows to rewind
    (S,) = [state[1][0] for slot, state in ctx.cache.items() if "conv" not in slot]
    H, G, K, P, conv = {SPECS[0]: (4, 4, 6, 12, 4), SPECS[1]: (6, 3, 5, 15, 3)}[spec]
    assert S.numel() + sum(tail.numel() for tail in tails) == H * K * P + (conv - 1) * (2 * G * K + H * P)


# ---------------------------------------------------------------- how it starts, and what is refused


def test_it_starts_with_long_memories_and_adds_nothing():
    block = GPT(SMALL.replace(recipe="Norm->GatedDeltaNet(heads=320)->+")).layers[0].gateddeltanet
    kept = torch.exp(-block.A_log.exp() * F.softplus(block.dt_bias))
    assert 0.15 < kept.min() < 0.4 and 0.99 < kept.max() < 1
    assert block.Wo.weight.abs().max() == 0


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("GatedDeltaNet(key_heads=3)", "heads=4, key_heads=3, .* key_heads must divide heads"),
        ("GatedDeltaNet(key_dim=0)", "key_dim=0 .* must be at least 1"),
        ("GatedDeltaNet(conv=0)", "width=0 must be at least 1"),
        ("GatedDeltaNet(head=3)", "did you mean 'heads'"),
    ],
)
def test_wrong_arguments_are_refused(spec, words):
    with pytest.raises(ValueError, match=words):
        GPT(SMALL.replace(recipe=f"Norm->{spec}->+"))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_hybrid_learns_and_decodes(optimizer):
    from config import TrainConfig
    from train import make_step

    cfg, tokens = SMALL.replace(recipe=HYBRID), some_tokens(rows=2)
    settings = {"max_iters": 12, "warmup_iters": 0, "lr_max": 1e-2, "lr_min": 1e-3, "batch_size": 2, "seed": 0}
    step = make_step(cfg, TrainConfig(model_name="test", optimizer=optimizer, **settings), "cpu")
    losses = [float(step(tokens[:, :-1], tokens[:, 1:])) for _ in range(12)]
    assert abs(losses[0] / torch.log(torch.tensor(50.0)) - 1) < 0.02 and losses[-1] < 0.8 * losses[0]
    model = randomised(GPT(cfg))
    ctx = model.context(tokens, decode=True)
    parts = [model(part, ctx) for part in tokens.split([7, 1, 1, 5, 10], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens))
