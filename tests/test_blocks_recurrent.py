"""RG-LRU, short convolution, token shift: against other implementations, closed forms, and how large the state is."""

import pytest
import torch
import torch.nn.functional as F
from toy_models import randomised

from blocks.recurrent import RGLRU
from blocks.scan import linear_scan
from config import ModelConfig
from model import GPT, find_block

SMALL = ModelConfig(
    dim=32, num_layers=1, vocab_size=50, max_seq_len=24, num_q_heads=4, num_kv_heads=2, mlp_hidden=80, head_dim=6
)
SPECS = ["RGLRU", "RGLRU(width=48, conv=3, blocks=2)", "ShortConv", "ShortConv(width=3, bias=true)", "TokenShift"]
specs = pytest.mark.parametrize("spec", SPECS)
GRIFFIN = "{Norm->RGLRU->+->Norm->MLP->+}*2->Norm->Attn->+->Norm->MLP->+"


def model_of(spec: str, dtype=torch.float64) -> GPT:
    return randomised(GPT(SMALL.replace(recipe=f"Norm->{spec}->+->Norm->MLP->+")), dtype)


def some_tokens(rows=3, length=24):
    return torch.randint(0, SMALL.vocab_size, (rows, length))


# ---------------------------------------------------------------- the scan


def plain_loop(a, b, start):
    h, out = start, []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        out.append(h)
    return torch.stack(out, dim=1)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
def test_scan_equals_the_loop_forward_and_backward(length, dtype):
    a, b = torch.randn(2, 2, length, 3, 5, dtype=dtype)
    a = (a / a.abs().clamp(min=1)).requires_grad_()
    b, start = b.requires_grad_(), torch.randn(2, 3, 5, dtype=dtype, requires_grad=True)
    weight = torch.randn(2, length, 3, 5, dtype=dtype)
    ours, theirs = linear_scan(a, b, start), plain_loop(a, b, start)
    torch.testing.assert_close(ours, theirs)
    for x, y in zip(
        *(torch.autograd.grad((h * weight).sum().abs(), (a, b, start)) for h in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(x, y)


def test_scan_shares_a_factor_among_channels_and_starts_from_zero():
    a, b = torch.rand(2, 7, 3, 1), torch.randn(2, 7, 3, 5)
    torch.testing.assert_close(linear_scan(a, b), plain_loop(a, b, torch.zeros(2, 3, 5)))


def test_scan_gradcheck():
    a, b = torch.rand(2, 1, 5, 2, dtype=torch.float64, requires_grad=True)
    start = torch.randn(1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(linear_scan, (a, b, start))


def test_scan_forgets_exactly_and_stays_finite_over_long_rows():
    a, b = torch.full((1, 4096, 2), 0.01), torch.randn(1, 4096, 2)
    a[:, 1000] = 0.0
    h = linear_scan(a, b)
    assert h.isfinite().all() and torch.equal(h[:, 1000], b[:, 1000])
    before = b.clone()
    before[:, :1000] = 1e30
    assert torch.equal(linear_scan(a, before)[:, 1000:], h[:, 1000:])


# ---------------------------------------------------------------- oracles


@pytest.mark.parametrize("width", [32, 48])
def test_rglru_equals_recurrent_gemma(width):
    from transformers import RecurrentGemmaConfig
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRecurrentBlock

    config = RecurrentGemmaConfig(hidden_size=32, lru_width=width, num_attention_heads=4, num_hidden_layers=1)
    theirs = randomised(RecurrentGemmaRecurrentBlock(config, 0), torch.float32)
    ours = RGLRU(SMALL, width=width)
    size = width // 4
    pairs = {
        "Wgate.weight": theirs.linear_y.weight, "Wgate.bias": theirs.linear_y.bias,
        "Win.weight": theirs.linear_x.weight, "Win.bias": theirs.linear_x.bias,
        "Wo.weight": theirs.linear_out.weight, "Wo.bias": theirs.linear_out.bias,
        "conv.weight": theirs.conv_1d.weight, "conv.bias": theirs.conv_1d.bias,
        "lru.Wr": theirs.rg_lru.recurrent_gate_weight, "lru.br": theirs.rg_lru.recurrent_gate_bias.flatten(),
        "lru.Wi": theirs.rg_lru.input_gate_weight, "lru.bi": theirs.rg_lru.input_gate_bias.flatten(),
        "lru.decay": theirs.rg_lru.recurrent_param,
    }  # fmt: skip
    assert pairs["lru.Wr"].shape == (4, size, size)
    ours.load_state_dict(pairs)
    x, positions = torch.randn(3, 19, 32), torch.arange(19).expand(3, -1)
    expected = theirs(x, positions, None, use_cache=False)[0]
    assert expected.abs().mean() > 0.05
    torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_short_convolution_equals_conv1d(width):
    block = randomised(find_block("ShortConv")(SMALL, width=width, bias=True))
    x = torch.randn(3, 9, 32, dtype=torch.float64)
    padded = F.pad(x.transpose(1, 2), (width - 1, 0))
    expected = F.conv1d(padded, block.conv.weight, block.conv.bias, groups=32).transpose(1, 2)
    torch.testing.assert_close(block(x), expected)


def test_token_shift_closed_form():
    block, x = randomised(find_block("TokenShift")(SMALL)), torch.randn(3, 9, 32, dtype=torch.float64)
    expected = block.mu * x
    expected[:, 1:] += (1 - block.mu) * x[:, :-1]
    torch.testing.assert_close(block(x), expected)


# ---------------------------------------------------------------- decoding


@specs
def test_the_state_stays_as_small_as_documented(spec):
    model, tokens = model_of(spec), some_tokens()
    ctx = model.context(tokens, decode=True)
    for t in range(5):
        model(tokens[:, t : t + 1], ctx)
    documented = {
        "RGLRU": 32 + 3 * 32, "RGLRU(width=48, conv=3, blocks=2)": 48 + 2 * 48, "ShortConv": 3 * 32,
        "ShortConv(width=3, bias=true)": 2 * 32, "TokenShift": 32,
    }[spec]  # fmt: skip
    kept = [(kept[:, 1:].numel() // 3, kept.shape[-1]) for _, kept in ctx.cache.values()]  # without the one to rewind
    assert sum(numbers for numbers, _ in kept) == documented


# ---------------------------------------------------------------- extremes


def test_gradient_is_finite_where_everything_is_kept_or_forgotten():
    """The root of 1 - a^2 has an infinite slope at a = 1, where the gate is shut."""
    block = RGLRU(SMALL)
    for gate in (-200.0, 200.0):
        block.lru.br.data.fill_(gate)
        y = block(torch.randn(2, 9, 32))
        y.square().sum().backward()
        assert y.isfinite().all() and all(p.grad.isfinite().all() for p in block.parameters())


# ---------------------------------------------------------------- how they start, and what is refused


def test_rglru_starts_with_long_memories_and_adds_nothing():
    block = GPT(SMALL.replace(recipe="Norm->RGLRU(width=320)->+")).layers[0].rglru
    kept = torch.exp(-8 * F.softplus(block.lru.decay))  # a^c, what a wide open gate keeps
    assert 0.9 <= kept.min() < 0.91 and 0.99 < kept.max() <= 0.999
    assert block.Wo.weight.abs().max() == 0


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("RGLRU(blocks=5)", r"blocks=5 must divide width=32.*\[1, 2, 4, 8, 16, 32\]"),
        ("RGLRU(conv=0)", "width=0 must be at least 1"),
        ("ShortConv(width=0)", "width=0 must be at least 1"),
        ("ShortConv(with=3)", "did you mean 'width'"),
    ],
)
def test_wrong_arguments_are_refused(spec, words):
    with pytest.raises(ValueError, match=words):
        GPT(SMALL.replace(recipe=f"Norm->{spec}->+"))


def test_griffin_learns_and_decodes():
    model, tokens = GPT(SMALL.replace(recipe=GRIFFIN)), some_tokens(rows=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(80):
        losses.append(F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert abs(losses[0].item() / torch.log(torch.tensor(50.0)) - 1) < 0.02 and losses[-1] < 0.1
    model.eval()
    ctx = model.context(tokens, decode=True)
    parts = [model(part, ctx) for part in tokens.split(1, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), atol=1e-4, rtol=1e-4)
