"""The core of the shape tracer: what is recorded, how dimensions get their names, what it costs, and that nothing
else is left behind."""

import contextlib
import copy
import cProfile
import dataclasses
import random
import statistics
import sys
import threading
import time
import warnings
from collections import deque, namedtuple
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from config import ModelConfig
from lab.tracer import log_io, trace
from lab.tracer.cost import flops, saved_bytes
from lab.tracer.record import Op, Recorder, Scope
from lab.tracer.sizes import Namer, other_sizes, sizes_of, with_sizes
from model import GPT, MLP, MQA, CosineNorm, LayerNorm, ResidualLayer, RMSNorm

# Sizes that collide wherever they can: T = K, B = G, F = H·K.
COLLIDING = ModelConfig(
    dim=64, num_layers=2, num_q_heads=8, num_kv_heads=2, head_dim=16, mlp_hidden=128, vocab_size=512, max_seq_len=512
)


class Net(nn.Module):
    """A small module of the usual kind: built from numbers, one of which is not kept."""

    def __init__(self, dim: int, hidden: int = 80):
        super().__init__()
        self.hidden = hidden
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x, *, scale: float = 1.0, flip: bool = False):
        return self.finish(self.up(x), scale)

    def finish(self, x, scale):
        return self.down(torch.relu(x)) * scale


NAMES = {"D": 32, "F": 80}


@pytest.fixture
def x():
    return torch.randn(3, 5, 32)


def ops(call: Scope) -> list[Op]:
    return [item for item in call.walk() if isinstance(item, Op)]


def scopes(call: Scope) -> list[Scope]:
    return [item for item in call.walk() if isinstance(item, Scope)]


def symbols(tr) -> set[str]:
    return {symbol for value in tr.values for symbol in value.symbols or ()}


def unnamed(tr) -> set[str]:
    """Names that are numbers above one, or leave a choice."""
    return {text for text in symbols(tr) if "|" in text or (text.isdigit() and int(text) > 1)}


def traced(model, *inputs, names=None, **kwargs):
    with trace(model, names=names) as tr:
        model(*inputs, **kwargs)
    return tr


# ------------------------------------------------------------------------------------------------ what is recorded


def test_labels_of_arguments(x):
    model = Net(32)
    with trace(model, names=NAMES) as tr:
        model(x, flip=True)
        model(x=x, scale=0.5)
    first, second = ([argument.text() for argument in call.arguments] for call in tr.calls)
    assert first == ["x (B,T,D)", "scale=1 (default)", "flip=True"]
    assert second == ["x (B,T,D)", "scale=0.5", "flip=False (default)"]


def test_the_marker_changes_nothing_and_compiles_fully(x):
    class Marked(nn.Module):
        def forward(self, x):
            return double(x)

    @log_io("x: B T D -> B T D")
    def double(x):
        return x * 2

    assert log_io(double) is double
    assert torch.equal(torch.compile(Marked(), fullgraph=True, backend="eager")(x), x * 2)


def test_scopes_with_paths_and_operations_with_places(x):
    call = traced(Net(32), x, names=NAMES).calls[0]
    assert [(s.path, s.owner, s.function) for s in scopes(call)] == [
        ("", "Net", "forward"), ("up", "Linear", "forward"), ("", "Net", "finish"), ("down", "Linear", "forward"),
    ]  # fmt: skip
    assert [op.name for op in ops(call)] == ["linear", "relu", "linear", "mul"]
    line = Net.finish.__code__.co_firstlineno + 1
    assert all(f":{line}" in text for text in str(traced(Net(32), x)).splitlines() if "relu" in text)


def test_attributes_that_are_tensors_or_hide_modules_have_paths(x):
    class Hiding(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.dim, self.table = dim, torch.randn(dim)
            self.parts = [nn.Linear(dim, dim), {"tensor": 1}]

        def forward(self, x):
            return self.parts[0](x) + self.table

    call = traced(Hiding(32), x).calls[0]
    assert [s.path for s in scopes(call)] == ["", "parts[0]"]
    assert {value.origin for op in ops(call) for value in op.inputs() if value.origin} == {
        "argument 'x' of Hiding.forward", "parts[0].weight", "parts[0].bias", "table",
    }  # fmt: skip


def test_shared_modules_have_the_path_of_the_place_that_was_called(x):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            shared = Net(32)
            self.layers = nn.ModuleList([shared, Net(32), shared])
            self.again = shared
            self.head = nn.Linear(32, 80)
            self.head.weight = shared.up.weight

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return self.head(self.again(x))

    tr = traced(Twice(), x)
    assert [s.path for s in scopes(tr.calls[0]) if s.owner == "Net" and s.is_module] == [
        "layers.0", "layers.1", "layers.2", "again",
    ]  # fmt: skip
    assert "tied→" in str(tr)


def test_super_forward_and_captured_methods_and_direct_calls(x):
    class Base(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(32, 32)
            self.held, self.raw = self.helper, self.layer.forward

        def helper(self, x):
            return self.raw(x)

        def forward(self, x):
            return self.held(x) + self.layer.forward(x)

    class Child(Base):
        def forward(self, x):
            return super().forward(x) * 2

    model = Child()
    with trace(model, names={"D": 32}) as tr:
        model.forward(x)
    assert [s.function for s in scopes(tr.calls[0])] == ["forward", "Base.forward", "helper", "forward", "forward"]
    with trace(model, names={"D": 32}) as tr:
        model.helper(x)
    assert [c.title() for c in tr.calls] == ["Child › helper()"] and symbols(tr) == {"B", "T", "D"}


def test_other_modules_and_calls_outside_are_not_recorded(x):
    model, other = Net(32), Net(32)
    with trace(model) as tr:
        other(x)
        x.sum()
    assert tr.calls == []


def test_comprehensions_lambdas_and_generators_belong_to_their_line(x):
    class Parts(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.dim, self.parts = dim, nn.ModuleList(nn.Linear(dim, dim) for _ in range(3))

        def each(self, x):
            for part in self.parts:
                yield part(x)

        def forward(self, x):
            total = sum(part(x) for part in self.parts)
            twice = lambda t: self.parts[0](t) * 2  # noqa: E731
            total = total + twice(x)
            for y in self.each(x):
                total = total + y
            return total + torch.stack([part(x) for part in self.parts]).sum(0)

    tr = traced(Parts(32), x, names={"D": 32})
    assert all(s.is_module for s in scopes(tr.calls[0]))
    assert len(ops(tr.calls[0])) == 6 + 3 + 6 + 6 and unnamed(tr) == {"3"}


Pair = namedtuple("Pair", "a b")


@dataclass
class Output:
    logits: torch.Tensor


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda y: {"y": y, "none": None, "parts": [y, y]}, "{y: (B,T,D), none: None, parts: [(B,T,D), (B,T,D)]}"),
        (lambda y: (y, (y, 3)), "((B,T,D), ((B,T,D), 3))"),
        (lambda y: Pair(y, y), "Pair(a: (B,T,D), b: (B,T,D))"),
        (lambda y: Output(y), "Output"),
        (lambda y: None, "None"),
    ],
)
def test_outputs_of_many_kinds(make, text, x):
    class Module(nn.Module):
        def forward(self, x):
            return make(x)

    assert f"→ {text}" in str(traced(Module(), x, names={"D": 32}))


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_in_a_backward_pass_is_not_recorded(reentrant, x):
    class Saving(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.dim, self.net = dim, nn.Linear(dim, dim)

        def forward(self, x):
            return checkpoint(self.net, x, use_reentrant=reentrant)

    model = Saving(32)
    with trace(model, names={"D": 32}) as tr:
        model(x.requires_grad_()).sum().backward()
    assert [len(ops(call)) for call in tr.calls] == [1] and tr.notes == [] and x.grad is not None


def test_torch_func_works_though_it_bars_hooks(x):
    class Fast(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.dim, self.w = dim, nn.Linear(dim, dim)

        def forward(self, x):
            step = torch.func.grad(lambda w: ((x @ w) ** 2).mean())(self.w.weight)
            return torch.func.vmap(lambda row: row * 2)(x) @ (self.w.weight - step)

    model = Fast(32)
    expected = model(x)
    tr = traced(model, x, names={"D": 32})
    assert torch.equal(model(x), expected) and "torch.func" in tr.notes[0] and len(tr.notes) == 1
    net = Net(32)
    with trace(net, probe=False) as tr:
        grads = torch.func.grad(lambda p: torch.func.functional_call(net, p, x).sum())(dict(net.named_parameters()))
    assert grads.keys() == dict(net.named_parameters()).keys() and len(tr.calls) == 1


def test_gradients_inside_forward(x):
    """Probes run without gradients first, and with them where that fails."""

    class Learning(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.dim, self.w = dim, nn.Linear(dim, dim)

        def forward(self, x):
            (step,) = torch.autograd.grad((self.w(x) ** 2).mean(), self.w.weight, create_graph=True)
            return x @ (self.w.weight - step)

    tr = traced(Learning(32), x, names={"D": 32})
    assert tr.notes == [] and symbols(tr) == {"B", "T", "D"}


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_modes_inside_and_outside_of_the_session(context, x):
    model = Net(32)
    with trace(model, names=NAMES) as tr, context():
        model(x)
    with context(), trace(model, names=NAMES) as other:
        model(x)
    assert unnamed(tr) == unnamed(other) == set() and tr.notes == other.notes == []


def test_meta_and_empty_and_nested_tensors():
    with torch.device("meta"):
        tr = traced(GPT(COLLIDING), torch.zeros(3, 5, dtype=torch.int64), names=COLLIDING)
    assert unnamed(tr) == set() and saved_bytes(tr.calls[0]) > 0
    assert symbols(traced(Net(32), torch.randn(3, 0, 32), names=NAMES)) >= {"B", "F"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nested = torch.nested.nested_tensor([torch.randn(2, 32), torch.randn(3, 32)])
        text = str(traced(nn.Sequential(nn.Linear(32, 8)), nested, names=NAMES))
    assert "(nested) → (nested)" in text and "FLOPs of linear not counted" in text


def test_a_compiled_model_runs_plainly(x):
    model = Net(32)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    compiled(x)
    assert [op.name for op in ops(traced(compiled, x, names=NAMES).calls[0])] == ["linear", "relu", "linear", "mul"]
    outer = nn.Sequential(compiled, Net(32))
    outer(x)
    tr = traced(outer, x, names=NAMES)
    assert [s.path for s in scopes(tr.calls[0])][:4] == ["", "0", "0.up", "0"] and unnamed(tr) == set()


def test_in_a_thread_and_under_a_profiler_and_nested(x):
    model, found, seen = Net(32), [], []
    thread = threading.Thread(target=lambda: found.append(traced(model, x, names=NAMES)))
    thread.start()
    thread.join()
    expected = str(traced(model, x, names=NAMES))
    assert str(found[0]) == expected

    def profiler(frame, event, arg):
        seen.append(frame.f_code.co_name)

    sys.setprofile(profiler)
    try:
        tr = traced(model, x, names=NAMES)
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)
    assert str(tr) == expected and "finish" in seen
    with trace(model, names=NAMES) as outer:
        inner = traced(model, x, names=NAMES)
        model(x)
    assert str(inner) == expected and len(outer.calls) == 2 and len(inner.calls) == 1


def test_under_cprofile(x):
    profiler, model = cProfile.Profile(), Net(32)
    profiler.enable()
    tr = traced(model, x, names=NAMES)
    model(x)
    profiler.disable()
    assert unnamed(tr) == set()
    assert "finish" in {entry.code.co_name for entry in profiler.getstats() if not isinstance(entry.code, str)}


def test_a_fault_of_the_recorder_does_not_become_one_of_the_model(x, monkeypatch):
    def fail(*args):
        raise ZeroDivisionError("of the recorder")

    model = Net(32)
    expected = model(x)
    monkeypatch.setattr("lab.tracer.record.arguments_of", fail)
    with trace(model, probe=False) as tr:
        assert torch.equal(model(x), expected)
    assert all("ZeroDivisionError: of the recorder" in note for note in tr.notes) and tr.notes


def test_einops():
    einops = pytest.importorskip("einops")
    from einops.layers.torch import Rearrange

    class Heads(nn.Module):
        def __init__(self, dim, heads):
            super().__init__()
            self.heads, self.proj = heads, nn.Linear(dim, dim)
            self.split = Rearrange("b t (h k) -> b h t k", h=heads)

        def forward(self, x):
            q = einops.rearrange(self.proj(x), "b t (h k) -> b h t k", h=self.heads)
            return einops.einsum(q, self.split(x), "b h t k, b h s k -> b h t s")

    tr = traced(Heads(32, 4), torch.randn(3, 5, 32), names={"D": 32, "H": 4, "K": 8})
    assert tr.notes == [] and "einsum" in str(tr) and "→ (B,H,T,T)" in str(tr)
    assert flops(tr.calls[0]) == 2 * 3 * 5 * 32 * 32 + 2 * 3 * 4 * 5 * 5 * 8


def test_modules_of_pytorch():
    x = torch.randn(3, 5, 32)
    names = {"D": 32, "H": 4, "F": 80}
    assert "0" in str(traced(nn.Sequential(nn.Linear(32, 80), nn.ReLU()), x, names=names))
    attention = nn.MultiheadAttention(32, 4, batch_first=True)
    assert unnamed(traced(attention, x, x, x, names=names)) == set()
    encoder = nn.TransformerEncoderLayer(32, 4, 80, batch_first=True)
    assert unnamed(traced(encoder, x, names=names)) == set()
    tr = traced(nn.LSTM(32, 80, batch_first=True), x, names={"D": 32, "F": 80})
    assert "→ (B,T,F)" in str(tr)
    images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(1))
    assert str(traced(images, torch.randn(2, 3, 9, 9))).startswith("Sequential  B=2")


def test_a_transformers_model_gets_names_from_its_config():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6, max_position_embeddings=64,
    )  # fmt: skip
    tr = traced(transformers.LlamaModel(config), torch.randint(0, 97, (3, 5)))
    assert tr.notes == [] and unnamed(tr) == set()
    assert {"B", "T", "D", "H", "G", "K", "F", "V", "H·K", "K/2"} <= symbols(tr)


# ------------------------------------------------------------------------------------------------ exceptions


class Broken(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dim, self.net, self.fault = dim, Net(dim), None

    def forward(self, x):
        return self.fail(self.net(x))

    def fail(self, x):
        if self.fault == "operation":
            return x @ x
        assert self.fault != "assert", "as asked"
        if self.fault == "interrupt":
            raise KeyboardInterrupt
        return x


@pytest.mark.parametrize(
    "fault, kind", [("operation", RuntimeError), ("assert", AssertionError), ("interrupt", KeyboardInterrupt)]
)
def test_everything_is_restored_after_an_exception(fault, kind, x):
    model = Broken(32)
    model.fault = fault
    state = {id(m): dict(vars(m)) for m in model.modules()}
    weight, version = model.net.up.weight, model.net.up.weight._version
    with pytest.raises(kind) as caught, trace(model, names=NAMES) as tr:
        model(x)
    assert type(caught.value) is kind
    assert sys.getprofile() is None and torch.overrides._get_current_function_mode() is None
    assert {id(m): vars(m) for m in model.modules()} == state
    assert model.net.up.weight is weight and weight._version == version
    with pytest.raises(RuntimeError, match="disallow"), torch.autograd.graph.disable_saved_tensors_hooks("disallow"):
        with saved_tensors_hooks(lambda t: t, lambda t: t):
            pass
    failed = [item for item in tr.calls[0].walk() if item.failed]
    assert [s.function for s in failed if isinstance(s, Scope)] == ["forward", "fail"]
    assert all(s.frame is None and s.module is None for s in scopes(tr.calls[0]))
    assert symbols(tr) >= ({"B", "T"} if fault != "interrupt" else {"T"}), "someone is waiting: no more runs"
    assert (tr.probes == {}) == (fault == "interrupt") and tr.calls[0].replay is None
    model.fault = None
    assert traced(model, x, names=NAMES).notes == []


def test_the_innermost_failure_is_the_last_one_that_was_not_caught(x):
    class Careful(nn.Module):
        def forward(self, x):
            with contextlib.suppress(RuntimeError):
                x @ x
            return self.later(x + 1)

        def later(self, x):
            raise ValueError("plain Python")

    model = Careful()
    recorder = Recorder(model)
    with pytest.raises(ValueError), recorder:
        model(x)
    assert recorder.error[0].function == "later"
    assert [item.failed for item in recorder.calls[0].walk()] == [True, True, False, True]


def test_exceptions_that_are_caught_inside(x):
    class Careful(nn.Module):
        def forward(self, x):
            with contextlib.suppress(RuntimeError):
                x = self.risky(x)
            return x + 1

        def risky(self, x):
            return x @ x

    tr = traced(Careful(), x, names={"D": 32})
    assert tr.card is None and [item.failed for item in tr.calls[0].walk()] == [False, True, True, False]


def test_a_call_that_fails_is_named_up_to_there():
    model = GPT(COLLIDING)
    model.layers[1].mlp.Wdown = nn.Linear(100, 64)
    with pytest.raises(RuntimeError), trace(model, names=COLLIDING) as tr:
        model(torch.randint(0, 512, (2, 16)))
    assert [probe.complete for probe in tr.probes[0]][:2] == [True, True], "they fail at the same place"
    assert unnamed(tr) == {"100"} and {"H", "G", "K", "F"} <= symbols(tr)


def test_in_place_changes_are_still_noticed_by_backward():
    """Hooks for saved tensors switch PyTorch's own check of versions off."""

    class Wrong(nn.Module):
        def forward(self, x):
            y = x.exp()
            return y.add_(1)

    model, x = Wrong(), torch.ones(2, 3, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"), trace(model, probe=False):
        model(x).sum().backward()


def test_double_backward_inside_a_session(x):
    model = Net(32)
    with trace(model, names=NAMES):
        (g,) = torch.autograd.grad(model(x.requires_grad_()).square().sum(), x, create_graph=True)
        g.square().sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    (g,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    g.square().sum().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(grads, model.parameters()))


# ------------------------------------------------------------------------------------------------ names


def test_the_grouped_query_block_has_no_unnamed_dimension():
    tr = traced(ResidualLayer(COLLIDING), torch.randn(2, 16, 64), names=COLLIDING)
    assert unnamed(tr) == set() and tr.notes == []
    assert symbols(tr) == {"B", "T", "D", "H", "G", "K", "F", "H·K", "G·K", "K/2", "1"}
    q, k, v = next(s for s in scopes(tr.calls[0]) if s.function == "project").output.items
    assert (q[1].symbols, k[1].symbols, v[1].symbols) == (("B", "H", "T", "K"), *[("B", "G", "T", "K")] * 2)


VARIANTS = [
    {}, {"qk_norm": True}, {"post_norm": True}, {"positions": "learned"}, {"positions": "sinusoidal"},
    {"positions": "none"}, {"mlp_gated": False}, {"tied_head": False}, {"norm_affine": False},
    {"norm_type": "LayerNorm", "norm_bias": True}, {"norm_type": "CosineNorm"}, {"mlp_bias": True},
    {"scale_first_residual": True, "dropout_rate": 0.1}, {"mlp_nonlinearity": "relu2"}, {"num_kv_heads": 8},
    {"num_kv_heads": 1}, {"num_q_heads": 4, "num_kv_heads": 4, "head_dim": None},
    {"rope_dim": 8}, {"positions": "alibi"},
]  # fmt: skip


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_variant_of_the_model_has_names_only(changes):
    cfg = COLLIDING.replace(num_layers=1, **changes)
    for shape in (3, 5), (2, 16):
        tr = traced(GPT(cfg), torch.randint(0, 512, shape), names=cfg)
        assert unnamed(tr) == set() and tr.notes == []


@pytest.mark.parametrize("make", [MQA, MLP, ResidualLayer])
def test_every_block_of_the_model_has_names_only(make):
    tr = traced(make(COLLIDING), torch.randn(2, 16, 64), names=COLLIDING)
    assert unnamed(tr) == set() and tr.notes == []


@pytest.mark.parametrize("make", [RMSNorm, LayerNorm, CosineNorm])
def test_every_norm_has_names_only(make):
    for names in COLLIDING, {"D": 64}, {"D": 64, "H": 8, "G": 2, "K": 16}:
        tr = traced(make(64, bias=True), torch.randn(2, 16, 64), names=names)
        assert unnamed(tr) == set() and tr.notes == []


def test_letters_without_a_config_reach_the_config_that_a_module_keeps():
    tr = traced(MQA(COLLIDING), torch.randn(2, 16, 64), names=sizes_of(COLLIDING))
    assert unnamed(tr) == set() and tr.notes == []


def test_segments_and_chunks():
    model = GPT(COLLIDING)
    for T in 5, 300:
        tokens = torch.randint(0, 512, (2, T))
        for segments in None, torch.arange(T).expand(2, T) // 3:
            tr = traced(model, tokens, model.context(tokens, segments=segments), names=COLLIDING)
            assert tr.notes == [] and unnamed(tr) == (set() if T == 5 else {"128", "256"})
    assert {"H/G", "128·H/G", "T-256", "H/G·(T-256)"} <= symbols(tr), "pieces of 128 rows, the last of T - 256"


@pytest.mark.parametrize("shape", [(2, 16), (1, 4), (3, 5)])
def test_a_generation_loop(shape):
    model, tokens = GPT(COLLIDING), torch.randint(0, 512, shape)
    ctx = model.context(tokens, decode=True)
    with trace(model, names=COLLIDING) as tr, torch.no_grad():
        logits = model(tokens, ctx)
        for _ in range(6):
            logits = model(logits[:, -1:].argmax(-1), ctx)
    T = shape[1]
    assert unnamed(tr) == {"2"} and tr.notes == [], "keys and values are stacked: a literal 2"
    assert {f"T+{T + i}" for i in range(6)} <= symbols(tr), "keys to look at, also in calls that no probe repeated"
    assert len(tr.calls) == 7 and len(tr.probes) == 4
    assert ("2", "B", "G", "Tmax", "K") in {value.symbols for value in tr.values}


def test_a_single_step_of_decoding():
    model, tokens = GPT(COLLIDING), torch.randint(0, 512, (2, 16))
    ctx = model.context(tokens, decode=True)
    with torch.no_grad():
        model(tokens, ctx)
    before = copy.deepcopy(ctx)
    tr = traced(model, tokens[:, :1], ctx, names=COLLIDING)
    assert unnamed(tr) <= {"2"} and tr.notes == [] and "T+16" in symbols(tr)
    model(tokens[:, :1], before)
    assert all(torch.equal(ctx.cache[slot], before.cache[slot]) for slot in ctx.cache) and ctx.span == before.span == 17


class Literal(nn.Module):
    """Halves and stacks: the twos are literals though G = B = 2 are sizes as well."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg, self.Wk = cfg, nn.Linear(cfg.dim, cfg.num_kv_heads * cfg.head_dim)

    def forward(self, x):
        k = self.Wk(x).unflatten(-1, (self.cfg.num_kv_heads, self.cfg.head_dim))
        pairs = k.unflatten(-1, (2, -1))
        return torch.stack(pairs.chunk(2, dim=-2))


def test_a_literal_two_is_not_named():
    tr = traced(Literal(COLLIDING), torch.randn(2, 16, 64), names=COLLIDING)
    assert tr.calls[0].output.symbols == ("2", "B", "T", "G", "1", "K/2")
    assert ("B", "T", "G", "2", "K/2") in {value.symbols for value in tr.values}


def test_what_can_not_be_settled_is_shown_as_a_choice():
    class Closed(nn.Module):
        """What it was made with can't be found out, so that it can't be made in other sizes."""

        def __init__(self, make):
            super().__init__()
            self.layer = make()

        def forward(self, x):
            return self.layer(x).unflatten(-1, (8, 2, 8)).transpose(1, 2)

    names = {"D": 64, "H": 8, "G": 2, "K": 16}
    tr = traced(Closed(lambda: nn.Linear(64, 128)), torch.randn(2, 16, 64), names=names)
    assert tr.calls[0].output.symbols == ("B", "H|K/2", "T", "G|2", "H|K/2")
    assert any("no run with" in note and "could not be made anew" in note for note in tr.notes)


def test_paths_that_depend_on_the_data_are_noted_and_names_stay_honest(x):
    class Odd(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.dim, self.layer = dim, nn.Linear(dim, dim)

        def forward(self, x):
            if x.shape[0] == 3:
                return self.layer(x)[:, : 2 * self.layer.in_features // x.shape[1]]
            return self.layer(x.flatten(0, 1))

    tr = traced(Odd(32), x, names={"D": 32})
    (note,) = tr.notes
    assert "B=4 took another path from Odd test_tracer_core.py:" in note
    assert "B|3" in symbols(tr), "no run says whether 3 is B"

    class Kept(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.dim = dim

        def forward(self, x):
            return x[x[..., 0] > 0]

    count = int((x[..., 0] > 0).sum())
    assert traced(Kept(32), x, names={"D": 32}).calls[0].output.symbols == (str(count), "D")


def test_lengths_that_must_be_even(x):
    class Pairs(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.dim, self.merge = dim, nn.Linear(2 * dim, dim)

        def forward(self, x):
            return self.merge(x.unflatten(1, (-1, 2)).flatten(2))

    tr = traced(Pairs(32), torch.randn(3, 8, 32), names={"D": 32})
    assert tr.calls[0].output.symbols == ("B", "T/2", "D") and "2·D" in symbols(tr)
    assert len(tr.notes) == 1 and "the run with T=7 failed" in tr.notes[0]


def test_a_forgotten_transpose_fails_in_a_probe():
    class Wrong(nn.Module):
        def __init__(self, cfg):
            super().__init__()
            self.cfg, self.Wk = cfg, nn.Linear(cfg.dim, cfg.head_dim)

        def forward(self, x):
            k = self.Wk(x)
            return x @ k.transpose(1, 2).new_ones(2, 64, 16) @ k  # (B,T,K) times (B,T,K): runs as T = K

    tr = traced(Wrong(COLLIDING), torch.randn(2, 16, 64), names=COLLIDING)
    probes = [probe for probe in tr.probes[0] if probe.what.startswith("T=")]
    assert probes and not any(probe.complete for probe in probes)
    assert isinstance(probes[0].error, RuntimeError) and probes[0].failed_at.name == "matmul"


class Plain(nn.Module):
    """Takes a config of any kind."""

    def __init__(self, cfg):
        super().__init__()
        get = cfg.get if isinstance(cfg, dict) else lambda name: getattr(cfg, name)
        self.cfg, self.heads = cfg, get("n_heads")
        self.qkv, self.up = nn.Linear(get("dim"), 3 * get("dim")), nn.Linear(get("dim"), get("d_ff"))

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        return self.up(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@dataclass(frozen=True)
class Settings:
    dim: int = 32
    n_heads: int = 4
    d_ff: int = 80
    dropout: float = 0.1


@pytest.mark.parametrize(
    "config",
    [Settings(), SimpleNamespace(dim=32, n_heads=4, d_ff=80), {"dim": 32, "n_heads": 4, "d_ff": 80, "act": "x"}],
)
def test_configs_of_many_kinds(config, x):
    for names in None, config:
        tr = traced(Plain(config), x, names=names)
        assert symbols(tr) == {"B", "T", "D", "H", "F", "3·D", "D/H"} and tr.notes == []


def test_without_names(x):
    tr = traced(Net(32), x)
    assert symbols(tr) == {"B", "T", "32", "80"}
    tr = traced(Net(32), x, names={})
    assert symbols(tr) == {"B", "T", "32", "80"} and tr.notes == []


def test_modules_made_of_numbers_and_of_modules(x):
    class Wrap(nn.Module):
        def __init__(self, inner: nn.Module, dropout: float):
            super().__init__()
            self.inner, self.dropout = inner, nn.Dropout(dropout)

        def forward(self, x):
            return self.dropout(self.inner(x))

    for model in (Wrap(Net(32), 0.1), nn.Sequential(Net(32), nn.GELU(), nn.Linear(32, 80, bias=False))):
        tr = traced(model, x, names=NAMES)
        assert symbols(tr) == {"B", "T", "D", "F"} and tr.notes == []


def test_changes_after_construction_are_kept(x):
    class Switch(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.dim, self.layer, self.twice = dim, nn.Linear(dim, dim), False

        def forward(self, x):
            return self.layer(self.layer(x)) if self.twice and self.limit else x

    model = Switch(32)
    model.twice, model.limit = True, 3
    model.layer = nn.Sequential(model.layer, nn.ReLU())
    tr = traced(model, x, names={"D": 32})
    assert tr.notes == [] and symbols(tr) == {"B", "T", "D"}


def test_names_that_make_no_sense():
    with pytest.raises(ValueError, match="names="), trace(Net(32), names=object()):
        pass
    with pytest.raises(ValueError, match=r"names\['D'\]='wide'"), trace(Net(32), names={"D": "wide"}):
        pass
    assert torch.overrides._get_current_function_mode() is None and sys.getprofile() is None


# ------------------------------------------------------------------------------------------------ nothing is changed

SHAPES_SEEN = []  # what code under test writes to outside of its modules
counter = 0


class Slots:
    __slots__ = ("scale", "seen")

    def __init__(self):
        self.scale, self.seen = torch.ones(1), []


@dataclass
class Inner:
    buffers: list = field(default_factory=lambda: [torch.zeros(2)])


class Messy(nn.Module):
    """Writes to all it can reach."""

    calls = 0
    log: list = []

    def __init__(self, dim):
        super().__init__()
        self.layer, self.norm, self.drop = nn.Linear(dim, dim), nn.BatchNorm1d(dim), nn.Dropout(0.5)
        self.plain = torch.zeros(1)
        self.held = {"list": [torch.zeros(1)], "inner": Inner(), "queue": deque([torch.zeros(1)], maxlen=3)}
        self.generator = torch.Generator().manual_seed(1)
        self.twister, self.numpy = random.Random(1), np.random.default_rng(1)
        self.hidden = [nn.BatchNorm1d(dim)]
        self.count = 0

    def forward(self, x, ctx):
        global counter
        counter += 1
        Messy.calls += 1
        self.count += 1
        self.log.append(x.shape)
        SHAPES_SEEN.append(tuple(x.shape))
        self.plain += 1
        self.held["list"][0].add_(1)
        self.held["inner"].buffers[0].mul_(0).add_(self.count)
        self.held["queue"].append(torch.ones(1))
        ctx["state"].scale.add_(1)
        ctx["state"].seen.append(x)
        ctx.setdefault("calls", []).append(torch.rand(1) + random.random() + np.random.rand())
        noise = torch.rand(1, generator=self.generator) + self.twister.random() + self.numpy.random()
        print("called")
        warnings.warn("called", stacklevel=1)
        print("called", file=sys.stderr)
        y = self.drop(self.hidden[0](self.norm(self.layer(x).transpose(1, 2))).transpose(1, 2))
        return (y * (noise + ctx["state"].scale)) + self.plain


def fingerprint(value):
    """Everything that can be seen of an object, tensors to the last bit."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.detach().reshape(-1).tolist(), id(value)
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, dict):
        return {key: fingerprint(item) for key, item in value.items()}
    if isinstance(value, list | tuple | deque):
        return [fingerprint(item) for item in value]
    if isinstance(value, Slots):
        return fingerprint([value.scale, value.seen])
    return fingerprint(vars(value)) if isinstance(value, Inner | nn.Module) else repr(value)


def run_messy(probe: bool):
    global counter
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    SHAPES_SEEN.clear(), Messy.log.clear()
    counter, Messy.calls = 0, 0
    model, ctx, hooked = Messy(32), {"state": Slots()}, []
    model.layer.register_forward_hook(lambda module, args, output: hooked.append(output.shape))
    x = torch.randn(3, 5, 32, requires_grad=True)
    with warnings.catch_warnings(record=True) as warned, trace(model, names={"D": 32}, probe=probe) as tr:
        warnings.simplefilter("always")
        model(x, ctx).sum().backward()
    state = {name: fingerprint(value) for name, value in vars(model).items() if name != "_modules"}
    state["modules"] = [fingerprint([m._parameters, m._buffers]) for m in [*model.modules(), model.hidden[0]]]
    state["grad"] = [p.grad.tolist() for p in model.parameters()] + [x.grad.tolist()]
    state["versions"] = [
        t._version for t in [*model.parameters(), *model.buffers(), x, ctx["state"].scale, model.plain]
    ]
    state["random"] = torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())
    state["outside"] = [SHAPES_SEEN[:], Messy.log[:], counter, Messy.calls, hooked, len(warned)]
    state["ctx"] = fingerprint({**ctx, "state": 0}), ctx["state"].scale.tolist(), len(ctx["state"].seen)
    return without_ids(state), tr


def without_ids(value):
    if isinstance(value, dict):
        return {key: without_ids(item) for key, item in value.items()}
    if isinstance(value, tuple) and len(value) == 4 and isinstance(value[0], torch.dtype):
        return value[:3]
    return [without_ids(item) for item in value] if isinstance(value, list | tuple) else value


def test_probing_leaves_everything_bit_identical(capsys):
    expected, _ = run_messy(probe=False)
    printed = capsys.readouterr()
    found, tr = run_messy(probe=True)
    assert [probe.complete for probe in tr.probes[0]] == [True] * 3 and unnamed(tr) == {"2"}
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name] == expected[name], name
    assert capsys.readouterr() == printed, "nothing is printed twice"
    assert printed.out == printed.err == "called\n"


def test_objects_stay_the_very_same(x):
    model, ctx = Messy(32), {"state": Slots()}
    state, kept = ctx["state"], {name: value for name, value in vars(model).items() if name != "count"}
    tensors = [*model.parameters(), *model.buffers(), model.held["list"][0], model.plain]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced(model, x, ctx, names={"D": 32})
    assert ctx["state"] is state and all(vars(model)[name] is value for name, value in kept.items())
    after = [*model.parameters(), *model.buffers(), model.held["list"][0], model.plain]
    assert all(a is b for a, b in zip(tensors, after))


def test_hooks_that_keep_activations_keep_those_of_the_real_run(x):
    class Keeper:
        def __init__(self):
            self.last, self.all = None, []

        def note(self, module, args, output):
            self.last = output.shape
            self.all.append(output.shape)

    model, keeper, kept = Net(32), Keeper(), {}
    model.up.register_forward_hook(keeper.note)
    model.down.register_forward_hook(lambda module, args, output: kept.update(down=output))
    y = None
    with trace(model, names=NAMES) as tr:
        y = model(x)
    assert keeper.all == [(3, 5, 80)] and keeper.last == (3, 5, 80)
    assert torch.equal(kept["down"], y) and tr.notes == []


def test_inputs_keep_their_layout_in_probes(x):
    class View(nn.Module):
        def forward(self, x):
            return x.view(3, -1)

    class Reshape(nn.Module):
        def forward(self, x):
            return x.reshape(x.shape[0], -1) if x.is_contiguous() else x.flatten(1)

    strided = torch.randn(3, 5, 64)[..., :32]
    with pytest.raises(RuntimeError):
        traced(View(), strided)
    tr = traced(Reshape(), strided, names={"D": 32})
    assert [op.name for op in ops(tr.calls[0])][-1] == "flatten" and strided.stride() == (320, 64, 1)


def test_nothing_of_a_session_keeps_tensors_alive():
    import gc
    import weakref

    model, x = Net(32), torch.randn(3, 5, 32)
    tr = traced(model, x, names=NAMES)
    references = [weakref.ref(x), weakref.ref(model)]
    del x, model
    tr.model = None
    gc.collect()
    assert tr.calls and references[0]() is None


# ------------------------------------------------------------------------------------------------ costs


class ByHand(nn.Module):
    """Attention with plain products."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg, self.H, self.G, self.K = cfg, cfg.num_q_heads, cfg.num_kv_heads, cfg.head_dim
        self.Wq, self.Wk = nn.Linear(cfg.dim, self.H * self.K), nn.Linear(cfg.dim, self.G * self.K)
        self.Wv, self.Wo = nn.Linear(cfg.dim, self.G * self.K), nn.Linear(self.H * self.K, cfg.dim)

    def forward(self, x):
        q, k, v = (W(x).unflatten(-1, (-1, self.K)).transpose(1, 2) for W in (self.Wq, self.Wk, self.Wv))
        k, v = (t.repeat_interleave(self.H // self.G, dim=1) for t in (k, v))
        weights = (q @ k.transpose(-1, -2)).softmax(-1)
        return self.Wo((weights @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("kind", [MQA, ByHand])
@pytest.mark.parametrize("groups", [8, 2, 1])
def test_flops_of_attention_in_closed_form(kind, groups):
    B, T, D, H, K = 2, 16, 64, 8, 16
    cfg = COLLIDING.replace(num_kv_heads=groups)
    call = traced(kind(cfg), torch.randn(B, T, D), names=cfg).calls[0]
    assert flops(call) == 2 * B * T * (2 * D * H * K + 2 * D * groups * K) + 4 * B * H * T * T * K


def test_flops_of_other_modules_agree_with_pytorch(x):
    model = nn.Sequential(Net(32), nn.Conv1d(5, 7, 3), nn.ConvTranspose1d(7, 5, 3), nn.Bilinear(32, 32, 4))
    model[3].forward = lambda t, layer=model[3]: F.bilinear(t, t, layer.weight) @ torch.ones(4, 2)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert flops(traced(model, x, names=NAMES).calls[0]) == counter.get_total_flops() > 0


@pytest.mark.parametrize(
    "function, shapes",
    [
        (F.linear, [(3, 5, 7), (11, 7), (11,)]), (F.linear, [(7,), (11, 7)]), (torch.matmul, [(2, 1, 5, 7), (3, 7, 4)]),
        (torch.matmul, [(7,), (7, 4)]), (torch.matmul, [(5, 7), (7,)]), (torch.mm, [(5, 7), (7, 2)]),
        (torch.bmm, [(3, 5, 7), (3, 7, 2)]), (torch.addmm, [(2,), (5, 7), (7, 2)]),
        (torch.baddbmm, [(1, 1, 2), (3, 5, 7), (3, 7, 2)]),
        (lambda a, b: torch.einsum("bthk,bshk->bhts", a, b), [(2, 5, 4, 6), (2, 7, 4, 6)]),
        (lambda a, b: torch.einsum("i,j->ij", a, b), [(2,), (3,)]),
        (lambda a, b: torch.einsum("bi,ij->b", a, b), [(2, 3), (3, 4)]),
        (lambda a, b: torch.einsum("ii,ij->j", a, b), [(3, 3), (3, 4)]),
        (lambda a, b: torch.einsum("...ij,jk->...ik", a, b), [(2, 3, 4), (4, 5)]),
        (lambda a, b: torch.einsum("ij,jk->ik", [a, b]), [(3, 4), (4, 5)]),
    ],
)  # fmt: skip
def test_flops_of_single_operations_agree_with_pytorch(function, shapes):
    class Apply(nn.Module):
        def forward(self, *tensors):
            return function(*tensors)

    tensors = [torch.randn(shape) for shape in shapes]
    with FlopCounterMode(display=False) as counter:
        function(*tensors)
    with trace(Apply(), probe=False) as tr:
        tr.model(*tensors)
    assert flops(tr.calls[0]) == counter.get_total_flops()


@pytest.mark.parametrize("changes", [{}, {"post_norm": True, "qk_norm": True, "dropout_rate": 0.1}])
def test_saved_bytes_are_those_in_the_graph(changes):
    cfg = COLLIDING.replace(**changes)
    model, x = ResidualLayer(cfg), torch.randn(2, 16, 64)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages, waiting, seen = {}, [model(x).grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [node for node, _ in node.next_functions]
        for name in dir(node):
            saved = getattr(node, name) if name.startswith("_saved_") else None
            for tensor in saved if isinstance(saved, tuple | list) else [saved]:
                if isinstance(tensor, torch.Tensor):
                    storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    with trace(model, names=cfg) as tr:
        for _ in range(2):
            model(x)
    expected = sum(size for pointer, size in storages.items() if pointer not in own)
    assert [saved_bytes(call) for call in tr.calls] == [expected] * 2 and expected > 0
    with trace(model, names=cfg) as tr, torch.no_grad():
        model(x)
    assert saved_bytes(tr.calls[0]) == 0


def test_ten_layers_fold_to_one_screen():
    cfg = COLLIDING.replace(num_layers=10, qk_norm=True, post_norm=True)
    text = str(traced(GPT(cfg), torch.randint(0, 512, (2, 16)), names=cfg))
    assert "layers.0…9 ×10" in text and len(text.splitlines()) <= 60


def test_tracing_ten_layers_takes_at_most_three_times_as_long():
    """Without probes; medians of runs that take turns, in processor time, so that other processes matter little."""
    cfg = COLLIDING.replace(num_layers=10)
    model, tokens = GPT(cfg), torch.randint(0, 512, (8, 64))

    def recorded():
        with trace(model, names=cfg, probe=False):
            model(tokens)

    def seconds(run):
        begun = time.process_time()
        run()
        return time.process_time() - begun

    model(tokens), recorded()
    pairs = [(seconds(lambda: model(tokens)), seconds(recorded)) for _ in range(11)]
    plain, watched = (statistics.median(times) for times in zip(*pairs))
    assert watched <= 3 * plain, f"{watched / plain:.2f} times as long"


# ------------------------------------------------------------------------------------------------ formulas

LETTERS = ["B", "T", "D", "H", "G", "K", "F"]


def value_of(text: str, sizes: dict[str, int]) -> int:
    """What a formula gives, worked out independently of how it was found."""
    text = text.replace("⌊", "floor(").replace("⌋", ")").replace("⌈", "ceil(").replace("⌉", ")").replace("·", "*")
    from fractions import Fraction
    from math import ceil, floor

    value = eval(text, {"floor": floor, "ceil": ceil}, {name: Fraction(size) for name, size in sizes.items()})
    assert value == int(value), text
    return int(value)


@st.composite
def four_runs(draw):
    """Sizes as the tracer makes them: the recorded ones, T - 1, B + 1, and another config."""
    base = {name: draw(st.integers(2, 96)) for name in LETTERS}
    config = {name: base[name] for name in "DHGKF"}
    config["H"] = base["H"] = base["G"] * draw(st.integers(1, 8))
    other = other_sizes(config, frozenset())
    return [base, base | {"T": base["T"] - 1}, base | {"B": base["B"] + 1}, base | other]


FORMULAS = [
    "{a}", "{a}*{b}", "{a}*{n}", "{a}+{n}", "{a}*{b}*{c}", "{a}*{b}+{n}", "H//G", "{n}*H//G", "K//2", "T-1", "{a}+{b}",
    "{n}*{a}+{m}", "H//G*(T+{n})", "{n}", "{a}//{n}", "{a}//{b}+{n}", "{a}*{a}-{b}",
]  # fmt: skip


@given(
    runs=four_runs(), formula=st.sampled_from(FORMULAS),
    letters=st.lists(st.sampled_from(LETTERS), min_size=3, max_size=3),
    n=st.integers(1, 9), m=st.integers(1, 9), gaps=st.sets(st.integers(1, 3), max_size=2),
)  # fmt: skip
def test_every_formula_shown_gives_the_size_in_every_run(runs, formula, letters, n, m, gaps):
    text = formula.format(a=letters[0], b=letters[1], c=letters[2], n=n, m=m)
    sizes = tuple(eval(text, {}, run) for run in runs)
    seen = tuple(None if i in gaps else size for i, size in enumerate(sizes))
    namer = Namer(runs)
    for found in namer.fits(seen):
        for size, run in zip(seen, runs):
            assert size is None or value_of(found, run) == size
    assert namer.name(seen) == ("|".join(namer.fits(seen)) or str(seen[0]))


@given(runs=four_runs(), sizes=st.tuples(*[st.integers(0, 400)] * 4))
def test_what_does_not_fit_is_not_named(runs, sizes):
    for found in Namer(runs).fits(sizes):
        assert [value_of(found, run) for run in runs] == list(sizes)


@given(runs=four_runs(), letters=st.lists(st.sampled_from(LETTERS), min_size=2, max_size=2, unique=True))
def test_letters_and_products_are_found(runs, letters):
    namer = Namer(runs)
    a, b = (tuple(run[name] for run in runs) for name in letters)
    assert letters[0] in namer.fits(a)
    product = "·".join(sorted(letters, key="BTDHGKF".index))
    found = namer.fits(tuple(p * q for p, q in zip(a, b)))
    assert product in found or found[0] in LETTERS


@pytest.mark.parametrize(
    "sizes, text",
    [
        ((16, 15, 16, 16), "T"), ((8, 8, 8, 8), "8"), ((1, 1, 1, 1), "1"), ((17, 16, 17, 17), "T+1"),
        ((128, 128, 128, 360), "H·K"), ((32, 30, 32, 32), "2·T"), ((31, 29, 31, 31), "2·T-1"),
        ((32, 30, 48, 32), "B·T"), ((8, 7, 8, 8), "T-8|⌊T/2⌋"), ((4, 4, 4, 5), "H/G"), ((65, 65, 65, 71), "D+1"),
        ((172, 172, 172, 188), "172"), ((16, 15, None, None), "T"), ((16, None, None, None), "T|K"),
        ((2, None, None, None), "B|G|2"), ((8, None, None, None), "H|K/2"),
    ],
)  # fmt: skip
def test_formulas_by_example(sizes, text):
    base = {"B": 2, "T": 16, "D": 64, "H": 8, "G": 2, "K": 16, "F": 136}
    other = base | {"D": 70, "H": 20, "G": 4, "K": 18, "F": 144}
    assert Namer([base, base | {"T": 15}, base | {"B": 3}, other]).name(sizes) == text


@given(sizes=st.fixed_dictionaries({name: st.integers(1, 64) for name in "DHGKFVE"}), attempt=st.integers(0, 1))
def test_other_sizes_differ_and_keep_what_models_need(sizes, attempt):
    sizes["H"] = sizes["G"] * sizes["H"]
    for tied in frozenset(), frozenset({"H=G"}), frozenset({"H|D"}), frozenset({"D=HK"}):
        other = other_sizes(sizes, tied, attempt)
        assert other.keys() == sizes.keys() and all(
            other[name] != sizes[name] for name in sizes if name != "D" or not tied
        )
        assert other["H"] % other["G"] == 0 and other["K"] % 2 == 0
        assert tied != {"H=G"} or other["H"] == other["G"]
        assert tied != {"H|D"} or other["D"] % other["H"] == 0
        assert tied != {"D=HK"} or other["D"] == other["H"] * other["K"]


def test_configs_with_other_sizes():
    assert with_sizes(Settings(), {"D": 48, "H": 6}) == Settings(48, 6)
    assert with_sizes({"dim": 32, "act": "x"}, {"D": 48}) == {"dim": 48, "act": "x"}
    assert with_sizes({"D": 32}, {"D": 48}) == {"D": 48}
    assert with_sizes(SimpleNamespace(dim=1), {"D": 2, "H": 9}) == SimpleNamespace(dim=2)
    assert dataclasses.asdict(with_sizes(COLLIDING, {"V": 9}))["vocab_size"] == 9
    assert sizes_of({"dim": 32, "n_heads": 4, "act": "x"}) == {"D": 32, "H": 4}
