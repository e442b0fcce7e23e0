"""Wrong modules made from right ones: one expression on one line is changed, the way people get it wrong.

`candidates(source)` lists every change that the operators below can make to a source text. `sample(half, count)` picks
`count` of those that build but raise in `forward`, spread evenly over operators and modules; always the same ones.
"""

import ast
import builtins
import functools
import itertools
import random
import sys
import tempfile
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from config import ModelConfig
from mutants.inputs import CFG, STANDARD

FOLDER = Path(__file__).resolve().parent
HALVES = ("seen", "unseen")
SEED = 3  # of the sample
Edit = tuple[ast.expr | tuple[int, int, int], str]  # what is replaced (a node, or line and columns) and by which text


@dataclass(frozen=True)
class Mutant:
    """A wrong module. `source` is the whole file, which differs from the right one in `line` only."""

    operator: str
    module: str  # the class to build and call
    line: int
    right: str  # the line's text
    wrong: str
    source: str


# ------------------------------------------------------------------------------------------------- names of sizes

ROLES = {  # only names that stand for sizes, never for tensors, in either file
    "B": {"B", "batch", "bsz", "nb"},
    "T": {"T", "length", "seq_len", "steps"},
    "S": {"S", "max_seq_len"},
    "D": {"D", "dim"},
    "H": {"H", "num_q_heads", "n_head", "heads", "num_heads", "nh", "n_q"},
    "G": {"G", "num_kv_heads"},
    "K": {"K", "head_dim", "d_head", "width", "hd"},
    "F": {"F_", "mlp_hidden", "d_ff"},
    "V": {"V", "vocab_size"},
    "E": {"E", "num_experts", "n_experts"},
    "R": {"R", "rank", "inner"},
}
ROLE_OF = {name: role for role, names in ROLES.items() for name in names}
CONFUSED = ("HG", "HK", "KD", "FD", "TS", "VD", "BT", "ED", "RD", "RK")  # pairs that people mix up


def identifier(node: ast.expr) -> str | None:
    """`H` for H, self.H and cfg.H; None where the name is not that of a size."""
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None
    return name if name in ROLE_OF else None


def sizes_in_scope(function: ast.FunctionDef, owner: ast.AST) -> list[str]:
    """Every size that may be written in a function: local names, `self.X` of its class, fields of a config at hand."""
    inside, around = list(ast.walk(function)), list(ast.walk(owner))
    local = [n.arg for n in inside if isinstance(n, ast.arg)]
    local += [n.id for n in inside if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    own = [ast.unparse(n) for n in around if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "self"]
    sizes = [name for name in local if name in ROLE_OF] + [name for name in own if name[5:] in ROLE_OF]
    configs = {ast.unparse(n.value) for n in inside if isinstance(n, ast.Attribute)} & {"cfg", "self.cfg", "config"}
    names = [f.name for f in fields(ModelConfig) if f.name in ROLE_OF]
    sizes += [f"{config}.{name}" for config in sorted(configs) for name in names]
    return sorted(set(sizes))


def size_replaced(node: ast.AST, scope: list[str]) -> Iterator[Edit]:
    if not isinstance(node, ast.Name | ast.Attribute) or not isinstance(node.ctx, ast.Load) or not identifier(node):
        return
    text, role = ast.unparse(node), ROLE_OF[identifier(node)]
    prefix = text.rpartition(".")[0]
    for pair in CONFUSED:
        if role not in pair:
            continue
        others = [name for name in scope if ROLE_OF[name.rpartition(".")[2]] == pair.replace(role, "")]
        others.sort(key=lambda name: (name.rpartition(".")[0] != prefix, "." in name))  # if possible, written alike
        if others:
            yield node, others[0]


# ---------------------------------------------------------------------------------------------------- the operators


def called(node: ast.AST) -> tuple[str, list[ast.expr], bool]:
    """Name, arguments (without the tensor worked on), whether it is written as a method; ("", [], False) if no call."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not hasattr(builtins, node.func.id):
        return node.func.id, node.args[1:], False
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return "", [], False
    method = ast.unparse(node.func.value) not in ("torch", "F", "nn", "nn.functional")
    return node.func.attr, node.args if method else node.args[1:], method


def swaps(parts: list[ast.expr]) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Pairs of expressions that stand on one line and are not written alike."""
    for a, b in itertools.combinations(parts, 2):
        if a.lineno == b.end_lineno and ast.unparse(a) != ast.unparse(b):
            yield a, b


def swapped(a: ast.expr, b: ast.expr, line: bytes) -> Edit:
    between = line[a.end_col_offset : b.col_offset].decode()
    return (a.lineno, a.col_offset, b.end_col_offset), ast.unparse(b) + between + ast.unparse(a)


RESHAPES = {"permute", "view", "reshape", "unflatten", "expand", "repeat", "movedim", "tile"}
CREATES = {"empty", "randn", "rand", "zeros", "ones", "full", "new_zeros", "new_ones", "new_full"}


def dims_swapped(node: ast.AST, line: bytes) -> Iterator[Edit]:
    name, parts, _ = called(node)
    if name in CREATES:
        parts = node.args
    tuples = [part.elts for part in parts if isinstance(part, ast.Tuple)]
    if name in CREATES | RESHAPES:
        for a, b in swaps(tuples[0] if tuples else parts):
            yield swapped(a, b, line)
    for a, b in itertools.pairwise(inserted(node)):  # mask[:, None] -> mask[None, :]
        if a.lineno == b.end_lineno and ast.unparse(a) != ast.unparse(b):
            yield swapped(a, b, line)


def inserted(node: ast.AST) -> list[ast.expr]:
    """The parts of an index that inserts a dimension: [:, None] -> `:` and `None`; [] for any other node."""
    if not isinstance(node, ast.Subscript) or not isinstance(node.slice, ast.Tuple):
        return []
    parts = node.slice.elts
    return parts if any(isinstance(part, ast.Constant) and part.value is None for part in parts) else []


def layer_sizes_swapped(node: ast.AST, line: bytes) -> Iterator[Edit]:
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("nn.Linear", "nn.Embedding", "nn.Conv1d"):
        for a, b in swaps(node.args[:2]):
            yield swapped(a, b, line)


DROPPED = {"transpose", "unsqueeze", "squeeze", "flatten", "permute", "movedim", "contiguous", "repeat_interleave"}
DTYPES = {"long", "float", "bool", "int", "to", "type_as"}


def tail(node: ast.Call | ast.Attribute, attribute: ast.Attribute) -> tuple[int, int, int]:
    """Where `.name(...)` stands."""
    return node.end_lineno, attribute.end_col_offset - len(attribute.attr) - 1, node.end_col_offset


def call_dropped(node: ast.AST, names: set[str]) -> Iterator[Edit]:
    name, _, method = called(node)
    if name in names and method and node.func.end_lineno == node.end_lineno:
        yield tail(node, node.func), ""
    elif name in names and not method and node.lineno == node.end_lineno:
        yield node, ast.unparse(node.args[0])


def transposition_dropped(node: ast.AST) -> Iterator[Edit]:
    if isinstance(node, ast.Attribute) and node.attr in ("mT", "T") and ast.unparse(node.value) != "self":
        yield tail(node, node), ""
    for part in inserted(node):  # x[:, None]: an unsqueeze by another name
        if isinstance(part, ast.Constant) and part.value is None:
            yield node.slice, ", ".join(ast.unparse(other) for other in node.slice.elts if other is not part)
    yield from call_dropped(node, DROPPED)


def dtype_dropped(node: ast.AST) -> Iterator[Edit]:
    yield from call_dropped(node, DTYPES)
    yield from keyword_dropped(node, "dtype")


def keyword_dropped(node: ast.AST, name: str) -> Iterator[Edit]:
    if not isinstance(node, ast.Call):
        return
    parts = sorted([*node.args, *(k.value for k in node.keywords)], key=lambda part: (part.lineno, part.col_offset))
    for keyword in node.keywords:
        before = [part for part in parts if part.end_lineno == keyword.lineno and part.col_offset < keyword.col_offset]
        if keyword.arg == name:
            start = before[-1].end_col_offset if before else keyword.col_offset
            yield (keyword.end_lineno, start, keyword.end_col_offset), ""


DIM_PLACES = {  # where, among the arguments after the tensor, a dimension is named
    "flatten": (0, 1), "chunk": (1,), "split": (1,), "unsqueeze": (0,), "squeeze": (0,), "mean": (0,), "sum": (0,),
    "softmax": (0,), "cumsum": (0,), "unbind": (0,), "transpose": (0, 1), "repeat_interleave": (1,), "unflatten": (0,),
    "stack": (0,), "cat": (0,), "size": (0,), "amax": (0,), "movedim": (0, 1), "roll": (1,), "var": (0,), "norm": (1,),
}  # fmt: skip
DIM_WORDS = {"dim", "start_dim", "end_dim"}


def dim_changed(node: ast.AST) -> Iterator[Edit]:
    name, parts, _ = called(node)
    places = [parts[i] for i in DIM_PLACES.get(name, ()) if i < len(parts)]
    places += [k.value for k in node.keywords if k.arg in DIM_WORDS] if isinstance(node, ast.Call) else []
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "shape":
        places.append(node.slice)
    for place in places:
        number = integer(place)
        for other in () if number is None else (number - 1, number + 1):
            if (other < 0) == (number < 0):
                yield place, str(other)


def integer(node: ast.expr) -> int | None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = integer(node.operand)
        return None if inner is None else -inner
    return node.value if isinstance(node, ast.Constant) and type(node.value) is int else None


def shifted(bound: ast.expr, by: int) -> str:
    number = integer(bound)
    if number is not None:
        return str(number + by)
    return f"{ast.unparse(bound)} {'+' if by > 0 else '-'} {abs(by)}"


MASKS = ("mask", "causal", "future", "allowed", "filled", "bias", "visible")


def slices(node: ast.AST, of_mask: bool) -> list[ast.Slice]:
    if not isinstance(node, ast.Subscript):
        return []
    base = ast.unparse(node.value).lower()
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    found = [part for part in parts if isinstance(part, ast.Slice) and (part.lower or part.upper)]
    return found if any(word in base for word in MASKS) == of_mask else []


def slice_shifted(node: ast.AST, of_mask: bool = False) -> Iterator[Edit]:
    for part in slices(node, of_mask):
        for bound in filter(None, (part.lower, part.upper)):
            yield bound, shifted(bound, -1)
            yield bound, shifted(bound, +1)


def mask_missliced(node: ast.AST) -> Iterator[Edit]:
    cut = slices(node, of_mask=True)
    if not cut:
        return
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    for part in cut:
        yield part, ":"  # [:, :T]
        rest = [ast.unparse(other) for other in parts if other is not part]
        if rest:
            yield node.slice, ", ".join(rest)  # [:T]
    yield (node.end_lineno, node.value.end_col_offset, node.end_col_offset), ""
    yield from slice_shifted(node, of_mask=True)


def operands_swapped(node: ast.AST, line: bytes) -> Iterator[Edit]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult) and node.lineno == node.end_lineno:
        at = line.index(b"@", node.left.end_col_offset)
        left, right = line[node.col_offset : at].strip(), line[at + 1 : node.end_col_offset].strip()
        yield node, f"{right.decode()} @ {left.decode()}"
    name, _, method = called(node)
    if name in ("matmul", "bmm", "einsum") and not method:
        for a, b in swaps(node.args[-2:]):
            yield swapped(a, b, line)
    if name in ("matmul", "bmm") and method and isinstance(node.func.value, ast.Name):
        yield node, f"{ast.unparse(node.args[0])}.{name}({node.func.value.id})"


def einsum_changed(node: ast.AST) -> Iterator[Edit]:
    name, _, _ = called(node)
    if name != "einsum" or not isinstance(node.args[0], ast.Constant):
        return
    spec = node.args[0].value
    letters = sorted(set(filter(str.isalpha, spec)))
    for i, letter in enumerate(spec):
        if letter.isalpha():
            other = letters[(letters.index(letter) + 1) % len(letters)]
            yield node.args[0], f'"{spec[:i]}{other}{spec[i + 1 :]}"'
            if spec[i + 1 : i + 2].isalpha():
                yield node.args[0], f'"{spec[:i]}{spec[i + 1]}{letter}{spec[i + 2 :]}"'


OPERATORS: dict[str, Callable[[ast.AST, bytes, list[str]], Iterator[Edit]]] = {
    "dims swapped": lambda node, line, scope: dims_swapped(node, line),
    "call dropped": lambda node, line, scope: transposition_dropped(node),
    "dim argument changed": lambda node, line, scope: dim_changed(node),
    "size replaced": lambda node, line, scope: size_replaced(node, scope),
    "in and out swapped": lambda node, line, scope: layer_sizes_swapped(node, line),
    "mask mis-sliced": lambda node, line, scope: mask_missliced(node),
    "keepdim dropped": lambda node, line, scope: keyword_dropped(node, "keepdim"),
    "operands swapped": lambda node, line, scope: operands_swapped(node, line),
    "enable_gqa dropped": lambda node, line, scope: keyword_dropped(node, "enable_gqa"),
    "slice off by one": lambda node, line, scope: slice_shifted(node),
    "dtype dropped": lambda node, line, scope: dtype_dropped(node),
    "einsum letter changed": lambda node, line, scope: einsum_changed(node),
}

# ------------------------------------------------------------------------------------------------------- candidates


def candidates(source: str) -> list[Mutant]:
    """Every mutant of a file, whether it raises or not, each changed source once, in the order of the text."""
    tree, lines, found = ast.parse(source), source.splitlines(), {}
    users = users_of(tree)
    for owner in tree.body:
        for function in [n for n in ast.walk(owner) if isinstance(n, ast.FunctionDef) and owner.name in users]:
            scope = sizes_in_scope(function, owner)
            for statement in function.body:
                for node, (operator, change) in itertools.product(ast.walk(statement), OPERATORS.items()):
                    if not hasattr(node, "lineno"):
                        continue
                    last_line = lines[node.end_lineno - 1].encode()
                    for edit in change(node, last_line, scope):
                        mutant = apply(edit, operator, users[owner.name], source)
                        if mutant is not None:
                            found.setdefault(mutant.source, mutant)
    return sorted(found.values(), key=lambda mutant: (mutant.line, mutant.operator, mutant.wrong))


def users_of(tree: ast.Module) -> dict[str, str]:
    """Top-level name -> the module of MODULES that is to be called when a line of it is changed.

    That is the class itself, or the first one of MODULES after it whose text mentions the helper.
    """
    table = next(n for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "MODULES")
    modules = [key.id for key in table.value.keys]
    text = {n.name: ast.unparse(n) for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
    users = {name: name for name in modules}
    for name in [name for name in text if name not in users]:
        users[name] = next(module for module in modules if name in text[module])
    return users


def apply(edit: Edit, operator: str, module: str, source: str) -> Mutant | None:
    """The mutant that an edit makes; None if it changes nothing or spans lines."""
    place, text = edit
    if isinstance(place, ast.AST):
        if place.lineno != place.end_lineno:
            return None
        place = place.lineno, place.col_offset, place.end_col_offset
    line, start, end = place
    lines = source.splitlines()
    right = lines[line - 1].encode()
    wrong = (right[:start] + text.encode() + right[end:]).decode()
    lines[line - 1] = wrong
    if "".join(wrong.split()) == "".join(right.decode().split()):
        return None
    return Mutant(operator, module, line, right.decode(), wrong, "\n".join(lines) + "\n")


# ------------------------------------------------------------------------------------------------ running a module


@contextmanager
def loaded(source: str, path: Path) -> Iterator[types.ModuleType]:
    """The module of a source text that is written to `path`, so that its lines can be looked up while it runs."""
    path.write_text(source, encoding="utf-8")
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    sys.modules[path.stem] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
        yield module
    finally:
        del sys.modules[path.stem]


def build(module: types.ModuleType, name: str) -> nn.Module:
    """The class `name` of a loaded file, with the weights of a fixed seed."""
    torch.manual_seed(SEED)
    return getattr(module, name)(CFG)


def inputs(module: types.ModuleType, name: str, sizes: tuple[int, int] = STANDARD) -> tuple[Tensor, ...]:
    """What `name` is called with for (B, T), always the same."""
    return module.MODULES[getattr(module, name)](CFG, *sizes, torch.Generator().manual_seed(SEED))


def error_of(mutant: Mutant, path: Path) -> Exception | None:
    """What the mutant's `forward` raises; None if it runs, can't be built, or raises only for an unknown name."""
    with suppress(Exception), loaded(mutant.source, path) as file:
        module = build(file, mutant.module)
        try:
            with torch.no_grad():
                module(*inputs(file, mutant.module))
        except Exception as error:  # any error counts, of whatever type
            return None if isinstance(error, NameError) else error
    return None


# ------------------------------------------------------------------------------------------------------- the sample


def source_of(half: str) -> str:
    if half not in HALVES:
        raise ValueError(f"half={half!r} is unknown; choose from {', '.join(HALVES)}")
    return (FOLDER / f"{half}.py").read_text(encoding="utf-8")


@functools.cache
def sample(half: str, count: int = 100) -> tuple[Mutant, ...]:
    """`count` mutants of a half that build but raise. Raises ValueError if there are fewer.

    One after the other is taken from the operator that has the fewest so far, and there from the module, then the
    line, with the fewest; ties go by a shuffled order.
    """
    waiting = candidates(source_of(half))
    random.Random(SEED).shuffle(waiting)
    order = {mutant: place for place, mutant in enumerate(waiting)}
    taken, counts = [], Counter()

    def rank(mutant: Mutant) -> tuple[int, ...]:
        return counts[mutant.operator], counts[mutant.module], counts[mutant.line], order[mutant]

    with tempfile.TemporaryDirectory() as folder:
        while len(taken) < count:
            if not waiting:
                raise ValueError(f"count={count}: {half}.py has only {len(taken)} mutants that raise")
            mutant = min(waiting, key=rank)
            waiting.remove(mutant)
            if error_of(mutant, Path(folder) / f"{half}_candidate.py") is not None:
                taken.append(mutant)
                counts.update((mutant.operator, mutant.module, mutant.line))
    return tuple(taken)
