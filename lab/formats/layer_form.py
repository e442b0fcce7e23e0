"""What the layers of a model do, whatever words its config says it in, to be compared with a stock architecture's."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass

from blocks.attention import FlatNormAttn, SoftCapAttn
from config import PRE_NORM, ModelConfig
from model import GPT, MLP, MQA, NORMS
from recipe import Add, Step, Unit, parse

# What a stock architecture has.
ATTENTIONS = {"MQA": MQA, "SoftCapAttn": SoftCapAttn, "FlatNormAttn": FlatNormAttn}
# The modules of a `ResidualLayer` in the order in which they run, by `post_norm`.
RESIDUAL_LAYER = {
    False: ["attn_norm", "attn", "mlp_norm", "mlp"],
    True: ["attn_norm", "attn", "attn_post_norm", "mlp_norm", "mlp", "mlp_post_norm"],
}


@dataclass(frozen=True)
class LayerForm:
    """A layer as a list of steps ("Norm", "Attn", "MLP", "+"), and what its attention is told.

    windows: one for each layer of the model, None where attention reaches all the way back.
    """

    steps: tuple[str, ...]
    attention: str = "MQA"
    windows: tuple[int | None, ...] = (None,)
    bias: bool = False
    cap: float | None = None

    def replace(self, **changes) -> LayerForm:
        return dataclasses.replace(self, **changes)

    def recipe(self) -> str:
        """The recipe that says this; "" for our default layer."""
        arguments = {"cap": self.cap, "bias": "true" if self.bias else None, "window": _by_depth(self.windows)}
        given = ",".join(f"{name}={value}" for name, value in arguments.items() if value is not None)
        attention = "Attn" if self.attention == "MQA" else self.attention
        attention += f"({given})" if given else ""
        recipe = "->".join(attention if step == "Attn" else step for step in self.steps)
        return "" if recipe == PRE_NORM else recipe


def _by_depth(windows: tuple[int | None, ...]) -> str | None:
    """`cyc(5,none)` for (5, None, 5, None, 5); a window that all layers have as it is."""
    period = next(p for p in range(1, len(windows) + 1) if all(w == windows[i % p] for i, w in enumerate(windows)))
    values = ["none" if window is None else str(window) for window in windows[:period]]
    return f"cyc({','.join(values)})" if period > 1 else None if windows[0] is None else values[0]


def form_of(model: GPT) -> LayerForm | None:
    """The form of a model's layers; None where they are not a plain row of norms, one attention and MLPs.

    Raises ValueError for a module that is not what the config says.
    """
    cfg = model.cfg
    lanes = parse(cfg.architecture).lanes
    steps = tuple(_plain_step(step, cfg) for step in lanes[0].steps)
    if len(lanes) > 1 or None in steps or steps.count("Attn") != 1:
        return None
    attentions = _attentions(model, [step for step in steps if step != "+"])
    told = {(type(one), one.Wq.bias is not None, getattr(one, "cap", None)) for one in attentions}
    if len(told) > 1:
        return None
    kind, bias, cap = told.pop()
    name = next(name for name, known in ATTENTIONS.items() if known is kind)
    windows = [None if one.window is None or one.window >= cfg.max_seq_len else one.window for one in attentions]
    return LayerForm(steps, name, tuple(windows), bias, cap)


def _attentions(model: GPT, steps: list[str]) -> list[MQA]:
    """The attention of each layer, whose modules run in the order of `steps`."""
    known = {"Norm": [NORMS[model.cfg.norm_type]], "Attn": ATTENTIONS.values(), "MLP": [MLP]}
    found = []
    for i, layer in enumerate(model.layers):
        for step, name in zip(steps, module_names(model.cfg)):
            module = getattr(layer, name)
            if type(module) not in known[step]:
                raise ValueError(
                    f"layers.{i}.{name} is a {type(module).__name__} (exchanged by hand?), not a stock one"
                )
            found += [module] if step == "Attn" else []
    return found


def _plain_step(step: Step, cfg: ModelConfig) -> str | None:
    """ "Norm", "Attn", "MLP" or "+"; None for a step that is more than that."""
    body = step.body
    if isinstance(body, Add):
        return "+" if all(name == "drop" for name, _ in body.args) and not step.taps else None
    if not isinstance(body, Unit) or body.inner or body.tag or step.times > 1 or step.taps:
        return None
    if body.name in ATTENTIONS or (body.name == "Attn" and cfg.attn_block in ATTENTIONS):
        return "Attn"
    if body.args:
        return None
    if body.name == "MLP":
        return "MLP" if cfg.mlp_block == "MLP" else None
    return "Norm" if body.name in ("Norm", cfg.norm_type) else None


def module_names(cfg: ModelConfig) -> list[str]:
    """The names of a layer's modules in the order in which they run; for a recipe of plain units."""
    if not cfg.recipe:
        return RESIDUAL_LAYER[cfg.post_norm]
    names, seen = [], Counter()
    for unit in parse(cfg.recipe).units():
        name = unit.name.lower()
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return names
