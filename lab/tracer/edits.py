"""The usual slips with shapes, undone: which small changes of a statement are worth trying.

Each change is one replacement in the source, with a cost: the smaller, the likelier. The numbers order the search and
mean nothing else.
"""

from __future__ import annotations

import ast
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch

from lab.tracer import probe as probing
from lab.tracer.failure import climb, is_foreign
from lab.tracer.record import Op
from lab.tracer.source import expression_at, source_of
from lab.tracer.values import Value, tensors_in


@dataclass(frozen=True)
class Edit:
    """One replacement: from (line, column) up to (end_line, end_column), columns in utf-8 bytes."""

    line: int
    column: int
    end_line: int
    end_column: int
    text: str
    cost: float
    why: str
    shown: tuple[str, str]  # what stands there, and what should


class Scenery:
    """What the names in a function stood for when the call was made: sizes and tensors, function by function."""

    def __init__(self, trace: Any, call: Any):
        self.sizes: dict[CodeType, dict[str, int]] = {}  # text -> value: `T`, `self.heads`, `cfg.dim`
        self.tensors: dict[CodeType, dict[str, tuple]] = {}  # text -> shape
        self.values: dict[tuple, Value] = {}  # (code, span) -> what the expression there gave
        for item in call.walk():
            own = climb(item)
            node = expression_at(own.parent.code, own.lasti) if own.parent is not None else None
            outputs = item.outputs() if isinstance(item, Op) else list(tensors_in(item.output))
            if node is not None and len(outputs) == 1 and (own is item or not isinstance(own, Op)):
                self.values[own.parent.code, span_of(node)] = outputs[0]
        self._look(trace, call.replay)

    def _look(self, trace: Any, replay: Any) -> None:
        """Makes the call, and builds the module, once more, and reads the local names where each function ends."""

        def profile(frame: Any, event: str, arg: Any) -> None:
            if event == "return" and not is_foreign(frame.f_code.co_filename):
                self._note(frame)

        sizes = probing.sizes_of(trace.names) if trace.names is not None else {}
        method = replay.module if replay.function == "forward" else getattr(replay.module, replay.function)
        before = sys.getprofile()
        sys.setprofile(profile)
        try:
            with torch.random.fork_rng(devices=[]):
                for attempt in (
                    lambda: method(*probing.duplicate(replay.args, {}), **probing.duplicate(replay.kwargs, {})),
                    lambda: probing.rebuilt(replay.module, trace.names, trace.names, (sizes, sizes)),
                ):
                    try:
                        attempt()
                    except Exception:  # it fails, that is why we are here
                        continue
        finally:
            sys.setprofile(before)

    def _note(self, frame: Any) -> None:
        sizes = self.sizes.setdefault(frame.f_code, {})
        tensors = self.tensors.setdefault(frame.f_code, {})
        for name, value in frame.f_locals.items():
            if name.startswith("."):
                continue
            if isinstance(value, int) and not isinstance(value, bool):
                sizes[name] = int(value)
            elif isinstance(value, torch.Tensor):
                tensors[name] = tuple(value.shape)
            elif isinstance(value, torch.nn.Module) and name == "self":
                sizes |= {f"self.{n}": int(v) for n, v in vars(value).items() if type(v) is int and n[0] != "_"}
                own = getattr(value, "cfg", None)
                sizes |= _config_sizes("self.cfg", own)
                for source in (value._parameters, value._buffers):
                    tensors |= {f"self.{n}": tuple(t.shape) for n, t in source.items() if t is not None}
            elif name in ("cfg", "config", "args"):
                sizes |= _config_sizes(name, value)

    def shape_of(self, code: CodeType, node: ast.expr, text: str) -> tuple | None:
        """The shape of the tensor that an expression gave; None if it gave none, or was not reached."""
        value = self.values.get((code, span_of(node)))
        return value.shape if value is not None else self.tensors.get(code, {}).get(text)


def _config_sizes(name: str, config: Any) -> dict[str, int]:
    try:
        letters = probing.sizes_of(config) if config is not None and not isinstance(config, dict) else {}
    except ValueError:
        return {}
    from lab.tracer.sizes import field_of

    return {f"{name}.{field_of(config, letter)}": size for letter, size in letters.items()}


def span_of(node: ast.AST) -> tuple[int, int, int, int]:
    return node.lineno, node.end_lineno, node.col_offset, node.end_col_offset


# --------------------------------------------------------------------------------------------------------------------


class _Editor:
    """Yields the edits of one statement."""

    def __init__(self, code: CodeType, statement: ast.stmt, scenery: Scenery):
        self.code, self.statement, self.scenery = code, statement, scenery
        self.source = source_of(code)
        self.sizes = scenery.sizes.get(code, {})

    def text(self, node: ast.AST) -> str:
        return self.source.text(node)

    def replace(self, node: ast.AST, text: str, cost: float, why: str) -> Edit:
        return Edit(*_ends(node), text, cost, why, (self.text(node), text))

    def shape(self, node: ast.expr) -> tuple | None:
        return self.scenery.shape_of(self.code, node, self.text(node))

    def all(self) -> Iterator[Edit]:
        header = isinstance(self.statement, ast.For | ast.If | ast.While | ast.With)
        roots = (
            [c for c in ast.iter_child_nodes(self.statement) if isinstance(c, ast.expr)] if header else [self.statement]
        )
        for node in itertools.chain.from_iterable(ast.walk(root) for root in roots):
            if isinstance(node, ast.Call):
                yield from self.calls(node)
            if isinstance(node, ast.Subscript):
                yield from self.subscripts(node)
            if isinstance(node, ast.BinOp):
                yield from self.products(node)
            if isinstance(node, ast.Tuple) and isinstance(getattr(node, "ctx", None), ast.Load):
                yield from self.swaps(node.elts, 1.05)
            if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
                yield from self.names(node)
            if isinstance(node, ast.expr) and not isinstance(getattr(node, "ctx", None), ast.Store):
                yield from self.wrappers(node)

    # ---- sizes

    def names(self, node: ast.expr) -> Iterator[Edit]:
        """Another size in the place of this one."""
        text = self.text(node)
        if text not in self.sizes:
            return
        prefix = text.rpartition(".")[0]
        seen = set()
        for other, value in sorted(
            self.sizes.items(), key=lambda pair: (pair[0].rpartition(".")[0] != prefix, "." in pair[0])
        ):
            if value != self.sizes[text] and value not in seen:
                seen.add(value)
                yield self.replace(node, other, 1.0 + 0.03 * (other.rpartition(".")[0] != prefix), "another size")
        for factor in (2, 3):
            yield self.replace(node, f"{factor} * {text}", 1.7, "a factor is missing")

    def products(self, node: ast.BinOp) -> Iterator[Edit]:
        left, right = self.text(node.left), self.text(node.right)
        if isinstance(node.op, ast.MatMult):
            yield self.replace(node, f"{right} @ {left}", 1.2, "exchange the two sides of the product")
        if isinstance(node.op, ast.Mult) and left in self.sizes and right in self.sizes:
            yield self.replace(node, left, 1.4, "a factor too many")
            yield self.replace(node, right, 1.4, "a factor too many")
        if isinstance(node.op, ast.Add | ast.Sub) and isinstance(node.right, ast.Constant):
            yield self.replace(node, left, 0.95, "off by one")

    # ---- calls

    def calls(self, node: ast.Call) -> Iterator[Edit]:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        yield from self.swaps(node.args, 1.0 if name in SHAPING else 1.3)
        dims = [*node.args, *(k.value for k in node.keywords if k.arg and "dim" in k.arg)]
        for place in dims:
            others = {self.text(other) for other in dims if other is not place}
            for edit in self.numbers(place, name):
                if name not in ("transpose", "swapaxes", "permute") or edit.text not in others:
                    yield edit
        given = {keyword.arg for keyword in node.keywords}
        for wanted, keyword in KEYWORDS.items():
            if name in wanted and keyword.split("=")[0] not in given and not _gives(node, keyword):
                yield self.inserted(node, keyword)
        if name == "view":
            yield Edit(*_attribute_ends(node.func), "reshape", 1.0, "the memory is not contiguous", ("view", "reshape"))
        if name == "einsum" and node.args and isinstance(node.args[0], ast.Constant):
            yield from self.einsum(node.args[0])
        if isinstance(node.func, ast.Attribute) and name in DROPPABLE and self.shape(node.func.value) is not None:
            old = self.text(node)
            base = self.text(node.func.value)
            start = (node.func.value.end_lineno, node.func.value.end_col_offset)
            yield Edit(*start, node.end_lineno, node.end_col_offset, "", 1.5, f"without {name}", (old, base))
        if isinstance(node.func, ast.Attribute) and name in ("matmul", "bmm") and len(node.args) == 1:
            owner = self.text(node.func.value)
            if owner not in ("torch",):
                other = f"{self.text(node.args[0])}.{name}({owner})"
                yield self.replace(node, other, 1.2, "exchange the two sides of the product")

    def inserted(self, node: ast.Call, keyword: str) -> Edit:
        old = self.text(node)
        new = old[:-1].rstrip().rstrip(",") + f", {keyword})"
        end = (node.end_lineno, node.end_col_offset - 1)
        comma = "" if not node.args and not node.keywords else ", "
        if self.source.lines[node.end_lineno - 1].encode()[: end[1]].rstrip().endswith((b",", b"(")):
            comma = ""
        return Edit(*end, *end, f"{comma}{keyword}", 0.95, f"add {keyword}", (old, new))

    def swaps(self, parts: list[ast.expr], cost: float) -> Iterator[Edit]:
        for a, b in itertools.combinations(parts, 2):
            if self.text(a) == self.text(b) or a.end_lineno != b.lineno or isinstance(a, ast.Starred | ast.Slice):
                continue
            line = self.source.lines[a.end_lineno - 1].encode()
            between = line[a.end_col_offset : b.col_offset].decode()
            text = self.text(b) + between + self.text(a)
            old = self.text(a) + between + self.text(b)
            far = 0.02 * (parts.index(b) - parts.index(a) - 1)
            yield Edit(
                a.lineno, a.col_offset, b.end_lineno, b.end_col_offset, text, cost + far, "exchange", (old, text)
            )

    def numbers(self, node: ast.expr, name: str) -> Iterator[Edit]:
        """Another dimension number."""
        number = _integer(node)
        if number is None:
            return
        for step, cost in ((-1, 0.97), (1, 0.97), (-2, 1.3), (2, 1.3), (-3, 1.4), (3, 1.4)):
            if (number + step < 0) == (number < 0) or abs(step) == 1:
                extra = 0.1 * ((number + step < 0) != (number < 0)) + 0.2 * (name not in SHAPING | REDUCING)
                yield self.replace(node, str(number + step), cost + extra, "another dimension")

    def einsum(self, node: ast.Constant) -> Iterator[Edit]:
        spec = node.value
        letters = sorted(set(filter(str.isalpha, spec)))
        quote = self.text(node)[0]
        found = []
        for i, letter in enumerate(spec):
            if not letter.isalpha():
                continue
            found += [(1.0, spec[:i] + other + spec[i + 1 :]) for other in letters if other != letter]
            if spec[i + 1 : i + 2].isalpha():
                found.append((0.97, spec[:i] + spec[i + 1] + letter + spec[i + 2 :]))
        for cost, text in dict.fromkeys(found):
            yield self.replace(node, f"{quote}{text}{quote}", cost, "another index")

    # ---- indexing

    def subscripts(self, node: ast.Subscript) -> Iterator[Edit]:
        if isinstance(node.value, ast.Attribute) and node.value.attr == "shape":
            yield from self.numbers(node.slice, "shape")
            return
        parts = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
        for part in parts:
            if isinstance(part, ast.Slice):
                yield from self.bounds(part)
        if not any(isinstance(part, ast.Slice) for part in parts) or not self.shape(node.value):
            return
        texts = [self.text(part) or ":" for part in parts]
        without = [text for text in texts if text != "None"]
        if "None" in texts:
            for order in sorted(set(itertools.permutations(texts))):
                rest = [text for text in order if text != "None"]
                if list(order) != texts and rest == without:
                    yield self.replace(node.slice, ", ".join(order), 1.05, "another place for the new dimension")
        sliced = [text for text in texts if text not in (":", "None")]
        if sliced:
            yield self.replace(node.slice, ", ".join([*texts, sliced[-1]]), 1.1, "slice the next dimension too")
            yield self.replace(node.slice, ", ".join([":", *texts]), 1.15, "slice the dimension behind")
            yield self.replace(node.slice, ", ".join(["...", *texts]), 1.15, "slice the last dimensions")
        for i in range(len(texts) + 1):
            if len(texts) < 5 and "..." not in texts:
                more = [*texts[:i], "None", *texts[i:]]
                idle = all(text == ":" for text in texts)  # an index that does nothing: something was forgotten
                yield self.replace(
                    node.slice, ", ".join(more), 0.9 if idle else 1.3, "a dimension of size 1 is missing"
                )
        bound = [text for text in texts if text in (":",)]
        if bound and sliced:
            yield self.replace(node.slice, ", ".join(sliced[0] if t == ":" else t for t in texts), 1.05, "slice both")

    def bounds(self, part: ast.Slice) -> Iterator[Edit]:
        if part.lower is None and part.upper is None:
            for name in self._lengths():
                yield Edit(*_ends(part), f":{name}", 1.1, "slice to length", (":", f":{name}"))
            return
        for bound in filter(None, (part.lower, part.upper)):
            text, number = self.text(bound), _integer(bound)
            for step in (-1, 1):
                new = str(number + step) if number is not None else f"{text} {'+' if step > 0 else '-'} 1"
                yield self.replace(bound, new, 1.05, "off by one")

    def _lengths(self) -> list[str]:
        return [name for name in self.sizes if "." not in name][:6]

    # ---- something around a tensor

    def wrappers(self, node: ast.expr) -> Iterator[Edit]:
        shape = self.shape(node)
        if shape is None or isinstance(node, ast.Constant):
            return
        base = self.text(node)
        wrapped = f"({base})" if isinstance(node, ast.BinOp | ast.UnaryOp | ast.Compare | ast.BoolOp) else base
        parent = getattr(node, "parent", None)
        if isinstance(parent, ast.Call) and parent.func is node:
            return
        if isinstance(parent, ast.Attribute) and parent.attr in ("shape", "size", "dtype", "device", "ndim"):
            return  # only asked for its size: another shape would be a trick, not a remedy
        for suffix, cost, why in self.suffixes(shape, isinstance(parent, ast.Attribute)):
            end = (node.end_lineno, node.end_col_offset)
            new = wrapped + suffix
            if wrapped == base:
                yield Edit(*end, *end, suffix, cost, why, (base, new))
            else:
                yield self.replace(node, new, cost, why)

    def suffixes(self, shape: tuple, inside_chain: bool) -> Iterator[tuple[str, float, str]]:
        n = len(shape)
        later = 0.05 * inside_chain
        if n >= 2:
            pairs = list(itertools.combinations(range(n), 2))
            pairs.sort(key=lambda pair: (pair != (1, 2), pair != (n - 2, n - 1), pair))
            for i, (a, b) in enumerate(pairs):
                text = f".transpose({a}, {b})" if (a, b) != (n - 2, n - 1) or n < 4 else ".transpose(-2, -1)"
                yield text, 1.6 + later + 0.04 * i, "exchange two dimensions"
            for first in range(n - 1):
                yield f".flatten({first}, {first + 1})", 1.75 + later, "merge two dimensions"
        for dim in range(n + 1):
            yield f".unsqueeze({dim})", 1.7 + later, "a dimension of size 1 is missing"
        for dim in range(n):
            if shape[dim] == 1:
                yield f".squeeze({dim})", 1.7 + later, "a dimension of size 1 too many"
        if n in (3, 4, 5):
            for order in itertools.permutations(range(n)):
                moved = sum(i != d for i, d in enumerate(order))
                if moved > 2:
                    yield f".permute{order}", 2.0 + later + 0.1 * (n == 5), "another order of dimensions"
        yield ".contiguous()", 1.45 + later, "lay it out in memory first"
        for method in ("long", "bool", "float"):
            yield f".{method}()", 1.5 + later, "another type of numbers"
        yield from self.cuts(shape, later)
        yield from self.repeats(shape, later)

    def cuts(self, shape: tuple, later: float) -> Iterator[tuple[str, float, str]]:
        """Slices to a length that is at hand."""
        lengths = [(name, size) for name, size in self.sizes.items() if "." not in name]
        lengths += [
            (f"{name}.shape[1]", s[1])
            for name, s in self.scenery.tensors.get(self.code, {}).items()
            if len(s) == 3 and "." not in name
        ][:1]
        for name, size in lengths:
            for dim, have in enumerate(shape):
                if have > size:
                    colons = ", ".join([":"] * dim + [f":{name}"])
                    yield f"[{colons}]", 1.5 + later, "slice to length"
            if len(shape) >= 2 and shape[-1] > size and shape[-2] > size:
                dots = "" if len(shape) == 2 else "..., "
                yield f"[{dots}:{name}, :{name}]", 1.4 + later, "slice to length"

    def repeats(self, shape: tuple, later: float) -> Iterator[tuple[str, float, str]]:
        """Key/value heads repeated for their query heads."""
        if len(shape) < 3:
            return
        for (many, m), (few, f) in itertools.permutations(self.sizes.items(), 2):
            if f > 1 and m > f and m % f == 0 and f in shape[1:-1]:
                dim = shape.index(f, 1)
                yield f".repeat_interleave({many} // {few}, dim={dim})", 1.65 + later, "repeat the key/value heads"


SHAPING = {
    "transpose", "permute", "view", "reshape", "unflatten", "expand", "flatten", "movedim", "unsqueeze", "squeeze",
    "Linear", "Embedding", "randn", "zeros", "ones", "empty", "full", "chunk", "split", "cat", "stack", "unbind",
    "repeat_interleave", "matmul", "bmm", "new_zeros", "size", "shape", "repeat", "tile", "swapaxes", "Conv1d",
    "narrow",
    "select", "roll", "rand",
}  # fmt: skip
REDUCING = {
    "mean", "sum", "softmax", "cumsum", "amax", "amin", "var", "std", "norm", "log_softmax", "argmax", "logsumexp",
    "prod", "max", "min", "cumprod", "topk", "sort", "gather", "scatter", "index_select",
}  # fmt: skip
DROPPABLE = {
    "transpose", "permute", "unsqueeze", "squeeze", "flatten", "contiguous", "repeat_interleave", "movedim", "t",
    "float", "long", "bool", "int", "expand", "unflatten",
}  # fmt: skip
KEYWORDS = {
    frozenset({"mean", "sum", "amax", "amin", "var", "std", "norm", "logsumexp", "prod", "median"}): "keepdim=True",
    frozenset({"scaled_dot_product_attention"}): "enable_gqa=True",
}


def _gives(node: ast.Call, keyword: str) -> bool:
    """A reduction without a dimension has none to keep."""
    return keyword.startswith("keepdim") and not node.args and not any(k.arg == "dim" for k in node.keywords)


def _ends(node: ast.AST) -> tuple[int, int, int, int]:
    return node.lineno, node.col_offset, node.end_lineno, node.end_col_offset


def _attribute_ends(node: ast.Attribute) -> tuple[int, int, int, int]:
    return node.end_lineno, node.end_col_offset - len(node.attr.encode()), node.end_lineno, node.end_col_offset


def _integer(node: ast.expr) -> int | None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _integer(node.operand)
        return None if inner is None else -inner
    return node.value if isinstance(node, ast.Constant) and type(node.value) is int else None


def edits_of(code: CodeType, statement: ast.stmt, scenery: Scenery) -> Iterator[Edit]:
    """The changes of one statement that are worth trying, each replaced text once."""
    seen = set()
    for edit in _Editor(code, statement, scenery).all():
        key = (edit.line, edit.column, edit.end_line, edit.end_column, edit.text)
        if key not in seen and edit.shown[0] != edit.shown[1]:
            seen.add(key)
            yield edit
