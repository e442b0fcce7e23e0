"""Describing values: what is remembered of a tensor, a container, an object. Nothing here holds a tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch


class Value:
    """What is remembered of one tensor, from the first time it is seen.

    `maker` is the operation that made it, or None; `origin` says in words where one that no operation made came
    from ("parameter layers.0.attn.Wq.weight", "argument 'mask' of MQA.forward").
    """

    index = -1  # its place in the order in which a recording first saw its tensors
    maker: Any = None
    origin = ""
    weight = False  # a parameter or buffer of the model
    runs: tuple[tuple[int | None, ...], ...] = ()  # of each dimension, its size in the run and in each probe
    symbols: tuple[str, ...] | None = None  # one text for each dimension, once they are known
    stats: dict[str, float] | None = None

    def __init__(self, tensor: torch.Tensor):
        try:
            self.shape: tuple[int, ...] | None = tuple(tensor.shape)
        except Exception:  # strided nested tensors, uninitialised parameters and others refuse to give one
            self.shape = None
        self.dtype, self.device = tensor.dtype, tensor.device

    def __eq__(self, other: object) -> bool:
        """Equal in what is shown of them."""
        if not isinstance(other, Value):
            return NotImplemented
        return (self.shape, self.dtype, self.device) == (other.shape, other.dtype, other.device)

    def __hash__(self) -> int:
        return hash(self.shape)


@dataclass(frozen=True)
class Group:
    """A tuple, list or dict of values. `items` are (key, description); the key is None in tuples and lists."""

    kind: str
    items: tuple[tuple[str | None, Info], ...]
    hidden: int = 0  # items left out


@dataclass(frozen=True)
class Opaque:
    """Any other object, shown by the name of its type."""

    type_name: str


Info = Value | Group | Opaque | str  # a str is a plain value, ready to print
MAX_ITEMS, MAX_DEPTH, MAX_TEXT = 8, 3, 40
PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, slice, type(None), type(Ellipsis))


def describe(value: Any, see: Callable[[torch.Tensor], Value] = Value, depth: int = 0) -> Info:
    """A short description of any value: shapes of tensors, plain values as they are, the type's name of the rest.

    `see` turns a tensor into its `Value`; a recording passes its own, which knows the tensors it has met.
    """
    if isinstance(value, torch.Tensor):
        return see(value)
    if isinstance(value, torch.Size):
        return str(tuple(value))
    if isinstance(value, PLAIN):
        return _plain_text(value)
    if isinstance(value, (tuple, list, dict)) and depth < MAX_DEPTH:
        try:
            return _describe_container(value, see, depth)
        except Exception:  # a class of someone's own with a will of its own: what it holds can't be shown
            return Opaque(type(value).__name__)
    return Opaque(type(value).__name__)  # never repr(): it may be long, slow or raise


def _plain_text(value: Any) -> str:
    if isinstance(value, slice):
        ends = [_end_text(end) for end in (value.start, value.stop, value.step)]
        return ":".join(ends[:2] if value.step is None else ends)
    if isinstance(value, float):
        return f"{value:.6g}"
    text = repr(value[:MAX_TEXT] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _end_text(end: Any) -> str:
    return "" if end is None else str(end) if isinstance(end, int) else type(end).__name__


def _describe_container(value: tuple | list | dict, see: Callable, depth: int) -> Group:
    if isinstance(value, dict):
        kind, pairs = "dict", ((_key_text(key), item) for key, item in value.items())
    elif hasattr(value, "_fields"):  # a named tuple
        kind, pairs = type(value).__name__, zip(value._fields, value, strict=True)
    else:
        kind, pairs = ("list" if isinstance(value, list) else "tuple"), ((None, item) for item in value)
    items = tuple((key, describe(item, see, depth + 1)) for key, item in islice(pairs, MAX_ITEMS))
    return Group(kind, items, len(value) - len(items))


def _key_text(key: Any) -> str:
    if isinstance(key, str):
        return key[:MAX_TEXT]
    return _plain_text(key) if isinstance(key, PLAIN) else type(key).__name__


def tensors_in(info: Info | None) -> Iterator[Value]:
    """The tensors of a description, in order."""
    if isinstance(info, Value):
        yield info
    elif isinstance(info, Group):
        for _, item in info.items:
            yield from tensors_in(item)


def shape_text(value: Value, named: bool = True) -> str:
    """`(B,T,D)` where the dimensions have names, else `(3, 5, 32)`, followed by what is not plain fp32 on a CPU."""
    if value.shape is None:
        shape = "(nested)"
    elif named and value.symbols is not None:
        shape = "(" + ",".join(value.symbols) + ")"
    else:
        shape = str(value.shape)
    rest = [
        str(value.dtype).removeprefix("torch.") if value.dtype != torch.float32 else "",
        str(value.device) if value.device.type != "cpu" else "",
    ]
    return " ".join([shape, *filter(None, rest)])


def numbers(value: Value) -> str:
    """`(2,16,8,16)`, without spaces, to stand beside names."""
    return "(nested)" if value.shape is None else "(" + ",".join(map(str, value.shape)) + ")"


def render(info: Info, named: bool = True) -> str:
    """A description as text: `(B,T,D)`, `(3, 5) int64`, `{loss: ()}`, `((T,K/2), (T,K/2))`, `Context`, `True`."""
    if isinstance(info, str):
        return info
    if isinstance(info, Opaque):
        return info.type_name
    if isinstance(info, Value):
        return shape_text(info, named)
    texts = [f"{key}: {render(item, named)}" if key else render(item, named) for key, item in info.items]
    if len(texts) > 2 and len(set(texts)) == 1:
        texts = [f"{texts[0]} ×{len(texts) + info.hidden}"]
    elif info.hidden:
        texts.append(f"… {info.hidden} more")
    left, right = {"dict": "{}", "list": "[]"}.get(info.kind, "()")
    prefix = "" if info.kind in ("dict", "list", "tuple") else info.kind
    return prefix + left + ", ".join(texts) + right


def output_text(output: Info, names: list[str | None], named: bool = True) -> str:
    """What a call returned; the parts of a tuple with their names, where there are some: `q (B,H,T,K)  k (B,G,T,K)`."""
    if isinstance(output, Group) and output.kind == "tuple" and len(names) == len(output.items) > 1:
        texts = (render(item, named) for _, item in output.items)
        return "  ".join(f"{name} {text}" if name else text for name, text in zip(names, texts, strict=True))
    name = names[0] if len(names) == 1 else None
    return f"{name} {render(output, named)}" if name else render(output, named)
