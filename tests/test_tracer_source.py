"""Source with shapes behind each line, shape comments that are checked, and signatures of `@log_io`."""

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import model as model_file
from config import ModelConfig
from lab.tracer.check import parse_signature
from lab.tracer.comments import docstring_arrow, parse_comment, shape_comments
from lab.tracer.record import Scope
from lab.tracer.shapes import fit, parse_dim
from lab.tracer.source import function_node
from tools import LoggingModule, log_io, trace

CFG = ModelConfig(dim=32, num_layers=2, num_q_heads=4, num_kv_heads=2, head_dim=6, mlp_hidden=80, vocab_size=97,
                  max_seq_len=300)  # fmt: skip
MODEL_PY = Path(model_file.__file__)


# ---------------------------------------------------------------------------------------- comments of model.py itself


def traces_of(module) -> list:
    """Traces that reach every line of model.py: all kinds of norms, positions, masks and ways to attend."""
    made = []

    def add(changes, use):
        gpt = module.GPT(CFG.replace(**changes))
        with trace(gpt, names=gpt.cfg) as tr, torch.no_grad():
            use(gpt)
        made.append(tr)

    tokens, long = torch.randint(0, 97, (3, 5)), torch.randint(0, 97, (3, 300))
    add({"qk_norm": True, "logit_cap": 30.0, "rope_factor": 2.0}, lambda gpt: gpt(tokens))
    add({"norm_type": "LayerNorm", "positions": "learned"}, lambda gpt: gpt(tokens))
    add({"norm_type": "CosineNorm", "positions": "sinusoidal", "mlp_gated": False}, lambda gpt: gpt(tokens))
    add({"num_layers": 1}, lambda gpt: gpt(long))
    segments = torch.zeros(3, 300, dtype=torch.int64)
    add({"num_layers": 1}, lambda gpt: gpt(long, gpt.context(long, segments=segments)))
    add({"num_layers": 1}, lambda gpt: gpt(tokens, gpt.context(tokens, segments=segments[:, :5])))

    def decode(gpt):
        ctx = gpt.context(tokens, decode=True)
        gpt(tokens[:, :4], ctx)
        gpt(tokens[:, 4:], ctx)

    add({"num_layers": 1}, decode)
    add({"num_layers": 1, "recipe": 'Norm->[Attn|MLP](join="gate")->+(layer_scale=0.5)'}, lambda gpt: gpt(tokens))
    return made


def sources_of(module, traces) -> list:
    """The annotated source of every class and function of a module, for each trace in which it ran."""
    own = [item for item in vars(module).values() if getattr(item, "__module__", "") == module.__name__]
    found = []
    for tr in traces:
        ran = {id(s.code) for call in tr.calls for s in call.walk() if isinstance(s, Scope)}
        for item in own:
            members = vars(item).values() if isinstance(item, type) else [item]
            if any(id(getattr(member, "__code__", None)) in ran for member in members):
                found.append(tr.source(item))
    return found


@pytest.fixture(scope="module")
def sources():
    torch.manual_seed(0)
    return sources_of(model_file, traces_of(model_file))


def commented_lines() -> set[int]:
    """Lines of model.py behind whose code a comment has a shape."""
    lines = MODEL_PY.read_text(encoding="utf-8").splitlines(keepends=True)
    return {comment.line for comment in shape_comments(lines, 1, len(lines))}


def test_every_shape_comment_of_the_model_is_right(sources):
    assert [error for source in sources for error in source.errors] == []


def test_every_shape_comment_of_the_model_is_reached_and_understood(sources):
    checked = {line for source in sources for file, line in source.checked if file == str(MODEL_PY)}
    written = commented_lines()
    looks_like_one = re.compile(r"\S.*  # .*\((?:\.\.\.|[A-Z])[^a-z()]*,[^a-z()]*\)")
    text = MODEL_PY.read_text(encoding="utf-8").splitlines()
    assert {number for number, line in enumerate(text, 1) if looks_like_one.match(line)} <= written
    assert len(written) >= 20
    assert written - checked == set()


def test_every_plain_docstring_of_the_model_is_reached(sources):
    checked = {line for source in sources for _, line in source.checked}
    text = MODEL_PY.read_text(encoding="utf-8").splitlines()
    arrows = {n for n, line in enumerate(text, 1) if '"""' in line and docstring_arrow(line.strip(' "'), n)}
    assert len(arrows) >= 12
    assert arrows - checked == set()


def mutated(path: Path, change) -> SimpleNamespace:
    """A copy of model.py, imported, in which `change` was made to the shapes of comments; with the lines it changed."""
    lines = MODEL_PY.read_text(encoding="utf-8").splitlines(keepends=True)
    changed = set()
    for number in commented_lines():
        code, _, comment = lines[number - 1].partition("  # ")
        new = re.sub(r"\((?:[^()]+)\)", lambda m: change(m[0]), comment)
        if change("(C, S)") != "(C, S)" or all(change(m[0]) != m[0] for m in re.finditer(r"\([^()]+\)", comment)):
            lines[number - 1] = f"{code}  # {new}"
            changed.add(number)
    path.write_text("".join(lines), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return SimpleNamespace(module=module, changed=changed)


def drop_a_dim(shape: str) -> str:
    return "(" + ", ".join(shape.strip("()").split(", ")[:-1]) + ",)" if ", " in shape else "(B, B, B, B, B)"


def swap_letters(shape: str) -> str:
    other = dict(zip("BTDHGKF", "THVGHVD"))
    return re.sub(r"[A-Z]", lambda m: other.get(m[0], m[0]), shape)


@pytest.mark.parametrize("change", [drop_a_dim, swap_letters])
def test_every_wrong_comment_is_caught(tmp_path, change):
    copy = mutated(tmp_path / f"model_{change.__name__}.py", change)
    errors = [error for source in sources_of(copy.module, traces_of(copy.module)) for error in source.errors]
    assert len(copy.changed) >= 18
    caught = {int(error.split(":")[1]) for error in errors if "the comment says" in error}
    assert caught == copy.changed


# ------------------------------------------------------------------------------------------------------- what is shown


class Block(LoggingModule):
    """Attention and a wide MLP, written for these tests."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.Wqkv = nn.Linear(cfg.dim, 3 * cfg.num_q_heads * cfg.head_dim)
        self.Wo = nn.Linear(cfg.num_q_heads * cfg.head_dim, cfg.dim)

    def split(self, t):
        """(B, T, H*K) -> (B, H, T, K)"""
        return t.unflatten(-1, (self.cfg.num_q_heads, -1)).transpose(1, 2)  # (B, H, T, K)

    def forward(self, x, mask=None):
        q, k, v = (
            self.split(t)  # this comment (says nothing) of shapes
            for t in self.Wqkv(x).chunk(3, dim=-1)
        )
        scores = q @ k.mT  # (B, H, T, S)
        out = (
            (scores.softmax(-1) @ v)  # (B, H, T, K)
            .transpose(1, 2)  # (B, T, H, K)
            .flatten(2)
        )  # (B, T, H*K)
        return self.Wo(out)  # (B, T, D)

    def never(self):
        return None


@pytest.fixture(scope="module")
def block():
    torch.manual_seed(0)
    module = Block(CFG)
    with trace(module, names=CFG) as tr:
        module(torch.randn(3, 5, 32))
    return tr


def test_shapes_stand_behind_the_lines(block):
    lines = [line.split("│") for line in str(block.source(Block.forward)).splitlines() if "│" in line]
    assert [(code.rstrip(), shapes.strip()) for code, shapes in lines] == [
        ("def forward(self, x, mask=None):", "x (B,T,D) =(3,5,32)"),
        ("    )", "q (B,H,T,K) =(3,4,5,6), k (B,H,T,K), v (B,H,T,K)"),
        ("    scores = q @ k.mT  # (B, H, T, S)", "scores (B,H,T,T)"),
        ("    )  # (B, T, H*K)", "out (B,T,H·K) =(3,5,24)"),
        ("    return self.Wo(out)  # (B, T, D)", "→ (B,T,D)"),
    ]
    columns = {line.index("│") for line in str(block.source(Block.forward)).splitlines() if "│" in line}
    assert len(columns) == 1


def test_what_can_be_asked_for(block):
    whole, bound = str(block.source(Block)), str(block.source(block.model.forward))
    assert bound == str(block.source(Block.forward))
    assert "def split" in whole
    assert bound in whole
    assert "def never" not in whole
    assert whole == str(block.source(block.model))
    assert block.source(Block).errors == []
    with pytest.raises(ValueError, match=r"Block\.never did not run in this trace.*Block\.forward.*Block\.split"):
        block.source(Block.never)
    with pytest.raises(TypeError, match="give a Python function"):
        block.source(torch.relu)


def test_html_shows_shapes_and_errors_in_colours(tmp_path):
    tr = traced(tmp_path, "y = x @ x.mT  # (B, T, D)\nreturn y < 1")
    page = tr.source(tr.model.forward)._repr_html_()
    assert page.startswith("<pre style=")
    assert re.search(r'<span style="color: #0b7285; font-weight: bold">y \(B,T,T\)</span>', page)
    assert re.search(r'<span style="color: #c92a2a[^>]*> *✗ the comment says \(B, T, D\), but y is \(B,T,T\)', page)
    assert "&lt;" in page
    text = re.sub(r"<[^>]+>", "", page)
    assert text.splitlines()[0].startswith("def forward(self, x):")


# ------------------------------------------------------------------------------------------ comments, right and wrong


def traced(folder: Path, body: str, call="x", docstring="", inputs=None):
    """A trace of a module whose forward has this body, in a file of its own; x is (B, T, D)."""
    path = folder / f"made_{abs(hash((body, docstring)))}.py"
    head = f'        """{docstring}"""\n' if docstring else ""
    lines = "".join(f"        {line}\n" for line in body.splitlines())
    source = f"import torch\nfrom torch import nn\n\n\nclass Made(nn.Module):\n    def forward(self, {call}):\n"
    path.write_text(source + head + lines, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.Made()
    with trace(made, names=CFG) as tr:
        made(*(inputs or [torch.randn(3, 5, 32)]))
    return tr


def errors_of(folder: Path, body: str, **settings) -> list[str]:
    tr = traced(folder, body, **settings)
    return tr.source(tr.model.forward).errors


RIGHT = [
    "y = x * 2  # (B, T, D)",
    "y = x * 2  # (B,T,D)",
    "y = x * 2  # [B, T, D]",
    "y = x * 2  # (B, T, 32) or (B, T, D)",
    "y = x * 2  # (..., D)",
    "y = x * 2  # (B, ..., D)",
    "y = x * 2  # (B, T, C)",
    "y = x @ x.mT  # (B, L, L)",
    "y = x.flatten(1)  # (B, T*D)",
    "y = x.flatten(0, 1)  # (B·T, D)",
    "y = torch.cat((x, x), -1)  # (B, T, 2D)",
    "y = torch.cat((x, x[:, :1]), 1)  # (B, T+1, D)",
    "y = x[..., ::2]  # (B, T, D/2)",
    "y = x > 0  # (B, T, D) bool",
    "y = x.argmax(-1)  # (B, T) int64: the strongest channel",
    "y = x.mean((0, 1))  # (D,)",
    "y = x.mean((0, 1))  # (dim,)",
    "y = x.sum()  # ()",
    "y, z = x.chunk(2, -1)  # each (B, T, D/2)",
    "y, z = x.mean(1), x.sum(0)  # (B, D) and (T, D)",
    "y, z = x.mean(1), x.sum(0)  # z (T, D), y (B, D)",
    "y = x.mean(1)  # (B, T, D) -> (B, D)",
    "y = x * 2  # now y is (B, T, D)",
    "y = x[:, :3]  # (B, C, D), with C = 3 of (T, T) pairs",
    "y = x * 2  # twice (as in the paper, that is)",
    "y = x * 2  # see f(T, D) and x[B, K], or eq. (4, 5)",
    "y = x * 2  # of a head's width (K) there are some, and channels (i, i + K/2)",
    "y = x.transpose(\n    1,\n    2,\n)  # (B, D, T)",
    "y = torch.cat((\n    x[:, 1:],  # (B, T-1, D)\n    x[:, :1],  # (B, 1, D)\n), 1)",
    "a, b = x[:, 1:], x[:, :1]\ny = torch.cat((\n    a,  # (B, T-1, D)\n    b,  # (B, 1, D)\n), 1)",
    "y = (\n    x.mT  # (B, D, T)\n    .sum(0)  # (D, T)\n    .mT\n)  # (T, D)",
    "return x * 2  # (B, T, D)",
    "return x.mean(1), x.sum(0)  # (B, D), (T, D)",
    "x += 1  # (B, T, D)",
    "for i in range(1, 3):\n    y = x[:, :i]  # (B, C, D)",
    "y = [x[:, 0], x[:, 1]]  # each (B, D)",
    "y = tuple(x[:, i] for i in range(2))  # (B, D)",
    "self.kept = x * 2  # (B, T, D)",
]


@pytest.mark.parametrize("body", RIGHT)
def test_right_comments(tmp_path, body):
    assert errors_of(tmp_path, body) == []


WRONG = {
    "y = x * 2  # (B, D, T)": ["(B, D, T)", "y is (B,T,D) = (3,5,32)"],
    "y = x * 2  # (B, T)": ["(B, T)", "(3,5,32)"],
    "y = x * 2  # (B, 4, D)": ["(B, 4, D)", "(3,5,32)"],
    "y = x * 2  # (B, 5, D)": ["(B, 5, D)", "(3,5,32)"],
    "y = x * 2  # (B, C, C)": ["(B, C, C)", "(3,5,32)"],
    "y = x * 2  # (B, D) or (T, D)": ["(B, D) or (T, D)", "(3,5,32)"],
    "y = x > 0  # (B, T, D) int64": ["(B, T, D)", "bool"],
    "y, z = x.chunk(2, -1)  # each (B, T, D)": ["y is (B,T,D/2)", "z is (B,T,D/2)"],
    "y, z = x.mean(1), x.sum(0)  # (T, D) and (B, D)": ["y is (B,D)", "z is (T,D)"],
    "y, z = x.mean(1), x.sum(0)  # z (B, D), y (B, D)": ["z is (T,D)"],
    "y = torch.cat((\n    x[:, 1:],  # (B, T, D)\n    x[:, :1],\n), 1)": ["(B, T, D)", "(3,4,32)"],
    "a, b = x[:, 1:], x[:, :1]\ny = torch.cat((\n    b,\n    a,  # (B, 1, D)\n), 1)": ["it is (B,T-1,D) = (3,4,32)"],
    "y = (\n    x.mT  # (B, T, D)\n    .sum(0)\n)": ["(B, T, D)", "(3,32,5)"],
    "return x * 2  # (B, D)": ["(B, D)", "what is returned is (B,T,D)"],
    "for i in range(1, 3):\n    y = x[:, :i]  # (B, 2, D)": ["(B, 2, D)", "(3,1,32)"],
}


@pytest.mark.parametrize("body", WRONG)
def test_wrong_comments(tmp_path, body):
    errors = errors_of(tmp_path, body)
    text = "\n".join(errors)
    line = 7 + next(number for number, code in enumerate(body.splitlines()) if "  # (" in code or "  # each" in code
                    or "  # z" in code)  # fmt: skip
    assert errors
    assert all(re.match(rf"made_\d+\.py:{line}: the comment says ", error) for error in errors)
    assert all(piece in text for piece in WRONG[body])


class Coincides(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg, self.proj = cfg, nn.Linear(cfg.dim, cfg.head_dim)

    def forward(self, x):
        keys = self.proj(x)  # (B, T, K)
        turned = keys.mT  # (B, T, K), which is wrong
        return turned  # (B, K, T)


def test_sizes_that_only_coincide_are_told_apart():
    module = Coincides(CFG)
    with trace(module, names=CFG) as tr:
        module(torch.randn(3, 6, 32))  # T = K
    errors = tr.source(Coincides).errors
    assert len(errors) == 1
    assert errors[0].endswith("the comment says (B, T, K), but turned is (B,K,T) = (3,6,6)")


@pytest.mark.parametrize(("docstring", "wrong"), [
    ("(B, T, D) -> (B, T, T)", 0),
    ("(..., D) -> (..., T)", 0),
    ("Scores of all pairs: x (B, T, D) -> scores (B, T, T). Raises nothing.", 0),
    ("Works in place (as far as I know) -> faster", 0),
    ("(B, T, K) -> (B, T, T)", 1),
    ("Scores of all pairs: x (B, T, D) -> (B, T, D)", 1),
    ("(B, D, T) int64 -> (B, T, D)", 2),
])  # fmt: skip
def test_docstrings_with_an_arrow(tmp_path, docstring, wrong):
    errors = errors_of(tmp_path, "return x @ x.mT", docstring=docstring)
    assert len(errors) == wrong
    assert all(":7: the docstring says (" in error for error in errors)


def test_arguments_with_comments_of_their_own(tmp_path):
    call = "\n        x,  # (B, T, D)\n        y,  # (B, D)\n    "
    inputs = [torch.randn(3, 5, 32), torch.randn(3, 5)]
    errors = errors_of(tmp_path, "return x.mT @ y[..., None]", call=call, inputs=inputs)
    assert len(errors) == 1
    assert ":8: the comment says (B, D), but y is (B,T)" in errors[0]


def test_prose_is_not_taken_for_a_shape():
    for text in ("as in (Vaswani, 2017)", "(see below)", "softmax(B, T)", "(x, y)", "adds noise to (B, T) rows", "(a)"):
        assert parse_comment(text) is None
    for text in ("(B, T)", "each (B, T, K/2)", "scores (B, H, T, S)", "cos and sin, each (T, K/2)", "(H*K,)", "(T)"):
        assert parse_comment(text) is not None


def test_formulas_and_free_letters():
    key = {"B": (2, 3), "H": (8, 8), "G": (2, 2), "K": (16, 16)}

    def held(text, *sizes):
        return fit([parse_dim(part) for part in text.split()], sizes, key, {})

    assert held("B C C", (2, 3), (7, 6), (7, 6)) == {"C": (7, 6)}
    assert held("B C C", (2, 3), (7, 6), (7, 7)) is None
    assert held("H/G*C K", (20, 24), (16, 16)) == {"C": (5, 6)}
    assert held("H/G*C", (21, 24)) is None
    assert held("K/2 2K K+1 (H+2*G)*K", (8, 8), (32, 32), (17, 17), (192, 192)) == {}
    assert held("B", (2, None)) == {}
    assert held("B ...", (2, 3), (9, 9), (4, 4)) == {}
    assert held("... B", (9, 9)) is None
    assert [parse_dim(text) for text in ("a b", "", "f(x)", "x[0]", "1.5", "B**2", "'B'")] == [None] * 7


# ---------------------------------------------------------------------------------------------------------- signatures


class Signed(LoggingModule):
    """A block whose `step` is one of the functions below."""

    step = None

    def __init__(self, cfg):
        super().__init__()
        self.cfg, self.proj = cfg, nn.Linear(cfg.dim, cfg.dim)

    @log_io("x: B T D, mask: T T -> B T D")
    def forward(self, x, mask=None):
        return type(self).step(self.proj(x))


@log_io("x: B T D -> B T D")
def unchanged(x):
    return x


@log_io("x: ... D -> first: B T D/2, second: B T 16")
def halves(x):
    return x.chunk(2, dim=-1)


@log_io("x: B N D -> B N N")
def pairs(x):
    return x @ x.mT


@log_io("x: 3 T 32 -> ()")
def total(x):
    return x.sum()


@log_io("x: B T D -> B N N")
def not_square(x):
    return x


@log_io("-> B T D")
def says_no_arguments(x):
    return x


def checked(step, *more, check=True):
    module = type("Signed", (Signed,), {"step": staticmethod(step)})(CFG)
    with trace(module, names=CFG, check=check) as tr:
        module(torch.randn(3, 5, 32), *more)
    return tr


def test_signatures_that_hold():
    for step in (unchanged, says_no_arguments):
        checked(step)
        checked(step, torch.zeros(5, 5))
    checked(lambda x: torch.cat(halves(x), -1))
    checked(lambda x: pairs(x) @ x)
    checked(lambda x: total(x) + x)


@pytest.mark.parametrize(("step", "message"), [
    (lambda x: unchanged(x[..., :1]) + x,
     "unchanged: x is (B,T,1) = (3,5,1), but its signature says 'B T D'; "
     "unchanged: the output is (B,T,1) = (3,5,1), but its signature says 'B T D'"),
    (lambda x: x[:, 1:], "Signed.forward: the output is (B,T-1,D) = (3,4,32), but its signature says 'B T D'"),
    (lambda x: (x,), None),
    (lambda x: (x, x), None),
    (not_square, "not_square: the output is (B,T,D) = (3,5,32), but its signature says 'B N N'; "),
    (lambda x: total(x[1:]) + x, "total: x is (B-1,T,D) = (2,5,32), but its signature says '3 T 32'"),
    (lambda x: sum(halves(torch.cat((x, x), -1))),
     "halves: x is (B,T,2·D) = (3,5,64), but its signature says '... D'; "
     "halves: first is (B,T,D) = (3,5,32), but its signature says 'B T D/2'; "
     "halves: second is (B,T,D) = (3,5,32), but its signature says 'B T 16'"),
])  # fmt: skip
def test_signatures_that_are_broken(step, message):
    if message is None:  # one tensor in a tuple passes for one tensor, and so do several alike
        checked(step)
        return
    with pytest.raises(ValueError) as caught:
        checked(step)
    assert message.strip("; ") in str(caught.value)


def test_free_letters_mean_one_size_within_a_call():
    with pytest.raises(ValueError, match=r"signature says 'B N N' with N=5"):
        checked(lambda x: pairs_of(x) + x[:, :1])
    checked(lambda x: pairs(x) @ x + pairs(x[:, :3])[:, :1, :1])  # and another size in another one


@log_io("x: B N D -> B N N")
def pairs_of(x):
    return x


def test_mask_of_another_length():
    with pytest.raises(ValueError, match=r"Signed\.forward: mask is \(8,8\).*signature says 'T T'"):
        checked(unchanged, torch.zeros(8, 8))


def test_wrong_number_of_outputs():
    @log_io("x: B T D -> B T D, B T D")
    def two(x):
        return x

    with pytest.raises(ValueError, match=r"two: it returns \(B,T,D\), but its signature says 'B T D, B T D'"):
        checked(two)


def test_at_most_five_violations_are_listed():
    def many(x):
        for size in range(1, 9):
            unchanged(x[..., :size])
        return x

    with pytest.raises(ValueError) as caught:
        checked(many)
    assert str(caught.value).count("signature says") == 5
    assert str(caught.value).endswith("; and 11 more")


def test_equal_violations_are_counted():
    def twice(x):
        return unchanged(x[:1]) + unchanged(x[:1]) + x

    with pytest.raises(ValueError, match=r"x is \(1,T,D\) = \(1,5,32\), but its signature says 'B T D' \(2 calls\)"):
        checked(twice)


def test_checking_is_asked_for_and_never_hides_an_error():
    assert checked(unchanged, check=False).calls
    assert checked(not_square, check=False).calls
    with pytest.raises(RuntimeError, match="must match"):
        checked(lambda x: not_square(x) + torch.ones(7))


@pytest.mark.parametrize(("signature", "column", "problem"), [
    ("x: B T D", 9, "'->' is missing"),
    ("y: B T D -> B T D", 1, "there is no argument 'y'; there are x, mask"),
    ("x: B T D, musk: T T -> B", 11, "there is no argument 'musk'"),
    ("B T D -> B T D", 1, "an argument needs its name"),
    ("x: B f(T) -> B", 6, "'f(T)' is no dimension"),
    ("x: B T ->", 10, "a shape is missing"),
    ("x: B T, -> B", 9, "a shape is missing"),
    ("x: ... B ... -> B", 1, "'...' stands twice"),
    ("x: B -> B, 1.5", 12, "'1.5' is no dimension"),
])  # fmt: skip
def test_signatures_that_can_not_be_read(signature, column, problem):
    with pytest.raises(ValueError) as caught:
        parse_signature(signature, "MQA.forward", ("self", "x", "mask"))
    assert str(caught.value).startswith(f"MQA.forward: signature {signature!r}, column {column}: ")
    assert problem in str(caught.value)


def test_unreadable_signature_of_a_function_that_ran():
    @log_io("z: B -> B")
    def wrong(x):
        return F.relu(x)

    with pytest.raises(ValueError, match=r"wrong: signature 'z: B -> B', column 1: there is no argument 'z'"):
        checked(wrong)


def test_every_function_of_a_trace_has_its_source(block):
    scopes = [item for call in block.calls for item in call.walk() if isinstance(item, Scope)]
    assert all(function_node(scope.code) is not None for scope in scopes)
