"""A layer as a recipe says it (see recipe.py): built from the text, then run step by step."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from config import ModelConfig
from model import LAYERS, NORMS, Context, find_block, make_context, make_norm
from recipe import Add, Branches, Group, Lane, Layer, RecipeError, Set, Step, Tap, Unit, at_depth, nearest
from tools import LoggingModule, log_io, see_through


@dataclass
class Move:
    """A step of a recipe, bound to the modules of one layer."""

    step: Step
    turns: tuple = ()  # for each time it runs: a unit's module by name, a group's lanes, branches' lanes and join
    taps: tuple[tuple[str, str], ...] = ()  # what is read: (argument of the unit's forward, tap)
    options: dict[str, Any] = field(default_factory=dict)  # of "+": its scale, and the names of what it learns


Bound = tuple[Move, ...]  # a lane


class Shared:
    """What the layers of one model share while they are built: what stands under tags, and the taps known so far."""

    def __init__(self, around: "Shared | None" = None):
        self.kinds: dict[str, tuple] = around.kinds if around else {}
        self.parts: dict[str, Any] = around.parts if around else {}
        self.taps: set[str] = set()


class RecipeLayer(LoggingModule):
    """One layer as a recipe says it: the residual r and the working value x run from step to step. See recipe.py.

    Its modules stand under the names of their blocks in lower case: `norm`, `attn`, `norm_2`, `mlp`. A block starts by
    adding nothing only where a plain `+` comes next: in front of anything else its zeros would let no gradient through.
    The recipe inside of a wrapper has taps of its own.
    """

    causal, decodes = True, True

    def __init__(
        self,
        cfg: ModelConfig,
        layer: Layer,
        depth: tuple[int, int] = (0, 1),  # which of how many layers this is, for values that depend on it
        shared: Shared | None = None,
        summed: bool | None = None,  # of a recipe inside of a wrapper: whether a plain "+" comes after the wrapper
    ):
        super().__init__()
        self.cfg, self.layer, self.depth, self.shared = cfg, layer, depth, shared or Shared()
        self.wrapped = summed is not None
        self.lanes = self._bind_lanes(layer.lanes, None, bool(summed))
        del self.shared  # only for building

    # ---- building: `tag` is what a part is shared under, `summed` whether a plain "+" comes next

    def _bind_lanes(self, lanes: tuple[Lane, ...], tag: str | None, summed: bool) -> tuple[Bound, ...]:
        return tuple(self._bind_lane(lane, tag and f"{tag}.{k}", summed) for k, lane in enumerate(lanes))

    def _bind_lane(self, lane: Lane, tag: str | None, summed: bool) -> Bound:
        moves = []
        for i, step in enumerate(lane.steps):
            following = lane.steps[i + 1].body if i + 1 < len(lane.steps) else None
            plain = summed if following is None else _is_plain_sum(following)
            moves.append(self._bind(step, tag and f"{tag}.{i}", plain))
            self.shared.taps |= set(step.taps)
        return tuple(moves)

    def _bind(self, step: Step, tag: str | None, summed: bool) -> Move:
        body, depth = step.body, self.depth
        if isinstance(body, Add):
            return self._bind_add(step, body, tag)
        if isinstance(body, Set):
            return Move(step)
        bind = {Unit: self._bind_unit, Group: self._bind_group, Branches: self._bind_branches}[type(body)]
        turns, copies = [], 1 if step.shared else step.times
        for j in range(copies):
            self.depth = (depth[0] * copies + j, depth[1] * copies)
            turns.append(bind(body, body.tag or (tag and f"{tag}.{j}"), summed and j + 1 == step.times))
        self.depth = depth
        taps = self._arguments(body)[1] if isinstance(body, Unit) else ()
        return Move(step, tuple(turns) * (step.times if step.shared else 1), taps)

    def _bind_unit(self, unit: Unit, tag: str | None, summed: bool) -> str:
        """Builds a unit's module, or takes the one that shares its tag; returns its name on this layer."""
        own = self._arguments(unit)[0]
        kind = (self._class(unit), unit.inner, own)
        name = self._take(tag, kind, lambda: self._construct(unit, own, summed), unit.name.lower(), unit.column)
        if not summed and unit.inner is None:
            for part in getattr(self, name).modules():
                if hasattr(part, "last"):
                    part.starts_at_zero = False
        return name

    def _bind_group(self, group: Group, tag: str | None, summed: bool) -> tuple[Bound, ...]:
        self._check_tag(tag, (group.layer,), group.column)
        return self._bind_lanes(group.layer.lanes, tag, summed and len(group.layer.lanes) == 1)

    def _bind_branches(self, body: Branches, tag: str | None, summed: bool) -> tuple[tuple[Bound, ...], str, str]:
        """The lanes, how they are joined, and the name of the matrix for that: "cat" and "gate" have one."""
        self._check_tag(tag, (body.lanes, body.args), body.column)
        options = {name or "join": at_depth(value, *self.depth) for name, value in body.args}
        join = options.pop("join", "sum")
        if options or len(body.args) > 1 or join not in ("sum", "mean", "cat", "gate"):
            self._fail('branches take join="sum", "mean", "cat" or "gate"', body.column)
        lanes = self._bind_lanes(body.lanes, tag, summed and join in ("sum", "mean"))
        if join in ("sum", "mean"):
            return lanes, join, ""
        D, count = self.cfg.dim, len(lanes)
        sizes = (count * D, D) if join == "cat" else (D, count)
        return lanes, join, self._take(tag and f"{tag}.join", sizes, lambda: nn.Linear(*sizes, bias=False), "join")

    def _bind_add(self, step: Step, body: Add, tag: str | None) -> Move:
        """Checks the options of `+` and makes what it learns."""
        args, taps = body.args, ()
        if args and args[0][0] is None and isinstance(args[0][1], Tap):
            args, taps = args[1:], (("", self._known(args[0][1], body.column)),)
        options = {name: at_depth(value, *self.depth) for name, value in args}
        wanted = {"scale": float, "gate": bool, "drop": float, "layer_scale": float}
        if not options.keys() <= wanted.keys():
            self._fail("'+' takes a tap, scale, gate, drop and layer_scale", body.column)
        for name, value in options.items():
            self._check_type("'+'", name, value, wanted[name], body.column)
        drop = options.get("drop", self.cfg.dropout_rate)
        if not 0 <= drop < 1:
            self._fail(f"'+': drop={drop} must be in [0, 1): it is the share that is dropped", body.column)
        made: dict[str, Any] = {"dropout": nn.Dropout(drop)}
        if "layer_scale" in options:
            made["layer_scale"] = nn.Parameter(torch.full((self.cfg.dim,), float(options["layer_scale"])))
        if options.get("gate"):
            made["gate"] = nn.Parameter(torch.zeros(()))
        names = {n: self._take(tag and f"{tag}.{n}", (n,), lambda n=n: made[n], n) for n in made}
        return Move(step, taps=taps, options={"scale": options.get("scale")} | names)

    def _take(self, tag: str | None, kind: tuple, make: Callable[[], Any], name: str, column: int = 0) -> str:
        """Registers what `make` makes, or what stands under the tag already; returns the name it got on this layer."""
        self._check_tag(tag, kind, column)
        part = self.shared.parts[tag] if tag in self.shared.parts else make()
        if tag:
            self.shared.parts[tag] = part
        full, number = name, 1
        while hasattr(self, full):
            number += 1
            full = f"{name}_{number}"
        setattr(self, full, part)
        return full

    def _check_tag(self, tag: str | None, kind: tuple, column: int) -> None:
        if tag and self.shared.kinds.setdefault(tag, kind) != kind:
            self._fail(f"#{tag} is shared with a part of another kind or other arguments", column)

    def _construct(self, unit: Unit, own: dict[str, Any], summed: bool) -> nn.Module:
        if unit.inner is not None:
            inner = RecipeLayer(self.cfg, unit.inner, self.depth, Shared(self.shared), summed)
            own = own | {"inner": inner}
        try:
            cls = self._class(unit)
            return make_norm(self.cfg, unit.name, **own) if cls in NORMS.values() else cls(self.cfg, **own)
        except RecipeError:
            raise
        except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
            raise RecipeError(f"{unit.name}: {error}", self.layer.text, unit.column) from error

    def _class(self, unit: Unit) -> type:
        """The class that a unit's name stands for: `Norm`, `Attn` and `MLP` are what the config says."""
        cfg, name = self.cfg, unit.name
        name = {"Norm": cfg.norm_type, "Attn": cfg.attn_block, "MLP": cfg.mlp_block}.get(name, name)
        if name in NORMS:
            return NORMS[name]
        try:
            return find_block(name)
        except ValueError:
            known = sorted({*LAYERS, *NORMS, "Norm", "Attn"})
            close = nearest(name, known)
            near = f"did you mean {close!r}?" if close else f"there are {', '.join(known)}"
            self._fail(f"unknown block {name!r}", unit.column, near + " (your own is registered with @layer)")

    def _arguments(self, unit: Unit) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
        """A unit's arguments: those of its constructor, as they are at this depth, and its taps by argument."""
        cls = self._class(unit)
        offered, takes = _parameters(cls.__init__, 2), _parameters(cls.forward, 3)
        if (unit.inner is not None) != ("inner" in offered):
            has = "takes no" if unit.inner is not None else "needs an"
            self._fail(f"{unit.name} {has} inner recipe {{...}}", unit.column)
        offered.pop("inner", None)
        own, taps = {}, {}
        for name, value in unit.args:
            found, choices = (taps, takes) if isinstance(value, Tap) else (own, offered)
            name = name or next((choice for choice in choices if choice not in found), "")
            if name not in choices or name in found:
                close = nearest(name, choices)
                has = f"did you mean {close!r}?" if close else f"it has {', '.join(choices) or 'none'}"
                if name in found:
                    self._fail(f"the argument {name!r} is given twice", unit.column)
                what = f"argument {name!r}" if name else "further argument"
                self._fail(f"{unit.name} has no {what}{' that is a tap' if found is taps else ''}", unit.column, has)
            found[name] = self._known(value, unit.column) if found is taps else at_depth(value, *self.depth)
            if found is own:
                self._check_type(unit.name, name, own[name], offered[name], unit.column)
        return own, tuple(taps.items())

    def _check_type(self, owner: str, name: str, value: Any, wanted: Any, column: int) -> None:
        """Against an annotation such as `int` or `int | None`; others are left to the block."""
        kinds = (wanted,) if isinstance(wanted, type) else getattr(wanted, "__args__", ())
        if kinds and set(kinds) <= {int, float, bool, str, type(None)} and not _fits(value, kinds):
            names = " or ".join("none" if kind is type(None) else kind.__name__ for kind in kinds)
            self._fail(f"{owner}: {name}={value!r} must be of type {names}", column)

    def _known(self, tap: Tap, column: int) -> str:
        if tap.name not in self.shared.taps:
            known = ", ".join(f"@{name}" for name in sorted(self.shared.taps)) or "none"
            self._fail(f"@{tap.name} is used before a step kept it", column, f"known up to here: {known}")
        return tap.name

    def _fail(self, problem: str, column: int, remedy: str = "") -> NoReturn:
        raise RecipeError(problem, self.layer.text, column, remedy)

    # ---- running

    @log_io
    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        ctx = make_context(self.cfg, x) if ctx is None else ctx
        ctx = replace(ctx, taps={}) if self.wrapped else ctx
        return self._run_lanes(self.lanes, x, x, ctx)[1]

    @see_through
    def _run_lanes(self, lanes: tuple[Bound, ...], r: Tensor, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """One lane goes on with r and x. Several start from r each, and what each of them added to r is added up."""
        if len(lanes) == 1:
            return self._run(lanes[0], r, x, ctx)
        ends = [self._run(lane, r, r, ctx)[1] for lane in lanes]
        r = r + sum(end - r for end in ends)
        return r, r

    @see_through
    def _run(self, lane: Bound, r: Tensor, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        for move in lane:
            body = move.step.body
            if isinstance(body, Add):
                r = x = r + self._added(move, x, ctx)
            elif isinstance(body, Set):
                r = x
            for number, turn in enumerate(move.turns):
                inside = ctx.at(number) if move.step.shared else ctx  # the same modules again: a state for each time
                if isinstance(body, Unit):
                    x = self._call(move, turn, x, inside)
                elif isinstance(body, Group):
                    r, x = self._run_lanes(turn, r, x, inside)
                else:
                    x = self._join(*turn, x, inside)
            for name in move.step.taps:
                ctx.taps[name] = x
        return r, x

    @see_through
    def _call(self, move: Move, name: str, x: Tensor, ctx: Context) -> Tensor:
        module = getattr(self, name)
        if type(module) in NORMS.values():
            return module(x)
        return module(x, ctx.at(name), **{argument: ctx.taps[tap] for argument, tap in move.taps})

    @see_through
    def _join(self, lanes: tuple[Bound, ...], join: str, name: str, x: Tensor, ctx: Context) -> Tensor:
        parts = [self._run(lane, x, x, ctx)[1] for lane in lanes]
        if join == "cat":
            return getattr(self, name)(torch.cat(parts, dim=-1))
        if join == "gate":
            weights = getattr(self, name)(x).softmax(dim=-1)  # (B, T, number of branches)
            return (torch.stack(parts, dim=-1) * weights[..., None, :]).sum(dim=-1)
        return sum(parts) / (len(parts) if join == "mean" else 1)

    @see_through
    def _added(self, move: Move, x: Tensor, ctx: Context) -> Tensor:
        """What `+` adds: x or a tap, scaled, gated and dropped out as its options say.

        Source: layer scale: Touvron et al. 2021, arXiv 2103.17239, eq. 6; tanh gate: Alayrac et al. 2022, arXiv
        2204.14198, section 2.3.
        """
        for _, tap in move.taps:
            x = ctx.taps[tap]
        options = move.options
        if "layer_scale" in options:
            x = x * getattr(self, options["layer_scale"])
        if "gate" in options:
            x = x * getattr(self, options["gate"]).tanh()
        x = getattr(self, options["dropout"])(x)
        return x if options["scale"] is None else x * options["scale"]


def _is_plain_sum(body: Any) -> bool:
    """Whether this is a `+` through which a gradient comes to what stands before it, though that be zero."""
    if not isinstance(body, Add):
        return False
    return all(name == "drop" or (name in ("scale", "layer_scale") and value != 0) for name, value in body.args)


def _parameters(function: Callable, skip: int) -> dict[str, Any]:
    """Annotations by name of a function's parameters but the first ones."""
    found = list(inspect.signature(function).parameters.values())[skip:]
    return {p.name: p.annotation for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _fits(value: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a value is of one of these types; an int passes for a float, a bool never for a number."""
    kinds = (*kinds, int) if float in kinds else kinds
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
