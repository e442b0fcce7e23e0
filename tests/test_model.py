"""The model against closed forms, PyTorch's own functions, and the rules that every block keeps."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import model as model_file
from config import NONLINEARITIES, NORMS, PRESETS, ModelConfig
from model import GPT, LAYERS, MLP, MQA, RMSNorm, attend, attend_in_chunks, make_context, make_norm, rotate, sinusoid

SMALL = ModelConfig(
    dim=32, num_layers=2, vocab_size=50, max_seq_len=24, num_q_heads=4, num_kv_heads=2, head_dim=6, qk_norm=True
)
VARIANTS = {
    "llama": SMALL,
    "post_norm": SMALL.replace(post_norm=True),
    "learned": SMALL.replace(positions="learned", norm_type="LayerNorm", norm_bias=True, tied_head=False),
    "sinusoidal": SMALL.replace(positions="sinusoidal", norm_type="CosineNorm", mlp_gated=False, mlp_bias=True),
    "nowhere": SMALL.replace(positions="none", num_kv_heads=1, qk_norm=False, scale_first_residual=True),
    "multi_head": SMALL.replace(num_kv_heads=4, norm_affine=False, mlp_nonlinearity="relu2"),
    "capped": SMALL.replace(logit_cap=2.0, rope_factor=4.0, rope_original_len=8),
}
variants = pytest.mark.parametrize("cfg", VARIANTS.values(), ids=VARIANTS)


def randomised(module: torch.nn.Module, dtype=torch.float64) -> torch.nn.Module:
    """All parameters random: the zeros that blocks start with would hide errors."""
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return module.to(dtype).eval()


def some_tokens(cfg, rows=3, length=None):
    return torch.randint(0, cfg.vocab_size, (rows, length or cfg.max_seq_len))


# ---------------------------------------------------------------- norms


def test_norms_equal_pytorch():
    x = torch.randn(3, 5, 32, dtype=torch.float64)
    w, b = torch.randn(2, 32, dtype=torch.float64)
    expected = {
        "RMSNorm": F.rms_norm(x, (32,), w, 1e-5) + b,
        "LayerNorm": F.layer_norm(x, (32,), w, b, 1e-5),
        "CosineNorm": F.normalize(x, dim=-1) * w + b,
        "DyT": torch.tanh(0.5 * x) * w + b,
        "none": x,
    }
    assert set(expected) == set(NORMS) == set(model_file.NORMS)
    for name, y in expected.items():
        norm = make_norm(SMALL.replace(norm_type=name, norm_bias=True)).double()
        if name != "none":
            norm.weight.data, norm.bias.data = w, b
        torch.testing.assert_close(norm(x), y)


def test_rms_norm_closed_form_and_in_bf16():
    x = torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(RMSNorm(2, eps=0.0)(x), x / math.sqrt(12.5))
    half = RMSNorm(2)(x.bfloat16())
    assert half.dtype == torch.bfloat16 and half.isfinite().all()


def test_norms_of_a_zero_vector_are_finite():
    for name in NORMS:
        assert make_norm(SMALL.replace(norm_type=name))(torch.zeros(1, 1, 32)).isfinite().all()


# ---------------------------------------------------------------- positions


def test_rope_turns_pairs_by_position_times_frequency():
    cfg = SMALL.replace(head_dim=4, rope_theta=100.0)
    x = torch.randn(1, 7, 1, 4)
    turned = rotate(x, make_context(cfg, x[:, :, 0]).rope)
    as_complex = torch.complex(x[..., :2], x[..., 2:])  # channel i with channel i + K/2
    angles = torch.arange(7)[:, None] * torch.tensor([1.0, 100.0**-0.5])
    expected = as_complex * torch.polar(torch.ones(7, 2), angles)[:, None]
    torch.testing.assert_close(turned, torch.cat((expected.real, expected.imag), dim=-1))


def test_stretched_rope_divides_all_speeds_or_the_slow_ones():
    """Four speeds 1, 1/10, 1/100, 1/1000: in 200 positions these make 32, 3.2, 0.32 and 0.03 turns."""
    cfg = SMALL.replace(head_dim=8, rope_theta=1e4, rope_factor=4.0)
    positions = torch.tensor([3.0])

    def angles(cfg):
        cos, sin = model_file.rope_tables(positions, cfg)
        return torch.atan2(sin, cos)[0]

    torch.testing.assert_close(angles(cfg), torch.tensor([0.75, 0.075, 0.0075, 0.00075]))
    share = (200 * 0.1 / (2 * math.pi) - 1) / 3  # of 3.2 turns, between 1 and 4
    between = share * 0.3 + (1 - share) * 0.3 / 4
    expected = torch.tensor([3.0, between, 0.0075, 0.00075])
    torch.testing.assert_close(angles(cfg.replace(rope_original_len=200)), expected)


def test_rope_products_depend_on_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 6, dtype=torch.float64)
    ctx = make_context(SMALL, torch.zeros(1, 20))
    q, k = (rotate(v.expand(1, 20, 1, 6), ctx.rope)[0, :, 0] for v in (q, k))
    products = q @ k.T
    torch.testing.assert_close(products.diagonal(3), products[0, 3].expand(17), atol=1e-6, rtol=0)


def test_sinusoids_closed_form():
    vector = sinusoid(torch.tensor([5]), 4)[0]
    expected = torch.tensor([math.sin(5), math.sin(0.05), math.cos(5), math.cos(0.05)])
    torch.testing.assert_close(vector, expected)


# ---------------------------------------------------------------- attention


def reference_attention(q, k, v, segments=None):
    """Written out position by position."""
    out = torch.zeros_like(q)
    for b, h, t in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        g = h // (q.shape[1] // k.shape[1])
        seen = [s for s in range(t + 1) if segments is None or segments[b, s] == segments[b, t]]
        weights = torch.stack([q[b, h, t] @ k[b, g, s] for s in seen]).div(q.shape[-1] ** 0.5).softmax(0)
        out[b, h, t] = sum(w * v[b, g, s] for w, s in zip(weights, seen, strict=True))
    return out


@given(st.integers(1, 2), st.sampled_from([(4, 4), (4, 2), (4, 1)]), st.integers(1, 9), st.booleans())
def test_attention_equals_the_definition(batch, heads, length, packed):
    q = torch.randn(batch, heads[0], length, 6, dtype=torch.float64)
    k, v = torch.randn(2, batch, heads[1], length, 6, dtype=torch.float64)
    segments = torch.randint(0, 2, (batch, length)).cumsum(1) if packed else None
    ctx = make_context(SMALL, torch.zeros(batch, length), segments=segments)
    expected = reference_attention(q, k, v, segments)
    torch.testing.assert_close(attend(q, k, v, ctx), expected)
    torch.testing.assert_close(attend_in_chunks(q, k, v, ctx), expected)


@pytest.mark.parametrize("length", [1, 127, 128, 129, 300])
@pytest.mark.parametrize("packed", [False, True])
def test_chunked_attention_equals_sdpa_forward_and_backward(length, packed):
    q = torch.randn(2, 4, length, 16, requires_grad=True)
    k, v = (torch.randn(2, 2, length, 16, requires_grad=True) for _ in "kv")
    segments = (torch.arange(length) // 50).expand(2, -1) if packed else None
    ctx = make_context(SMALL, torch.zeros(2, length), segments=segments)
    mask = ctx.allowed(0, length, length)
    theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    ours = attend_in_chunks(q, k, v, ctx)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    weight = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), (q, k, v)) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_grouped_attention_equals_multi_head_with_repeated_keys():
    one, two = MQA(SMALL).double(), MQA(SMALL.replace(num_kv_heads=4)).double()
    weights = {name: p.clone() for name, p in one.state_dict().items()}
    for name in ("Wk.weight", "Wv.weight"):
        weights[name] = weights[name].view(2, 6, 32).repeat_interleave(2, dim=0).reshape(24, 32)
    two.load_state_dict(weights)
    x = torch.randn(3, 5, 32, dtype=torch.float64)
    torch.testing.assert_close(one(x), two(x))


# ---------------------------------------------------------------- MLP


@pytest.mark.parametrize("name", NONLINEARITIES)
@pytest.mark.parametrize("gated", [True, False])
def test_mlp_closed_form(name, gated):
    mlp = randomised(MLP(SMALL.replace(mlp_nonlinearity=name, mlp_gated=gated, mlp_bias=True)))
    own = {"relu2": lambda z: F.relu(z) ** 2, "gelu_tanh": lambda z: F.gelu(z, approximate="tanh")}
    f = own.get(name) or getattr(torch, name, None) or getattr(F, name)
    x = torch.randn(2, 3, 32, dtype=torch.float64)
    up = x @ mlp.Wup.weight.T + mlp.Wup.bias
    hidden = f(x @ mlp.Wgate.weight.T + mlp.Wgate.bias) * up if gated else f(up)
    torch.testing.assert_close(mlp(x), hidden @ mlp.Wdown.weight.T + mlp.Wdown.bias)


# ---------------------------------------------------------------- the whole model


@pytest.mark.parametrize("name", PRESETS)
def test_initial_loss_is_ln_v(name):
    cfg = PRESETS[name].replace(num_layers=2)
    model, tokens = GPT(cfg), some_tokens(PRESETS[name], rows=2)
    ctx = model.context(tokens)
    ctx.memory = torch.randn(2, 7, cfg.dim)  # for cross-attention
    with torch.no_grad():
        loss = F.cross_entropy(model(tokens, ctx)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss.item() / math.log(cfg.vocab_size) - 1) < 0.02


@variants
def test_initial_loss_is_ln_v_whatever_the_switches(cfg):
    model, tokens = GPT(cfg), some_tokens(cfg, rows=8)
    loss = F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss.item() / math.log(cfg.vocab_size) - 1) < 0.02


def test_blocks_start_by_adding_nothing_but_not_before_a_post_norm():
    for cfg in VARIANTS.values():
        for block in GPT(cfg).layers:
            ends = [block.attn.Wo.weight.abs().max().item(), block.mlp.Wdown.weight.abs().max().item()]
            assert (min(ends) > 0) if cfg.post_norm else (max(ends) == 0)


@variants
def test_causality_and_rows_do_not_see_one_another(cfg):
    model, tokens = randomised(GPT(cfg)), some_tokens(cfg)
    before = model(tokens)
    changed = tokens.clone()
    changed[1, 10:] = (changed[1, 10:] + 1) % cfg.vocab_size
    after = model(changed)
    torch.testing.assert_close(after[1, :10], before[1, :10])
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]])
    assert not torch.allclose(after[1, 10:], before[1, 10:])


@variants
@pytest.mark.parametrize("first", [1, 7, 23])
def test_cached_decoding_equals_the_full_forward(cfg, first):
    model, tokens = randomised(GPT(cfg)), some_tokens(cfg)
    ctx = model.context(tokens, decode=True)
    parts = [model(tokens[:, :first], ctx)]
    parts += [model(tokens[:, t : t + 1], ctx) for t in range(first, tokens.shape[1])]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens))


@variants
def test_rows_of_different_lengths_decode_as_if_alone(cfg):
    model, tokens = randomised(GPT(cfg)), some_tokens(cfg, rows=2, length=9)
    ctx = model.context(tokens, decode=True)
    model(tokens[:, :6], ctx)
    ctx.rewind(torch.tensor([6, 3]))  # row 1's last three were padding
    model(tokens[:, 6:7], ctx)
    last = model(tokens[:, 7:8], ctx)
    alone = torch.cat((tokens[1:, :3], tokens[1:, 6:8]), dim=1)
    torch.testing.assert_close(last[0], model(tokens[:1, :8])[0, -1:])
    torch.testing.assert_close(last[1], model(alone)[0, -1:])


@variants
def test_every_parameter_gets_a_gradient(cfg):
    model = randomised(GPT(cfg)).train()
    model(some_tokens(cfg)).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_segments_keep_packed_documents_apart():
    model, tokens = randomised(GPT(SMALL)), some_tokens(SMALL, rows=1, length=12)
    segments = torch.tensor([[0] * 5 + [1] * 7])
    packed = model(tokens, model.context(tokens, segments=segments))
    torch.testing.assert_close(packed[:, :5], model(tokens[:, :5]))
    torch.testing.assert_close(packed[:, 5:], model(tokens[:, 5:]))  # RoPE knows distances only


def test_head_of_features_is_the_model():
    model, tokens = randomised(GPT(SMALL)), some_tokens(SMALL)
    torch.testing.assert_close(model.head(model.features(tokens)), model(tokens))


@pytest.mark.parametrize("ends", [{}, {"tied_head": False}, {"embed_dim": 10}, {"embed_dim": 10, "tied_head": False}])
def test_a_cap_squashes_the_logits_of_every_head(ends):
    free = randomised(GPT(SMALL.replace(**ends)))
    free.readout.weight.data *= 4
    capped = GPT(SMALL.replace(logit_cap=2.0, **ends)).double().eval()
    capped.load_state_dict(free.state_dict())  # the same names
    tokens = some_tokens(SMALL)
    torch.testing.assert_close(capped(tokens), 2 * torch.tanh(free(tokens) / 2))
    assert capped(tokens).abs().max() < 2 < free(tokens).abs().max()
    torch.testing.assert_close(capped.head(capped.features(tokens)), capped(tokens))
    x = torch.randn(1, 3, 32, dtype=torch.float64)
    torch.testing.assert_close(capped.predict(x), 2 * torch.tanh(free.predict(x) / 2))
    assert (capped.readout.weight is capped.embed.weight) == capped.cfg.tied_head


def test_dropout_drops_in_training_and_only_there():
    torch.manual_seed(0)
    model, tokens = randomised(GPT(SMALL.replace(dropout_rate=0.3))), some_tokens(SMALL)
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))
    block = model.layers[0].dropout(torch.ones(10_000))
    assert abs((block == 0).double().mean() - 0.3) < 0.03, "the share that is dropped"


def test_overfits_one_batch():
    torch.manual_seed(0)
    model, tokens = GPT(SMALL), some_tokens(SMALL, rows=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_saved_weights_hold_parameters_only():
    for cfg in VARIANTS.values():
        model = GPT(cfg)
        names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        assert set(model.state_dict()) == names


def test_tied_head_is_one_matrix():
    tied, free = GPT(SMALL), GPT(SMALL.replace(tied_head=False))
    assert tied.head.weight is tied.embed.weight
    count = [sum(p.numel() for p in m.parameters()) for m in (tied, free)]
    assert count[1] - count[0] == 50 * 32


@variants
def test_the_whole_model_compiles_without_a_break(cfg):
    model, tokens = randomised(GPT(cfg)), some_tokens(cfg)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(tokens), model(tokens))
    torch._dynamo.reset()


def test_nothing_is_bound_to_a_device():
    """On the meta device nothing can be computed: a table made on the CPU inside would raise."""
    with torch.device("meta"):
        model = GPT(SMALL)
    assert model(torch.zeros(2, 5, dtype=torch.int64, device="meta")).shape == (2, 5, 50)


def test_no_complex_numbers_for_the_sake_of_mps():
    seen = set()

    class Dtypes(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            seen.update({out.dtype} if isinstance(out, torch.Tensor) else ())
            return out

    with Dtypes():
        GPT(SMALL)(some_tokens(SMALL))
    assert torch.float32 in seen and not any(dtype.is_complex or dtype == torch.float64 for dtype in seen)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_gives_the_same_logits():
    model, tokens = randomised(GPT(SMALL), torch.float32), some_tokens(SMALL)
    expected = model(tokens)
    torch.testing.assert_close(model.cuda()(tokens.cuda()).cpu(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("tokens", "error", "words"),
    [
        (torch.tensor([[0, 50]]), ValueError, "token id 50 is outside 0..49"),
        (torch.tensor([[0, -1]]), ValueError, "token id -1 is outside"),
        (torch.zeros(1, 25, dtype=torch.int64), ValueError, "25 tokens exceed max_seq_len=24"),
        (torch.zeros(5, dtype=torch.int64), TypeError, "shape \\(B, T\\)"),
        (torch.zeros(1, 5), TypeError, "int64"),
    ],
)
def test_wrong_tokens_are_refused(tokens, error, words):
    with pytest.raises(error, match=words):
        GPT(SMALL)(tokens)


def test_a_full_cache_is_refused():
    model, tokens = GPT(SMALL), some_tokens(SMALL)
    ctx = model.context(tokens, decode=True)
    model(tokens, ctx)
    with pytest.raises(ValueError, match="beside 24 in the cache"):
        model(tokens[:, :1], ctx)


def test_the_registry_holds_the_blocks_and_takes_a_replacement():
    assert {"MQA", "MLP", "ResidualLayer"} <= set(LAYERS)
    try:
        for _ in range(2):  # the same notebook cell run twice

            @model_file.layer("Mine")
            class Mine(torch.nn.Module):
                pass

        assert LAYERS["Mine"] is Mine
    finally:
        del LAYERS["Mine"]


def test_a_block_of_ones_own_is_used_by_its_name():
    try:

        @model_file.layer("Halve")
        class Halve(torch.nn.Module):
            def __init__(self, cfg):
                super().__init__()

            def forward(self, x, ctx=None):
                return x / 2

        model = GPT(SMALL.replace(mlp_block="Halve"))
        assert all(type(block.mlp) is Halve for block in model.layers)
        assert model(some_tokens(SMALL)).shape == (3, 24, 50)
    finally:
        del LAYERS["Halve"]
    with pytest.raises(ValueError, match=r"unknown block 'Halve'.*@layer\(\"Halve\"\)"):
        GPT(SMALL.replace(mlp_block="Halve"))
    with pytest.raises(ValueError, match="unknown block 'MQQ'; did you mean 'MQA'"):
        GPT(SMALL.replace(attn_block="MQQ"))
