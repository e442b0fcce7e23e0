"""Checks that every block has to pass, whatever it computes: `check_block("MQA")` prints a table of them.

    check_block("MyMixer")                                   a registered block, by its name or as a class
    check_block("Norm->Attn->+->Norm->MyMixer->+")           a whole layer, as a recipe
    report.ok, report.failed                                 for a test

A block that is checked by itself stands in a model of two layers `Norm->Block#twice->+` that share its weights: state
that is kept on the module instead of under `ctx.slot` gets mixed up there. All parameters are random, since the zeros
that blocks start with would hide errors, and numbers are fp64, so that two ways of computing the same agree closely.
"""

from __future__ import annotations

import copy
import inspect
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError, gradcheck

from blocks.recipe_layer import RecipeLayer
from config import ModelConfig
from model import GPT, LAYERS, Context, find_block, make_context
from recipe import parse

# Sizes that differ from one another, so that no mix-up of two dimensions goes unseen.
SMALL = ModelConfig(dim=32, num_layers=2, vocab_size=50, max_seq_len=80, num_q_heads=4, num_kv_heads=2, head_dim=6)
B, T = 3, 70  # longer than the usual chunk of 64, so that a chunked form has a border to cross
CLOSE = 1e-6  # two ways of computing the same may differ by this share of the largest number
MAX_TIME = 5.0  # times as long as attention over TIMED tokens
TIMED = 256


class Failed(Exception):
    """The block breaks the rule; the message says where and by how much."""


class Skipped(Exception):
    """The rule does not concern this block; the message says why."""


@dataclass(frozen=True)
class Result:
    """What became of one check. `passed` is None if it was skipped."""

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Report:
    """All checks of one block, in order; shown as a table."""

    subject: str
    results: tuple[Result, ...]

    @property
    def ok(self) -> bool:
        return not self.failed

    @property
    def failed(self) -> list[str]:
        """The names of the checks that failed."""
        return [result.name for result in self.results if result.passed is False]

    def _verdict(self) -> str:
        passed = sum(result.passed is True for result in self.results)
        skipped = sum(result.passed is None for result in self.results)
        counts = [f"{passed} passed", f"{len(self.failed)} FAILED" if self.failed else "", f"{skipped} skipped"]
        return f"{self.subject}: {', '.join(filter(None, counts if skipped else counts[:2]))}"

    def __str__(self) -> str:
        width = max(len(result.name) for result in self.results)
        lines = [f"{_mark(result)} {result.name:{width}}  {result.detail}" for result in self.results]
        return "\n".join([self._verdict(), *lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cell = '<td style="text-align:left">'
        rows = [f"<tr>{cell}{_mark(r)}</td>{cell}{r.name}</td>{cell}{escape(r.detail)}</td></tr>" for r in self.results]
        return f"<table><caption>{escape(self._verdict())}</caption>{''.join(rows)}</table>"


def _mark(result: Result) -> str:
    return {True: "✓", False: "✗", None: "–"}[result.passed]


# ---------------------------------------------------------------- what is checked


class Subject:
    """A block under test: by itself as `block`, and with a small random model around it as `model`."""

    def __init__(self, recipe: str, alone: str | None, cfg: ModelConfig):
        self.cfg = cfg.replace(recipe=recipe, dropout_rate=0.0, post_norm=False)
        self.model = randomised(GPT(self.cfg)).double().eval()
        self.single = alone is not None
        self.alone = parse(alone or recipe)  # one block without norm and residual, or the recipe as it is
        self.block = randomised(self.fresh()).double().eval()
        self.length = min(T, cfg.max_seq_len - 1)
        self.memory = torch.randn(B, 7, cfg.dim, dtype=torch.float64)  # what cross-attention looks at

    def fresh(self, cfg: ModelConfig | None = None) -> RecipeLayer:
        """The block by itself, newly made."""
        return RecipeLayer(cfg or self.cfg, self.alone)

    def says(self, attribute: str) -> bool:
        """Whether all its blocks declare `causal` or `decodes`; one that is silent is taken to."""
        return all(getattr(type(module), attribute, True) for module in self.model.modules())

    def tokens(self, rows: int = B, length: int | None = None) -> Tensor:
        return torch.randint(0, self.cfg.vocab_size, (rows, length or self.length))

    def context(self, tokens: Tensor, **options) -> Context:
        ctx = self.model.context(tokens, **options)
        ctx.memory = self.memory[: len(tokens)]
        return ctx

    def around(self, x: Tensor) -> Context:
        """The context for running the block by itself on x (B, T, D)."""
        ctx = make_context(self.cfg, x)
        ctx.memory = self.memory[: len(x)].to(x.dtype)
        return ctx

    def run(self, tokens: Tensor, **options) -> Tensor:
        """(B, T) -> (B, T, D), without gradients"""
        with torch.no_grad():
            return self.model.features(tokens, self.context(tokens, **options))

    def decode(self, tokens: Tensor, widths: list[int]) -> tuple[Tensor, Context]:
        """The same as `run`, piece by piece with a decode state; returns the context too."""
        ctx = self.context(tokens, decode=True)
        with torch.no_grad():
            pieces = [self.model.features(piece, ctx) for piece in tokens.split(widths, dim=1)]
        return torch.cat(pieces, dim=1), ctx


def randomised(module: nn.Module) -> nn.Module:
    """All parameters random, those of embeddings with standard deviation 1 and the others with 0.3."""
    for part in module.modules():
        for p in part.parameters(recurse=False):
            nn.init.normal_(p, std=1.0 if isinstance(part, nn.Embedding) else 0.3)
    return module


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference as a share of the largest number; infinite if anything is not finite."""
    if ours.numel() == 0:
        return 0.0
    share = ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30)).item()
    return share if math.isfinite(share) else math.inf


def _expect_equal(ours: Tensor, theirs: Tensor, what: str) -> str:
    difference = _difference(ours, theirs)
    if difference > CLOSE:
        places = ((ours - theirs).abs().amax(dim=(0, -1)) > CLOSE * theirs.abs().max()).nonzero().flatten().tolist()
        where = f", first at position {places[0]} of the {ours.shape[1]} compared" if places else ""
        raise Failed(f"{what}: they differ by {difference:.1e} of the largest number{where}")
    return f"largest difference {difference:.0e}"


# ---------------------------------------------------------------- the checks

CHECKS: dict[str, Callable[[Subject], str]] = {}


def check(name: str) -> Callable:
    """Adds a check: it returns what it measured, or raises Failed or Skipped."""

    def register(function: Callable[[Subject], str]) -> Callable:
        CHECKS[name] = function
        return function

    return register


@check("shapes")
def check_shapes(subject: Subject) -> str:
    """(B, T, D) comes out finite and in the same type, for one row and for one token too."""
    for rows, length in ((B, subject.length), (1, 2), (2, 1)):
        x = torch.randn(rows, length, subject.cfg.dim, dtype=torch.float64)
        out = subject.block(x, subject.around(x))
        if out.shape != (rows, length, subject.cfg.dim) or out.dtype != torch.float64:
            raise Failed(f"({rows}, {length}, D={subject.cfg.dim}) fp64 came out as {tuple(out.shape)} {out.dtype}")
        if not (out.isfinite().all() and subject.run(subject.tokens(rows, length)).isfinite().all()):
            raise Failed(f"not all finite for {rows} rows of {length} tokens")
    return f"(B, T, D) -> (B, T, D) for T = 1, 2, {subject.length}"


@check("nothing kept")
def check_nothing_kept(subject: Subject) -> str:
    """What a module holds is the same before and after it ran, decoding too, and so is what it answers."""
    tokens, others = subject.tokens(), subject.tokens()
    before, first = _held(subject.model), subject.run(tokens)
    subject.run(others)
    if subject.says("decodes"):
        subject.decode(others, [others.shape[1] - 1, 1])
    after, again = _held(subject.model), subject.run(tokens)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        raise Failed(f"running it changed {', '.join(changed)}: state belongs into ctx.cache[ctx.slot]")
    return _expect_equal(again, first, "the same input before and after another one")


def _held(model: nn.Module) -> dict[str, tuple]:
    """What each module holds, by name: identity, size and, of tensors, the sum and version."""
    found = {}
    for path, module in model.named_modules():
        held = {name: value for name, value in vars(module).items() if not name.startswith("_")} | module._buffers
        for name, value in held.items():
            size = len(value) if isinstance(value, (list, dict, set)) else 0
            version = value._version if isinstance(value, Tensor) else 0
            found[f"{path}.{name}"] = id(value), size, version
    return found


@check("causality")
def check_causality(subject: Subject) -> str:
    """Changing the tokens from position c on leaves what came out before c as it was."""
    if not subject.says("causal"):
        raise Skipped("declares causal = False")
    tokens, length = subject.tokens(), subject.length
    before = subject.run(tokens)
    cuts = sorted({1, 2, 3, length // 3, length // 2, length - 2, length - 1})
    for cut in cuts:
        changed = tokens.clone()
        changed[:, cut:] = (changed[:, cut:] + 1) % subject.cfg.vocab_size
        after = subject.run(changed)
        _expect_equal(after[:, :cut], before[:, :cut], f"tokens changed from position {cut} on, outputs before it")
    return f"changing the tokens from position {', '.join(map(str, cuts))} on"


@check("decoding")
def check_decoding(subject: Subject) -> str:
    """One token at a time with a decode state equals the whole row at once."""
    tokens = _decodable(subject)
    out, _ = subject.decode(tokens, [1] * tokens.shape[1])
    return _expect_equal(out, subject.run(tokens), "decoded one by one and all at once")


@check("decoding in pieces")
def check_pieces(subject: Subject) -> str:
    """So do several tokens at a time, as a prompt or a draft brings them."""
    tokens = _decodable(subject)
    first = tokens.shape[1] // 2
    widths = [first, 1, 3, 2]
    widths.append(tokens.shape[1] - sum(widths))
    out, _ = subject.decode(tokens, widths)
    return _expect_equal(out, subject.run(tokens), f"decoded in pieces of {widths} and all at once")


def _decodable(subject: Subject) -> Tensor:
    if not subject.says("decodes"):
        raise Skipped("declares decodes = False")
    return subject.tokens()


@check("rows of other lengths")
def check_lengths(subject: Subject) -> str:
    """Rows padded on the right and rewound to their own lengths go on as if each were alone."""
    tokens = _decodable(subject)[:2, :20]
    ctx = subject.context(tokens, decode=True)
    with torch.no_grad():
        subject.model.features(tokens[:, :14], ctx)
        ctx.rewind(torch.tensor([14, 5]))  # what row 1 had from its sixth token on was padding
        last = torch.cat([subject.model.features(tokens[:, t : t + 1], ctx) for t in range(14, 20)], dim=1)
    short = torch.cat((tokens[:, :5], tokens[:, 14:]), dim=1)
    _expect_equal(last[:1], subject.run(tokens)[:1, 14:], "the longest row and the same row alone")
    return _expect_equal(last[1:], subject.run(short)[1:, 5:], "a shorter row and the same row alone")


@check("state size")
def check_state(subject: Subject) -> str:
    """How much is kept for a row while decoding, and whether it grows with the context as the docstring says.

    Of a block by itself: "Decode state: none" keeps nothing, "numbers per row" the same for any context, and "per
    token" (or byte) more for a longer one.
    """
    _decodable(subject)
    short, long = (_kept(subject, subject.cfg.max_seq_len * times) for times in (1, 2))
    measured = "none" if not long else "per row" if short == long else "per token"
    found = f"{short:,.0f} numbers a row and layer, {measured}"
    says = _documented_state(subject)
    if says is None:
        return found + ('; its docstring has no "Decode state:"' if subject.single else "")
    if says != measured:
        raise Failed(f"documented as {says}, but what is kept is {measured}: {short:,.0f} and {long:,.0f} numbers")
    return found + ", as documented"


def _kept(subject: Subject, context: int) -> float:
    """Numbers in the decode state for each row and layer, in a model with room for `context` tokens."""
    cfg = subject.cfg.replace(max_seq_len=context)
    model, tokens = GPT(cfg).double().eval(), subject.tokens(length=9)
    ctx = model.context(tokens, decode=True)
    ctx.memory = subject.memory[: len(tokens)]
    with torch.no_grad():
        for piece in tokens.split([8, 1], dim=1):
            model.features(piece, ctx)
    return sum(tensor.numel() for tensor in _tensors(ctx.cache)) / (len(tokens) * cfg.num_layers)


def _documented_state(subject: Subject) -> str | None:
    """ "none", "per row" or "per token", as the docstring of a block by itself says; None where it does not."""
    if not subject.single:
        return None
    block = next(module for module in subject.block.children())
    for cls in type(block).__mro__:
        says = re.search(r"Decode state:\s+(none)|Decode state:.*?\bper\s+(row|token|byte)", cls.__doc__ or "", re.S)
        if says:
            return "none" if says[1] else "per row" if says[2] == "row" else "per token"
    return None


def _tensors(value) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value))


@check("rows of a batch")
def check_rows(subject: Subject) -> str:
    """Changing one row leaves the others as they were."""
    tokens = subject.tokens()
    before, changed = subject.run(tokens), tokens.clone()
    changed[1] = (changed[1] + 1) % subject.cfg.vocab_size
    after = subject.run(changed)
    return _expect_equal(after[[0, 2]], before[[0, 2]], "row 1 changed, rows 0 and 2")


@check("packed documents")
def check_segments(subject: Subject) -> str:
    """Documents packed into one row do not see one another, or are refused."""
    tokens, border = subject.tokens(), subject.length // 2
    segments = (torch.arange(subject.length) >= border).long().expand(len(tokens), -1)
    try:
        before = subject.run(tokens, segments=segments)
    except ValueError as error:
        if not re.search("segment|document", str(error)):
            raise
        return f"refused: {error}"
    changed = tokens.clone()
    changed[:, :border] = (changed[:, :border] + 1) % subject.cfg.vocab_size
    after = subject.run(changed, segments=segments)
    return _expect_equal(after[:, border:], before[:, border:], "the first document changed, the second")


@check("gradients")
def check_gradients(subject: Subject) -> str:
    """Each parameter gets a gradient that is finite and not zero throughout."""
    model, tokens = subject.model.train(), subject.tokens()
    try:
        ctx = subject.context(tokens)
        out = model.features(tokens, ctx)
        loss = (out * torch.randn_like(out)).sum() + sum(ctx.aux.values())
        names, parameters = zip(*model.layers.named_parameters())
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    finally:
        model.eval()
    dead = [name for name, g in zip(names, gradients) if g is None or not g.any()]
    if dead:
        raise Failed(f"no gradient reaches {', '.join(dead)}")
    wild = [name for name, g in zip(names, gradients) if not g.isfinite().all()]
    if wild:
        raise Failed(f"the gradient is not finite for {', '.join(wild)}")
    return f"{len(names)} parameters"


@check("gradcheck")
def check_derivatives(subject: Subject) -> str:
    """The gradients are the derivatives, measured by small steps in random directions (fp64)."""
    x = torch.randn(2, 5, subject.cfg.dim, dtype=torch.float64, requires_grad=True)
    parameters = tuple(subject.block.parameters())
    size = sum(p.numel() for p in parameters)
    if size > 1_000_000:
        raise Skipped(f"{size:,} parameters are too many to step through: give a smaller cfg")
    try:  # it moves the parameters themselves, and so need not hand them on
        gradcheck(lambda x, *_: subject.block(x, subject.around(x)), (x, *parameters), fast_mode=True)
    except GradcheckError as error:
        raise Failed(str(error).strip().splitlines()[0]) from error
    return f"fp64, input and {size:,} parameters"


@check("bf16")
def check_bf16(subject: Subject) -> str:
    """In bf16 outputs and gradients are finite, for large inputs too, and stay bf16."""
    block = copy.deepcopy(subject.block).to(torch.bfloat16)
    for size in (1, 30):
        x = (size * torch.randn(B, subject.length, subject.cfg.dim)).to(torch.bfloat16).requires_grad_()
        out = block(x, subject.around(x))
        if out.dtype != torch.bfloat16:
            raise Failed(f"bf16 came out as {out.dtype}")
        gradients = torch.autograd.grad(out.float().sum(), (x, *block.parameters()), allow_unused=True)
        if not all(g.isfinite().all() for g in (out, *gradients) if g is not None):
            raise Failed(f"outputs or gradients are not finite for inputs of size {size}")
    return "finite for inputs of size 1 and 30"


@check("trace")
def check_trace(subject: Subject) -> str:
    """Tracing leaves the output as it is, and the tracer finds a name for each dimension."""
    from tools import trace

    def traced(tokens: Tensor, probe: bool):
        ctx = subject.context(tokens)
        with trace(subject.model, names=subject.cfg, probe=probe) as tr, torch.no_grad():
            return tr, subject.model.features(tokens, ctx)

    tokens = subject.tokens(length=11)
    tr, out = traced(tokens, True)
    if not torch.equal(out, subject.run(tokens)):
        raise Failed("the output is another one while it is traced")
    unnamed = [value for value in tr.values if _is_unnamed(value)]
    if unnamed:  # sizes that depend on the data, such as the tokens sent to an expert, have no name
        others = [traced(subject.tokens(length=11), False)[0].values for _ in range(8)]
        unnamed = [value for value in unnamed if all(_same_shape(value, values) for values in others)]
    notes = "".join(f"; {note}" for note in tr.notes[:2])
    if unnamed:
        shapes = sorted({f"({', '.join(value.symbols)})" for value in unnamed})
        raise Failed(f"the tracer cannot name {', '.join(shapes[:4])}{notes}")
    return f"{len(tr.values)} tensors, all dimensions named{notes}"


def _is_unnamed(value) -> bool:
    """Whether a size of a traced tensor is a mere number and yet, as it changes with the sizes, none in the code."""
    for symbol, runs in zip(value.symbols or (), value.runs or ()):
        known = [size for size in runs if size is not None]
        if symbol.isdigit() and (len(set(known)) > 1 or (len(known) == 1 and known[0] > 4)):
            return True
    return False


def _same_shape(value, values: list) -> bool:
    return value.index < len(values) and values[value.index].shape == value.shape


@check("learns")
def check_learns(subject: Subject) -> str:
    """From its own initial weights, a model with this block learns one batch by heart: its loss falls by half."""
    torch.manual_seed(0)
    model, tokens = GPT(subject.cfg), subject.tokens(rows=2, length=min(24, subject.length))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = None
    for step in range(1, 101):
        ctx = model.context(tokens[:, :-1])
        ctx.memory = subject.memory[:2].float()
        loss = F.cross_entropy(model(tokens[:, :-1], ctx).flatten(0, 1), tokens[:, 1:].flatten())
        first = loss.item() if first is None else first
        if loss.item() < first / 2:
            return f"loss {first:.2f} to {loss.item():.2f} in {step} steps"
        optimizer.zero_grad()
        (loss + sum(ctx.aux.values())).backward()
        optimizer.step()
    raise Failed(f"loss {first:.2f} to {loss.item():.2f} in {step} steps, and should have halved")


@check("time")
def check_time(subject: Subject) -> str:
    """Forward and backward over 256 tokens, as a multiple of what attention takes."""
    from train import keep_memory

    keep_memory()  # as in training: what takes much memory would else be timed by how fast it is handed out
    # Wider than the other checks: at their width it is the number of calls that takes the time, not the work.
    cfg = subject.cfg.replace(max_seq_len=max(TIMED, subject.cfg.max_seq_len), dim=64, head_dim=16)
    both = subject.fresh(cfg), RecipeLayer(cfg, parse("MQA"))
    best = [math.inf, math.inf]
    for turn in range(16):  # taking turns, so that a busy moment of the machine hits both; the first one warms up
        for i, layer in enumerate(both):
            seconds = _seconds(layer, cfg)
            best[i] = min(best[i], seconds) if turn else math.inf
        if turn >= 3 and best[0] < MAX_TIME * best[1]:
            break
    ratio = best[0] / best[1]
    if ratio > MAX_TIME and subject.single:
        raise Failed(f"{ratio:.1f} times as long as MQA at T={TIMED}; at most {MAX_TIME:.0f} times is allowed")
    return f"{ratio:.1f} times MQA's {1000 * best[1]:.1f} ms at T={TIMED}"


def _seconds(layer: nn.Module, cfg: ModelConfig) -> float:
    x = torch.randn(4, TIMED, cfg.dim, requires_grad=True)
    ctx = make_context(cfg, x)
    ctx.memory = torch.randn(4, 7, cfg.dim)
    start = time.perf_counter()
    layer(x, ctx).sum().backward()
    return time.perf_counter() - start


# ---------------------------------------------------------------- all of them


def check_block(block: str | type, cfg: ModelConfig | None = None) -> Report:
    """All checks of one block: its name, its class (registered or not), or a recipe. Takes some seconds.

    cfg: the sizes to check it at; its recipe is not used.
    Raises: ValueError if there is no such block, or if it refuses the sizes of `cfg`.
    """
    with torch.random.fork_rng(devices=[]), _registered(block) as name:
        torch.manual_seed(0)
        alone = _alone(name) if re.fullmatch(r"\w+", name) else None
        recipe = f"Norm->{alone}#twice->+" if alone else name
        subject = Subject(recipe, alone, cfg or SMALL)
        return Report(name, tuple(_result(title, function, subject) for title, function in CHECKS.items()))


@contextmanager
def _registered(block: str | type) -> Iterator[str]:
    """The name of a block; a class without one is registered under its own for as long as it is checked."""
    if isinstance(block, str):
        yield block
        return
    known = [name for name, cls in LAYERS.items() if cls is block]
    if known:
        yield known[0]
        return
    hidden = LAYERS.get(block.__name__)
    LAYERS[block.__name__] = block
    try:
        yield block.__name__
    finally:
        if hidden is None:
            del LAYERS[block.__name__]
        else:
            LAYERS[block.__name__] = hidden


def _alone(name: str) -> str:
    """The recipe of one block; a wrapper gets an MLP to wrap."""
    cls = find_block(name)
    return f"{name}{{Norm->MLP->+}}" if "inner" in inspect.signature(cls.__init__).parameters else name


def _result(title: str, function: Callable[[Subject], str], subject: Subject) -> Result:
    torch.manual_seed(0)  # so that no check depends on those before it
    try:
        return Result(title, True, function(subject))
    except Skipped as reason:
        return Result(title, None, str(reason))
    except Failed as failure:
        return Result(title, False, str(failure))
    except Exception as error:  # the block's own: it belongs into the table, as the reason why the check failed
        return Result(title, False, f"{type(error).__name__}: {error}")
