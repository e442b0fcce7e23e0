"""The compiled attention gives PyTorch's numbers, for every mask and every instruction set, or says why it can't."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from config import ModelConfig
from lab import fused_attention
from lab.fused_attention import LEVELS, SOURCE, Unavailable, load
from model import GPT, Context, attend, find_block

ROOT = Path(__file__).resolve().parent.parent
CFG = ModelConfig(dim=32, num_layers=2, num_q_heads=4, num_kv_heads=2, head_dim=6, mlp_hidden=80, vocab_size=97,
                  max_seq_len=300)  # fmt: skip


def fused_for(level: str | None = None) -> fused_attention.Fused:
    if level is not None and level not in fused_attention.levels_here():
        pytest.skip(f"this processor has no {level}")
    try:
        return load(level)
    except Unavailable as error:
        pytest.skip(f"no compiled attention here: {error}")


@pytest.fixture(params=LEVELS)
def fused(request):
    return fused_for(request.param)


def inputs(B=2, H=4, G=2, T=129, K=16, V=None, dtype=torch.float32):
    """q, k, v as the model makes them: (B, T, heads, width) in memory, heads first for attention."""
    sizes = ((H, K), (G, K), (G, K if V is None else V))
    return [torch.randn(B, T, *size).to(dtype).transpose(1, 2).requires_grad_() for size in sizes]


def expected(q, k, v, window=None, segments=None):
    """PyTorch's own, with an explicit mask."""
    T = q.shape[2]
    mask = Context(torch.arange(T), window=window, segments=segments).allowed(0, T, T)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def compare(fused, q, k, v, window=None, segments=None, forward=1e-5, backward=1e-4):
    """Result and gradients lie within these distances of PyTorch's in fp32."""
    ours = fused(q, k, v, window, segments)
    exact = [x.detach().float().requires_grad_() for x in (q, k, v)]
    theirs = expected(*exact, window, segments)
    grad = torch.randn(ours.shape).to(q.dtype)
    torch.testing.assert_close(ours.float(), theirs, atol=forward, rtol=0)
    for mine, other in zip(
        torch.autograd.grad(ours, (q, k, v), grad), torch.autograd.grad(theirs, exact, grad.float()), strict=True
    ):
        assert mine.dtype == q.dtype
        torch.testing.assert_close(mine.float(), other, atol=backward, rtol=0)


def documents(B: int, T: int, count: int, ordered: bool = True) -> torch.Tensor:
    numbers = torch.randint(-count, count, (B, T))
    return numbers.sort().values if ordered else numbers


# ---------------------------------------------------------------- the same numbers

MASKS = {
    "causal": lambda T: {},
    "only itself": lambda T: {"window": 1},
    "window": lambda T: {"window": 40},
    "window beyond the row": lambda T: {"window": 10 * T},
    "documents": lambda T: {"segments": documents(2, T, 3)},
    "scattered documents": lambda T: {"segments": documents(2, T, 3, ordered=False)},
    "documents and window": lambda T: {"segments": documents(2, T, 3), "window": 9},
}


@pytest.mark.parametrize("T", [1, 7, 129, 300])
@pytest.mark.parametrize("mask", MASKS)
def test_the_same_as_pytorch_for_every_mask(fused, mask, T):
    compare(fused, *inputs(T=T), **MASKS[mask](T))


@pytest.mark.parametrize("at", [7, 8, 9, 31, 32, 33, 63, 64, 65, 71, 79, 95])
def test_edges_beside_the_borders_of_blocks(fused, at):
    """The kernel leaves out the mask where a whole block is seen: off by one there, and a window or document leaks."""
    compare(fused, *inputs(T=140), window=at)
    compare(fused, *inputs(T=140), segments=(torch.arange(140) >= at).expand(2, -1))


@pytest.mark.parametrize("mask", MASKS)
def test_bf16_is_within_its_own_rounding(fused, mask):
    compare(fused, *inputs(T=150, dtype=torch.bfloat16), **MASKS[mask](150), forward=0.02, backward=0.1)


@pytest.mark.parametrize(
    ("H", "G", "K", "V"), [(4, 4, 8, 8), (6, 2, 5, 5), (3, 1, 1, 1), (8, 2, 33, 7), (2, 2, 128, 128), (4, 2, 64, 130)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_and_width_of_heads(fused, H, G, K, V, dtype):
    bounds = {} if dtype == torch.float32 else {"forward": 0.02, "backward": 0.15}
    compare(fused, *inputs(T=70, H=H, G=G, K=K, V=V, dtype=dtype), **bounds)


@settings(max_examples=100)
@given(
    B=st.integers(1, 3), G=st.integers(1, 3), times=st.integers(1, 3), T=st.integers(1, 140), K=st.integers(1, 40),
    V=st.integers(1, 40), window=st.none() | st.integers(1, 150), count=st.integers(0, 5), ordered=st.booleans(),
    level=st.sampled_from(sorted(LEVELS)),
)  # fmt: skip
def test_any_shape(B, G, times, T, K, V, window, count, ordered, level):
    fused = fused_for(level if level in fused_attention.levels_here() else "plain")
    segments = documents(B, T, count, ordered) if count else None
    compare(fused, *inputs(B, G * times, G, T, K, V), window, segments)


def test_large_scores_do_not_overflow(fused):
    """Scores of several thousand, which fp32 holds to about 1e-3: so far, then, may the weights be off."""
    q, k, v = (x.detach() for x in inputs(T=100))
    q, k, v = (x.requires_grad_() for x in (40 * q, 40 * k, v))
    compare(fused, q, k, v, forward=2e-3, backward=0.1)


def test_derivative_agrees_with_small_steps(fused):
    """A check that rests on no other implementation: the slope of a projection of the output along a direction."""
    q, k, v = inputs(T=40)
    along, weights = [torch.randn(x.shape) for x in (q, k, v)], torch.randn(2, 4, 40, 16)
    slope = sum(
        (grad * d).sum().item()
        for grad, d in zip(torch.autograd.grad(fused(q, k, v), (q, k, v), weights), along, strict=True)
    )
    ends = [
        (fused(*(x + h * d for x, d in zip((q, k, v), along, strict=True))).double() * weights).sum().item()
        for h in (1e-3, -1e-3)
    ]
    assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(slope, rel=5e-3, abs=5e-2)


def test_later_tokens_change_nothing_before_them(fused):
    q, k, v = inputs(T=140)
    before = fused(q, k, v)
    k2, v2 = k.detach().clone(), v.detach().clone()
    k2[:, :, 100:], v2[:, :, 100:] = 1e4, -1e4
    assert torch.equal(fused(q, k2, v2)[:, :, :100], before[:, :, :100])


def test_a_number_that_is_none_is_not_hidden(fused):
    q, k, v = (x.detach() for x in inputs(T=100))
    k[0, 0, 50, 3] = float("nan")
    out = fused(q, k, v)
    assert out[0, :2, 50:].isnan().all() and out[0, :, :50].isfinite().all() and out[1].isfinite().all()


# ---------------------------------------------------------------- memory, threads, repetition


def test_any_layout_of_the_inputs_and_gradients(fused):
    q, k, v = (x.detach() for x in inputs(T=50))
    wanted = fused(q, k, v)
    layouts = [
        torch.Tensor.contiguous,
        lambda x: x.mT.contiguous().mT,  # channels apart from each other
        lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
        lambda x: F.pad(x, (3, 2, 1, 1))[:, :, 1:-1, 3:-2],
    ]
    for layout in layouts:
        assert torch.equal(fused(*map(layout, (q, k, v))), wanted)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    spread = torch.autograd.grad(fused(q, k, v).sum(), (q, k, v))  # the gradient is one number, expanded
    whole = torch.autograd.grad(fused(q, k, v), (q, k, v), torch.ones_like(wanted))
    assert all(map(torch.equal, spread, whole))


def test_the_output_is_laid_out_for_the_next_matrix():
    q, k, v = inputs()
    out = fused_for()(q, k, v)
    assert out.transpose(1, 2).flatten(2).data_ptr() == out.data_ptr()
    for grad in torch.autograd.grad(out.sum(), (q, k, v)):
        assert grad.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_bit_is_the_same_again_with_any_number_of_threads(fused, dtype):
    q, k, v = inputs(B=3, T=200, dtype=dtype)
    grad = torch.randn(3, 4, 200, 16).to(dtype)

    def once(threads):
        torch.set_num_threads(threads)
        out = fused(q, k, v, 150)
        return out, *torch.autograd.grad(out, (q, k, v), grad)

    first = once(1)
    for threads in (1, 2, 3, 5):
        assert all(map(torch.equal, once(threads), first)), threads


def test_nothing_to_do():
    fused = fused_for()
    for B, T in ((0, 5), (2, 0)):
        q, k, v = inputs(B=B, T=T)
        out = fused(q, k, v)
        assert out.shape == (B, 4, T, 16)
        assert torch.autograd.grad(out.sum(), q)[0].shape == q.shape


# ---------------------------------------------------------------- in the model


def grads_of(model, tokens, fused, **settings):
    model.zero_grad()
    ctx = model.context(tokens, **settings)
    ctx.fused = fused
    loss = F.cross_entropy(model(tokens, ctx).flatten(0, 1), tokens.flatten())
    loss.backward()
    return loss.detach(), [None if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("block", ["MQA", "MQA(window=20)", "SoftCapAttn", "SinkAttn", "GatedAttn", "FlatNormAttn",
                                   "ValueResidualAttn", "DiffAttn", "MLA"])  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_models_learn_the_same_with_it(block, packed, monkeypatch):
    fused, calls = fused_for(), []
    monkeypatch.setattr(type(fused), "__call__", counted(type(fused).__call__, calls))
    find_block(block.partition("(")[0])
    model = GPT(CFG.replace(recipe=f"Norm->{block}->+->Norm->MLP->+"))
    for p in model.parameters():  # some start at zero, which hides errors
        torch.nn.init.normal_(p, std=0.2)
    tokens = torch.randint(0, 97, (2, 150))
    settings = {"segments": documents(2, 150, 2)} if packed else {}
    loss, grads = grads_of(model, tokens, fused, **settings)
    assert bool(calls) == (block not in ("SoftCapAttn", "SinkAttn"))  # whose weights are no plain softmax
    plain_loss, plain_grads = grads_of(model, tokens, None, **settings)
    torch.testing.assert_close(loss, plain_loss, atol=1e-5, rtol=1e-5)
    for mine, other in zip(grads, plain_grads, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-3)


def counted(function, calls):
    def call(*args):
        calls.append(1)
        return function(*args)

    return call


def test_what_it_leaves_to_pytorch(monkeypatch):
    """ALiBi, decoding and doubles: the answer is the plain path's."""
    fused = fused_for()
    monkeypatch.setattr(type(fused), "__call__", None)
    tokens = torch.randint(0, 97, (2, 5))
    for model in (GPT(CFG.replace(positions="alibi")), GPT(CFG).double()):
        ctx = model.context(tokens)
        ctx.fused = fused
        assert torch.equal(model(tokens, ctx), model(tokens))
    model = GPT(CFG)
    ctx = model.context(tokens, decode=True)
    ctx.fused = fused
    torch.testing.assert_close(model(tokens, ctx), model(tokens))


def test_autocast_casts_as_it_does_for_matrix_products():
    fused = fused_for()
    q, k, v = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        out = fused(q, k.bfloat16(), v)
    assert torch.equal(out, fused(q.bfloat16(), k.bfloat16(), v.bfloat16()))
    assert out.dtype == torch.bfloat16 and torch.autograd.grad(out.sum(), q)[0].dtype == torch.float32


def test_attend_uses_it():
    fused, ctx = fused_for(), Context(torch.arange(150))
    q, k, v = inputs(T=150)
    plain = attend(q, k, v, ctx)
    ctx.fused = fused
    assert torch.equal(attend(q, k, v, ctx), fused(q, k, v))
    torch.testing.assert_close(attend(q, k, v, ctx), plain, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_whole_model_compiles_with_it_in_one_graph():
    fused, tokens = fused_for(), torch.randint(0, 97, (2, 150))
    model = GPT(CFG)

    def loss(tokens):
        ctx = model.context(tokens)
        ctx.fused = fused
        return model(tokens, ctx).logsumexp(-1).mean()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(tokens), model.parameters(), allow_unused=True)
    wanted = torch.autograd.grad(loss(tokens), model.parameters(), allow_unused=True)
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other)


# ---------------------------------------------------------------- refusals


def test_what_it_cannot_take_is_refused():
    fused = fused_for()
    q, k, v = inputs(T=10)
    with pytest.raises(TypeError, match="float32 or bfloat16"):
        fused(q.double(), k.double(), v.double())
    with pytest.raises(TypeError, match="one for all three"):
        fused(q, k.bfloat16(), v)
    for wrong in ((q, k[:, :, :9], v), (q, k[..., :8], v), (q[:, :3], k, v), (q, k, v[:1]), (q[0], k[0], v[0])):
        with pytest.raises(ValueError, match="they must be"):
            fused(*wrong)
    with pytest.raises(ValueError, match="window=0 must be at least 1"):
        fused(q, k, v, 0)
    with pytest.raises(ValueError, match=r"segments has shape \(2, 9\)"):
        fused(q, k, v, None, torch.zeros(2, 9))
    with pytest.raises(ValueError, match="level='sse9'"):
        load("sse9")


def test_no_compiler_and_a_failing_one_leave_a_reason(monkeypatch, tmp_path):
    """And the model goes on without: nothing is left in the context."""
    monkeypatch.setenv("SANDBOX_CACHE", str(tmp_path))
    monkeypatch.setattr(fused_attention, "_libraries", {})
    for compiler in ("/bin/false", str(tmp_path / "nowhere")):
        monkeypatch.setenv("CXX", compiler)
        with pytest.raises(Unavailable, match=Path(compiler).name) as caught:
            load()
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.so"))


def test_a_build_is_announced_once_and_kept(monkeypatch, tmp_path):
    fused_for()
    monkeypatch.setenv("SANDBOX_CACHE", str(tmp_path))
    said = []
    for _ in range(2):
        monkeypatch.setattr(fused_attention, "_libraries", {})
        load("plain", said.append)
    assert len(said) == 1 and SOURCE.name in said[0] and len(list(tmp_path.rglob("*.so"))) == 1


# ---------------------------------------------------------------- reading and writing only what is ours

SANITIZED = """
import torch
from lab import fused_attention as f
from lab.compile import compile_library
from tests.test_fused_attention import MASKS, compare, inputs
f.compile_library = lambda source, flags, say: compile_library(source, (*flags, "-g", "-O1", "-fsanitize=address"), say)
for level in f.levels_here():
    for dtype in (torch.float32, torch.bfloat16):
        for T, K, V in ((1, 1, 1), (33, 5, 7), (64, 16, 16), (97, 24, 66)):
            for mask in MASKS.values():
                compare(f.load(level), *inputs(T=T, K=K, V=V, dtype=dtype), **mask(T), forward=0.05, backward=0.3)
print("clean")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the address sanitizer is preloaded as Linux does it")
def test_address_sanitizer_finds_nothing():
    fused_for()
    library = subprocess.run(["c++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(library):
        pytest.skip("this compiler has no address sanitizer")
    env = os.environ | {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", SANITIZED], cwd=ROOT, env=env, capture_output=True, text=True)
    assert ran.stdout.strip() == "clean", ran.stderr[-3000:]
