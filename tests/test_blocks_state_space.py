"""Mamba and Mamba-2: against transformers and a plain loop, and how large the state is."""

import math

import pytest
import torch
import torch.nn.functional as F
from toy_models import randomised

from blocks.state_space import Mamba, Mamba2, decays, scan_in_chunks, selective_scan, ssd_chunk
from config import ModelConfig
from model import GPT, make_context

SMALL = ModelConfig(
    dim=32, num_layers=1, vocab_size=50, max_seq_len=80, num_q_heads=4, num_kv_heads=2, head_dim=6, mlp_hidden=80
)
SPECS = [
    "Mamba",
    "Mamba(state=5, conv=3, expand=3, rank=2)",
    "Mamba2",
    "Mamba2(state=5, heads=6, groups=3, conv=3, expand=3)",
]
specs = pytest.mark.parametrize("spec", SPECS)
HYBRID = "Norm->Mamba->+->Norm->Attn->+->Norm->MLP->+"


def model_of(spec: str, dtype=torch.float64) -> GPT:
    return randomised(GPT(SMALL.replace(recipe=f"Norm->{spec}->+")), dtype)


def some_tokens(rows=3, length=24):
    return torch.randint(0, SMALL.vocab_size, (rows, length))


# ---------------------------------------------------------------- the selective scan


def scan_inputs(length, rows=2, W=3, N=2, dtype=torch.float64):
    shapes = [(rows, length, W)] * 2 + [(W, N)] + [(rows, length, N)] * 2 + [(rows, W, N)]
    dt, u, A, b, c, start = (torch.randn(shape, dtype=dtype) for shape in shapes)
    return [value.requires_grad_() for value in (F.softplus(dt).detach(), u, -A.abs(), b, c, start)]


def plain_selective_scan(dt, u, A, b, c, start, first=None):
    h, all_y, all_h = start, [], []
    for t in range(u.shape[1]):
        a = torch.exp(dt[:, t, :, None] * A)
        a = a if first is None else a * ~first[:, t, None, None]
        h = a * h + (dt * u)[:, t, :, None] * b[:, t, None]
        all_y.append((h * c[:, t, None]).sum(-1))
        all_h.append(h)
    return torch.stack(all_y, dim=1), torch.stack(all_h, dim=1)


@pytest.mark.parametrize("length", [1, 2, 3, 16, 17, 33])
@pytest.mark.parametrize("packed", [False, True])
def test_selective_scan_equals_the_loop_forward_and_backward(length, packed):
    inputs, first = scan_inputs(length), torch.rand(2, length) < 0.3 if packed else None
    ours, theirs = selective_scan(*inputs, first), plain_selective_scan(*inputs, first)
    weights = [torch.randn_like(value) for value in ours]
    gradients = [
        torch.autograd.grad(sum((w * value).sum() for w, value in zip(weights, out, strict=True)), inputs)
        for out in (ours, theirs)
    ]
    for a, b in zip([*ours, *gradients[0]], [*theirs, *gradients[1]], strict=True):
        torch.testing.assert_close(a, b)


def test_selective_scan_gradcheck():
    inputs, first = scan_inputs(5), torch.rand(2, 5) < 0.3
    for output in (0, 1):  # each by itself too: the other one's gradient is then not given
        assert torch.autograd.gradcheck(lambda *given, i=output: selective_scan(*given, first)[i], inputs)


def test_selective_scan_stays_exact_where_almost_everything_is_forgotten_or_kept():
    """exp(-dt A) overflows where a chunk forgets more than fp32 can hold: nothing here may divide by it."""
    for size in (1e3, 1e-6):
        dt, u, A, b, c, start = scan_inputs(300, dtype=torch.float32)
        dt = (dt * size).detach().requires_grad_()
        y, h = selective_scan(dt, u, A, b, c, start)
        exact = plain_selective_scan(*(value.double() for value in (dt, u, A, b, c, start)))
        torch.testing.assert_close(h.double(), exact[1], rtol=1e-4, atol=1e-5 * size)
        y.sum().backward()
        assert all(value.grad.isfinite().all() for value in (dt, u, A, b, c, start))


# ---------------------------------------------------------------- chunks


@pytest.mark.parametrize("length", [1, 17, 64, 150])
@pytest.mark.parametrize("packed", [False, True])
def test_chunks_of_mamba2_equal_the_loop(length, packed):
    B, G, R, K, N = 2, 2, 3, 5, 4
    x = torch.randn(B, length, G, R, K, dtype=torch.float64)
    log_a = -torch.rand(B, length, G, R, 1, dtype=torch.float64)
    b, c = torch.randn(2, B, length, G, 1, N, dtype=torch.float64)
    segments = (torch.rand(B, length) < 0.05).cumsum(1) if packed else torch.zeros(B, length, dtype=torch.int64)
    h = torch.zeros(B, G, R, N, K, dtype=torch.float64) if packed else torch.randn(B, G, R, N, K, dtype=torch.float64)
    ctx, start, expected = make_context(SMALL, x, segments=segments if packed else None), h, []
    for t in range(length):
        same = segments[:, t] == segments[:, max(t - 1, 0)]
        h = h * same.view(B, 1, 1, 1, 1) * log_a[:, t, ..., None].exp() + b[:, t, ..., None] * x[:, t, ..., None, :]
        expected.append((h * c[:, t, ..., None]).sum(-2))
    y = scan_in_chunks(ssd_chunk, (x, log_a, b, c), start, ctx)
    torch.testing.assert_close(y, torch.stack(expected, dim=1))


def test_decays_are_sums_of_their_own():
    log_a = torch.tensor([[-0.5, -1e6, -0.001, -0.25]])  # a difference of sums from the start would lose the third
    left, since = decays(log_a)
    expected = torch.tensor([
        [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, math.exp(-0.001), 1.0, 0.0],
        [0.0, math.exp(-0.251), math.exp(-0.25), 1.0],
    ])  # fmt: skip
    torch.testing.assert_close(left[0], expected)
    torch.testing.assert_close(since, torch.tensor([[math.exp(-0.5), 0.0, 0.0, 0.0]]))
    left, since = decays(log_a, torch.tensor([[False, False, True, False]]))
    assert left[0, 2:, :2].abs().sum() == 0 and left[0, 3, 2] == expected[3, 2] and since[0, 2:].abs().sum() == 0


# ---------------------------------------------------------------- oracles


@pytest.mark.parametrize("state", [16, 5])
def test_mamba_equals_transformers(state):
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    config = MambaConfig(
        hidden_size=32, state_size=state, expand=2, conv_kernel=4, time_step_rank=3, num_hidden_layers=1
    )
    theirs = randomised(MambaMixer(config, 0), torch.float32, std=0.2)
    ours = Mamba(SMALL, state=state, rank=3)
    down, b, c = theirs.x_proj.weight.split([3, state, state])
    win, gate = theirs.in_proj.weight.chunk(2)
    ours.load_state_dict({
        "Win.weight": win, "Wgate.weight": gate, "Wo.weight": theirs.out_proj.weight,
        "conv.weight": theirs.conv1d.weight, "conv.bias": theirs.conv1d.bias,
        "Wdt_down.weight": down, "Wb.weight": b, "Wc.weight": c,
        "Wdt_up.weight": theirs.dt_proj.weight, "dt_bias": theirs.dt_proj.bias,
        "A_log": theirs.A_log.flatten(), "skip": theirs.D,
    })  # fmt: skip
    x = torch.randn(3, 37, 32)
    expected = theirs(x).detach()
    assert expected.abs().mean() > 0.05
    torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("groups", "length"), [(1, 5), (2, 64), (1, 150)])
def test_mamba2_equals_transformers(groups, length):
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    sizes = {"hidden_size": 32, "num_heads": 4, "head_dim": 16, "state_size": 7, "n_groups": groups, "chunk_size": 16}
    theirs = randomised(Mamba2Mixer(Mamba2Config(**sizes, expand=2, num_hidden_layers=1), 0), torch.float32, std=0.2)
    ours = Mamba2(SMALL, state=7, groups=groups)
    gate, win, b, c, dt = theirs.in_proj.weight.split([64, 64, groups * 7, groups * 7, 4])
    convs = list(zip(*(p.split([64, groups * 7, groups * 7]) for p in theirs.conv1d.parameters()), strict=True))
    ours.load_state_dict({
        "Win.weight": win, "Wb.weight": b, "Wc.weight": c, "Wdt.weight": dt, "Wgate.weight": gate,
        "dt_bias": theirs.dt_bias, "A_log": theirs.A_log, "skip": theirs.D, "norm_weight": theirs.norm.weight,
        "Wo.weight": theirs.out_proj.weight,
    } | {f"conv_{x}.weight": w for x, (w, _) in zip("ubc", convs, strict=True)}
      | {f"conv_{x}.bias": bias for x, (_, bias) in zip("ubc", convs, strict=True)})  # fmt: skip
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
    (h,) = [state[1][0] for slot, state in ctx.cache.items() if "conv" not in slot]
    h = h if "Mamba2" in spec else h[-1]
    W, N, G, conv = {"Mamba": (64, 16, 0, 4), "Mamba2": (64, 64, 1, 4)}.get(spec, (96, 5, 3 * ("2" in spec[:6]), 3))
    assert h.numel() + sum(tail.numel() for tail in tails) == W * N + (conv - 1) * (W + 2 * G * N)


# ---------------------------------------------------------------- how they start, and what is refused


def test_they_start_with_the_steps_of_the_papers_and_add_nothing():
    model = GPT(SMALL.replace(recipe="Norm->Mamba(expand=20)->+->Norm->Mamba2(expand=20,heads=320)->+"))
    one, two = model.layers[0].mamba, model.layers[0].mamba2
    for block in (one, two):
        dt = F.softplus(block.dt_bias)
        assert 0.0009 < dt.min() < 0.002 and 0.07 < dt.max() < 0.11 and 0.005 < dt.median() < 0.02
        assert block.Wo.weight.abs().max() == 0
    torch.testing.assert_close(one.A_log.exp().view(640, 16), torch.arange(1.0, 17).expand(640, -1))
    assert 1 <= two.A_log.exp().min() < 2 and 15 < two.A_log.exp().max() <= 16.01


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("Mamba(state=0)", "state=0, rank=2 and expand=2 x dim=32 must each be at least 1"),
        ("Mamba(conv=0)", "width=0 must be at least 1"),
        ("Mamba(states=3)", "did you mean 'state'"),
        ("Mamba2(state=0)", "state=0, heads=4, groups=1 and expand=2 x dim=32 must each be at least 1"),
        ("Mamba2(heads=5)", "heads=5 must divide expand x dim = 64"),
        ("Mamba2(groups=3)", "groups=3 must divide heads=4"),
    ],
)
def test_wrong_arguments_are_refused(spec, words):
    with pytest.raises(ValueError, match=words):
        GPT(SMALL.replace(recipe=f"Norm->{spec}->+"))


@pytest.mark.parametrize(
    "recipe", ["Norm->Mamba->+", HYBRID, HYBRID.replace("Mamba", "Mamba2"), "Norm->[Mamba^2|Attn]->+"]
)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_recipes_learn_and_decode(recipe, optimizer):
    from config import TrainConfig
    from train import make_step

    cfg, tokens = SMALL.replace(recipe=recipe), some_tokens(rows=2)
    settings = {"max_iters": 12, "warmup_iters": 0, "lr_max": 1e-2, "lr_min": 1e-3, "batch_size": 2, "seed": 0}
    step = make_step(cfg, TrainConfig(model_name="test", optimizer=optimizer, **settings), "cpu")
    losses = [float(step(tokens[:, :-1], tokens[:, 1:])) for _ in range(12)]
    assert abs(losses[0] / torch.log(torch.tensor(50.0)) - 1) < 0.02 and losses[-1] < 0.8 * losses[0]
    model = randomised(GPT(cfg))
    ctx = model.context(tokens, decode=True)
    parts = [model(part, ctx) for part in tokens.split([7, 1, 1, 5, 10], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens))
