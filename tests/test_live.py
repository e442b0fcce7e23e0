"""lab/live.py and lab/show_source.py: the @log_io marker, calls printed as they happen, and real source code."""

import contextlib
import copy
import cProfile
import pickle
import sys
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lab.live import LoggingModule
from lab.show_source import show_source
from lab.tracer import log_io, trace
from lab.tracer.values import describe, render

B, T, D, H, G, K, V = 3, 5, 32, 4, 2, 6, 97  # pairwise different, so that each axis can be recognised
SIZES = {"D": D, "H": H, "G": G, "K": K, "V": V}


class Context:
    """Stands for the object that travels beside x."""


@log_io
def attend(q, k, v, *, scale=None):
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    out = nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
    return out


class Attention(LoggingModule):
    def __init__(self):
        super().__init__()
        self.Wq = nn.Linear(D, H * K, bias=False)
        self.Wk = nn.Linear(D, G * K, bias=False)
        self.Wv = nn.Linear(D, G * K, bias=False)
        self.Wo = nn.Linear(H * K, D, bias=False)
        self.held = self.project  # a bound method captured at construction
        self.fault = None

    @log_io
    def forward(self, x, ctx=None, *, causal: bool = True, scale=0.5):
        q, k, v = self.held(x) if ctx == "held" else self.project(x)
        if self.fault:
            self.fault(q)
        return self.Wo(attend(q, k, v, scale=scale).transpose(1, 2).flatten(2))

    @log_io("x: B T D -> B H T K, B G T K, B G T K")
    def project(self, x):
        q, k, v = (W(x).unflatten(-1, (-1, K)).transpose(1, 2) for W in (self.Wq, self.Wk, self.Wv))
        return q, k, v

    def quiet(self, x):
        return x


class Block(LoggingModule):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(D)
        self.attn = Attention()

    @log_io
    def forward(self, x, ctx=None):
        return x + self.attn(self.norm(x), ctx, causal=False)


class Net(nn.Module):
    """Not a LoggingModule: trace must see it all the same."""

    def __init__(self, num_layers=10):
        super().__init__()
        self.embed = nn.Embedding(V, D)
        self.layers = nn.ModuleList(Block() for _ in range(num_layers))
        self.head = nn.Linear(D, V, bias=False)

    def forward(self, tokens, ctx=None):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, ctx)
        return self.head(x)


class Odd(LoggingModule):
    """Arguments and outputs of many kinds."""

    @log_io
    def forward(self, /, x, *rest, flag=False, **more):
        hidden = x * 2
        return {"logits": hidden, "aux": (x.sum(), None)}

    @log_io
    def pair(self, x):
        first = x
        return first, x.new_zeros(1), self.quiet(x)

    def quiet(self, x):
        return [x] * 12


@pytest.fixture(autouse=True)
def fixed():
    torch.manual_seed(0)
    assert sys.getprofile() is None
    yield
    assert sys.getprofile() is None, "a profile function was left behind"


@pytest.fixture
def x():
    return torch.randn(B, T, D)


def printed(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()


# ---------------------------------------------------------------------------------------------------- the marker


def test_marker_returns_the_function_itself():
    def function(x):
        return x

    code = function.__code__
    assert log_io(function) is function
    assert log_io("x: B T -> B T")(function) is function
    assert function.__code__ is code


def test_marker_refuses_what_has_no_python_code():
    with pytest.raises(TypeError, match="not a Python function"):
        log_io(len)


def test_marker_under_another_decorator(capsys):
    class Module(LoggingModule):
        @log_io
        @torch.no_grad()
        def forward(self, tokens, *, deep=True):
            return tokens

    module = Module()
    module.enable_logging()
    module(torch.zeros(B, T))
    assert printed(capsys) == ["▸ Module.forward   tokens (3, 5)  deep=True (default)", "◂ tokens (3, 5)"]


def test_off_leaves_nothing_on_the_module():
    module = Attention()
    before = dict(module.__dict__)
    module.enable_logging()
    module.enable_function_logging("project")
    module.disable_logging()
    assert module.__dict__ == before
    assert not module._forward_hooks and not module._forward_pre_hooks
    assert module.forward.__func__ is Attention.forward


def test_compiles_fully_and_again_after_logging(x):
    module = Block()
    expected = module(x)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), expected)
    module.enable_logging(recursive=True)
    module.disable_logging(recursive=True)
    assert torch.equal(torch.compile(module, fullgraph=True, backend="eager")(x), expected)


def test_compiles_fully_with_logging_on(x, capsys):
    module = Block()
    expected = module(x)
    module.enable_logging(recursive=True)
    assert torch.equal(torch.compile(module, fullgraph=True, backend="eager")(x), expected)
    assert printed(capsys) == []


# ---------------------------------------------------------------------------------------------------- live logging


def test_labels_and_indentation(x, capsys):
    block = Block()
    block.enable_logging(recursive=True)
    block(x, ctx=Context())
    assert printed(capsys) == [
        "▸ Block.forward   x (3, 5, 32)  ctx Context",
        "│ ▸ Attention.forward   x (3, 5, 32)  ctx Context  causal=False  scale=0.5 (default)",
        "│ │ ▸ Attention.project   x (3, 5, 32)",
        "│ │ ◂ q (3, 4, 5, 6)  k (3, 2, 5, 6)  v (3, 2, 5, 6)",
        "│ │ ▸ attend   q (3, 4, 5, 6)  k (3, 2, 5, 6)  v (3, 2, 5, 6)  scale=0.5",
        "│ │ ◂ out (3, 4, 5, 6)",
        "│ ◂ (3, 5, 32)",
        "◂ (3, 5, 32)",
    ]


def test_keyword_only_and_default_arguments(x, capsys):
    module = Attention()
    module.enable_function_logging("forward")
    module(x=x, scale=0.25)
    assert printed(capsys)[0] == (
        "▸ Attention.forward   x (3, 5, 32)  ctx=None (default)  causal=True (default)  scale=0.25"
    )
    module(x, None, causal=False)
    assert printed(capsys)[0].endswith("ctx=None (default)  causal=False  scale=0.5 (default)")


def test_odd_arguments_and_outputs(capsys):
    module = Odd()
    module.enable_logging()
    ids = torch.zeros(B, T, dtype=torch.int64)
    module(ids, torch.ones(2, dtype=torch.bool), "text", flag=True, mask=None)
    module.pair(ids.float())
    assert printed(capsys) == [
        "▸ Odd.forward   x (3, 5) int64  flag=True  *rest ((2,) bool, 'text')  **more {mask: None}",
        "◂ {logits: (3, 5) int64, aux: (() int64, None)}",
        "▸ Odd.pair   x (3, 5)",
        "◂ first (3, 5)  x (1,)  [(3, 5) ×12]",
    ]


def test_unmarked_forward_is_logged_and_unmarked_helpers_are_not(capsys):
    class Plain(LoggingModule):
        def forward(self, x):
            return self.helper(x)

        def helper(self, x):
            return -x

    module = Plain()
    module.enable_logging()
    module(torch.zeros(2))
    assert printed(capsys) == ["▸ Plain.forward   x (2,)", "◂ (2,)"]


def test_static_methods_and_foreign_instance_attributes(capsys):
    class Module(LoggingModule):
        def forward(self, x):
            return self.double(x)

        @staticmethod
        @log_io
        def double(x):
            return 2 * x

    module = Module()
    module.enable_logging()
    assert module.double(1) == 2
    module(1)
    assert "│ ▸ double   x=1" in printed(capsys)
    module.disable_logging()
    module.forward = lambda x: "theirs"
    module.enable_logging()
    assert module(1) == "theirs"
    module.disable_logging()
    assert module(1) == "theirs"


def test_direct_calls_and_captured_methods(x, capsys):
    module = Attention()
    module.enable_logging()
    module.project(x)
    assert len(printed(capsys)) == 2
    module.forward(x, "held")
    lines = printed(capsys)
    assert lines[1] == "│ ▸ Attention.project   x (3, 5, 32)"
    assert lines[0].startswith("▸ Attention.forward   x (3, 5, 32)  ctx='held'")


def test_enable_per_module(x, capsys):
    block = Block()
    block.enable_logging()
    block(x)
    assert [line.split()[1] for line in printed(capsys)] == ["Block.forward", "(3,"]
    block.disable_logging()
    block.attn.enable_logging()
    block(x)
    assert printed(capsys)[0].startswith("▸ Attention.forward")
    other = Block()
    other(x)
    assert printed(capsys) == []
    block.disable_logging(recursive=True)
    block(x)
    assert printed(capsys) == []


def test_enable_per_function(x, capsys):
    module = Attention()
    module.disable_function_logging("project")
    module.enable_logging()
    module.disable_function_logging("attend")  # a plain function that this module calls
    module(x)
    assert len(printed(capsys)) == 2
    module.enable_function_logging("project")
    module(x)
    assert len(printed(capsys)) == 4
    module.disable_logging()
    module.enable_function_logging("project")  # alone
    module(x)
    assert printed(capsys)[0] == "▸ Attention.project   x (3, 5, 32)"
    module.disable_logging()
    module(x)
    assert printed(capsys) == []


def test_unknown_function_name():
    with pytest.raises(ValueError, match=r"name='projct': Attention has no such .* choose one of forward, project"):
        Attention().enable_function_logging("projct")
    with pytest.raises(ValueError, match="quiet"):
        Attention().disable_function_logging("quiet")


def op_error(q):
    return q @ q


def assertion(q):
    assert q.ndim == 3, "three dimensions"


def interrupt(q):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "fault, kind", [(op_error, RuntimeError), (assertion, AssertionError), (interrupt, KeyboardInterrupt)]
)
def test_state_is_restored_after_an_exception(fault, kind, x, capsys):
    block = Block()
    block.enable_logging(recursive=True)
    block(x)
    usual = printed(capsys)
    block.attn.fault = fault
    with pytest.raises(kind):
        block(x)
    assert sys.getprofile() is None
    lines = printed(capsys)
    assert [line for line in lines if "✗" in line] == [lines[-1]], "said once, by the innermost call"
    assert lines[-1].startswith("│ ✗ exception in forward, line ")
    block.attn.fault = None
    block(x)
    assert printed(capsys) == usual, "indentation starts from zero and nothing is doubled"


def test_exception_that_is_caught_inside(capsys):
    class Careful(LoggingModule):
        def forward(self, x):
            with contextlib.suppress(ValueError):
                self.risky(x)
            return self.safe(x)

        @log_io
        def risky(self, x):
            raise ValueError

        @log_io
        def safe(self, x):
            return x

    module = Careful()
    module.enable_logging()
    module(torch.zeros(2))
    signs = [line.replace("│ ", "")[0] for line in printed(capsys)]
    assert signs == ["▸", "▸", "✗", "▸", "◂", "◂"]


def test_a_profiler_that_was_there_comes_back_and_keeps_seeing_calls(x, capsys):
    seen = []

    def mine(frame, event, arg):
        seen.append(frame.f_code.co_name)

    module = Attention()
    module.enable_logging()
    sys.setprofile(mine)
    module(x)
    assert sys.getprofile() is mine
    sys.setprofile(None)
    assert "project" in seen and "attend" in seen
    profiler = cProfile.Profile()
    profiler.enable()
    module(x)
    module.quiet(x)
    profiler.disable()
    assert "quiet" in {entry.code.co_name for entry in profiler.getstats() if not isinstance(entry.code, str)}


def test_threads_do_not_mix(x, capsys):
    module = Attention()
    module.enable_logging()
    outputs = []
    thread = threading.Thread(target=lambda: outputs.append(module(x)))
    thread.start()
    thread.join()
    assert len(printed(capsys)) == 6 and torch.equal(outputs[0], module(x))


# ---------------------------------------------------------------------------------------------------- copies, files


@pytest.mark.parametrize("make", [copy.deepcopy, copy.copy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_while_logging_is_on(make, x, capsys):
    block = Block()
    block.enable_logging(recursive=True)
    block.disable_function_logging("forward")
    block.attn.held = block.attn.project  # stored while on: it must not tie the copy to the original
    other = make(block)
    expected = block(x, "held")
    capsys.readouterr()
    assert torch.equal(other(x, "held"), expected)
    assert printed(capsys)[0].startswith("▸ Attention.forward"), "the copy logs what the original does"
    if make is not copy.copy:
        with torch.no_grad():
            other.attn.Wq.weight.zero_()
        assert torch.equal(block(x, "held"), expected) and not torch.equal(other(x, "held"), expected)
    capsys.readouterr()
    other.disable_logging()
    other.enable_logging()
    other.disable_function_logging("forward")
    block.disable_logging()
    assert not {"forward", "project"} & other.__dict__.keys()


def test_a_shallow_copy_runs_its_own_weights(x, capsys):
    module = Attention()
    module.enable_logging()
    other = copy.copy(module)
    other._modules = dict(module._modules, Wo=nn.Linear(H * K, 7))
    assert other(x).shape == (B, T, 7)


def test_saving_while_logging_is_on(tmp_path):
    block = Block()
    plain = block.state_dict()
    block.enable_logging(recursive=True)
    assert block.state_dict().keys() == plain.keys()
    torch.save(block.state_dict(), tmp_path / "block.pt")
    save_file(block.state_dict(), tmp_path / "block.safetensors")
    other = Block()
    other.load_state_dict(torch.load(tmp_path / "block.pt", weights_only=True))
    assert torch.equal(other.attn.Wq.weight, block.attn.Wq.weight)
    assert load_file(tmp_path / "block.safetensors").keys() == plain.keys()


def test_outputs_and_gradients_are_bit_identical(capsys):
    net, tokens = Net(2), torch.randint(V, (B, T))

    def run():
        net.zero_grad()
        logits = net(tokens)
        logits.logsumexp(-1).sum().backward()
        return [logits.detach().clone(), *(p.grad.clone() for p in net.parameters())]

    expected = run()
    for layer in net.layers:
        layer.enable_logging(recursive=True)
    with trace(net, names=SIZES):
        watched = run()
    assert all(torch.equal(a, b) for a, b in zip(expected, watched, strict=True))


# ---------------------------------------------------------------------------------------------------- describing


def test_describe_and_render():
    tensor = torch.zeros(B, T, dtype=torch.bfloat16)
    assert render(describe(tensor)) == "(3, 5) bfloat16"
    assert render(describe(torch.zeros(2, device="meta"))) == "(2,) meta"
    assert render(describe(torch.zeros(()))) == "()"
    assert render(describe(True)) == "True" and render(describe(0.1 + 0.2)) == "0.3"
    assert render(describe("a" * 99)).endswith("…") and len(render(describe("a" * 99))) == 40
    assert render(describe([1, tensor])) == "[1, (3, 5) bfloat16]"
    assert render(describe(list(range(20)))) == "[0, 1, 2, 3, 4, 5, 6, 7, … 12 more]"
    assert render(describe(Context())) == "Context"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_describe_a_tensor_without_a_shape():
    assert render(describe(torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]))) == "(nested)"


def test_describe_what_refuses_to_be_looked_at():
    class Stubborn(list):
        def __iter__(self):
            raise RuntimeError

    class Pair(tuple):
        _fields = ("a", "b", "c")

    assert render(describe(Stubborn([1]))) == "Stubborn"
    assert render(describe(Pair((1, 2)))) == "Pair"
    assert render(describe({1: 2, (3, 4): 5, "k" * 99: 6})) == "{1: 2, tuple: 5, " + "k" * 40 + ": 6}"
    assert render(describe(slice(1, torch.tensor(3)))) == "1:Tensor"


# ---------------------------------------------------------------------------------------------------- beside a trace


def test_trace_over_live_logging(x, capsys):
    block = Block()
    with trace(block) as quiet:
        block(x)
    block.enable_logging(recursive=True)
    with trace(block, names=SIZES) as tr:
        block(x)
    assert len(printed(capsys)) == 8, "probes print nothing"
    assert [op.name for op in ops(tr)] == [op.name for op in ops(quiet)]
    assert str(tr).splitlines()[1:] == str(quiet_named(block, x)).splitlines()[1:]


def quiet_named(block, x):
    block.disable_logging(recursive=True)
    with trace(block, names=SIZES) as tr:
        block(x)
    return tr


def ops(tr):
    return [item for item in tr.calls[0].walk() if not hasattr(item, "children")]


# ---------------------------------------------------------------------------------------------------- show_source


def test_show_source(capsys):
    show_source(Attention)
    assert capsys.readouterr().out.startswith("class Attention(LoggingModule):\n")
    module = Attention()
    show_source(module)
    assert capsys.readouterr().out.startswith("class Attention(LoggingModule):\n")
    module.enable_logging()
    for method in (Attention.project, module.project, module.held):
        show_source(method)
        assert capsys.readouterr().out.startswith('@log_io("x: B T D -> B H T K, B G T K, B G T K")\ndef project(')
    show_source(Net(1).layers[0].attn.Wq)
    assert capsys.readouterr().out.startswith("class Linear(Module):")


def test_show_source_without_docstrings(capsys):
    show_source(Net, docstring=False)
    out = capsys.readouterr().out
    assert '"""' not in out and out.splitlines()[:3] == [
        "class Net(nn.Module):",
        "    def __init__(self, num_layers=10):",
        "        super().__init__()",
    ]
    show_source(Context, docstring=False)  # nothing but a docstring: it stays, or the class would have no body
    assert '"""' in capsys.readouterr().out


def test_show_source_of_builtins():
    for builtin in (len, torch.add, dict, 3):
        with pytest.raises(TypeError, match="no Python source"):
            show_source(builtin)
