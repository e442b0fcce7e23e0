"""A model in the words of another format: the same function, with other settings and weights where these can say it.

Scaled or factorised embeddings, for instance, are written multiplied out; a bias that is not there is one of zeros.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from config import ModelConfig
from lab.formats.layer_form import LayerForm, form_of, module_names
from model import GPT, sinusoid
from tokenizer import Tokenizer

Weights = dict[str, Tensor]

ROTATED = re.compile(r"\.(Wq|Wk|q_norm|k_norm)\.\w+$")  # what has a row for each channel that RoPE turns
KEYS_VALUES = re.compile(r"\.(Wk|Wv)\.\w+$")
# Positions that can be said as others: by rows in another order, or as vectors that are learned no more.
SAID_AS = {"rope_interleaved": "rope", "sinusoidal": "learned", "none": "learned"}
IRRELEVANT = ("rope_dim", "rope_theta", "rope_factor", "rope_original_len")  # where positions are not RoPE's


def check_vocabulary(cfg: ModelConfig, tok: Tokenizer) -> None:
    if cfg.vocab_size != tok.vocab_size:
        raise ValueError(
            f"vocab_size={cfg.vocab_size} of the model differs from the tokenizer's {tok.vocab_size}: "
            "use the tokenizer that the model was trained with"
        )


# ---------------------------------------------------------------- in


def new_model(cfg: ModelConfig) -> GPT:
    """GPT(cfg), without drawing from the random state that the caller's own numbers come from."""
    with torch.random.fork_rng(devices=[]):
        return GPT(cfg)


@torch.no_grad()
def fill(model: GPT, weights: Weights, name_of: Callable[[str], str] = str) -> None:
    """Copies every weight to its place; name_of: our name of a weight -> theirs.

    Raises: ValueError if one is missing, of another shape, left over, or not made of finite numbers.
    """
    _check_numbers(weights)
    state = model.state_dict()
    if model.cfg.tied_head:
        del state["head.weight"]
        weights = _without_head(weights, name_of("head.weight"), name_of("embed.weight"))
    names = {name: name_of(name) for name in state}
    missing = [theirs for theirs in names.values() if theirs not in weights]
    extra = [theirs for theirs in weights if theirs not in set(names.values())]
    if missing or extra:
        raise ValueError(f"the weights do not fit the config: missing {few(missing)}; not expected {few(extra)}")
    for name, parameter in state.items():
        theirs = weights[names[name]]
        if theirs.shape != parameter.shape:
            raise ValueError(
                f"the weights do not fit the config: {names[name]} is {tuple(theirs.shape)}, "
                f"where the config asks for {tuple(parameter.shape)}"
            )
        parameter.copy_(theirs)


def _check_numbers(weights: Weights) -> None:
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} holds {tensor.dtype}, not floating-point numbers: load the model unquantized")
        wrong = tensor.numel() - int(tensor.float().isfinite().sum())
        if wrong:
            raise ValueError(
                f"{wrong:,} of the {tensor.numel():,} numbers of {name} are NaN or infinite: "
                "the file is damaged, or the training of the model went wrong; get another copy"
            )


def _without_head(weights: Weights, head: str, embed: str) -> Weights:
    """The weights without a head that is the embedding once more. Raises ValueError if it is another matrix."""
    if head in weights and embed in weights and not torch.equal(weights[head], weights[embed]):
        raise ValueError(f"the config ties {head} to {embed} (tie_word_embeddings), but the weights hold two values")
    return {name: tensor for name, tensor in weights.items() if name != head}


def few(names: list[str], count: int = 3) -> str:
    """The first of some names, for a message."""
    return (", ".join(names[:count]) or "none") + (f" and {len(names) - count} more" if len(names) > count else "")


# ---------------------------------------------------------------- out


def plain_config(model: GPT, wanted: dict) -> tuple[ModelConfig, LayerForm | None]:
    """The settings nearest to `wanted` that give the same function, with weights as `plain_weights` makes them.

    wanted: settings of a ModelConfig that the other format asks for; "attention_bias": True for biases in attention.
    What can't be said in another way stays as it is. Dropout is left behind.
    Returns the config and the form of its layers, None where this is no plain one; the recipe is then the model's own.
    """
    cfg, form = model.cfg, form_of(model)
    wanted = {"scale_first_residual": False, "positions": "rope", "attention_bias": False} | wanted
    bias, positions = wanted.pop("attention_bias"), wanted.pop("positions")
    same_embedding = cfg.embed_dim is None and cfg.scale_first_residual == wanted["scale_first_residual"]
    settings = wanted | {
        "mlp_hidden": int(cfg.mlp_hidden),
        "mlp_hidden_mult": 2.0,
        "norm_affine": True,
        "embed_dim": None,
        "tied_head": cfg.tied_head and same_embedding,
        "dropout_rate": 0.0,
    }
    whole_head = cfg.rope_dim in (None, cfg.head_dim)
    if SAID_AS.get(cfg.positions) == positions and (whole_head or positions != "rope"):
        settings["positions"] = positions
    if whole_head:
        settings["rope_dim"] = None
    if not cfg.positions.startswith("rope"):
        settings |= {name: getattr(ModelConfig, name) for name in IRRELEVANT}
    if form is not None:
        form = form.replace(bias=form.bias or bias)
        settings |= {"recipe": form.recipe(), "post_norm": False, "attn_block": "MQA"}
        settings |= {"qk_norm": False} if form.attention == "FlatNormAttn" else {}  # it has norms of its own
    return cfg.replace(**settings), form


def plain_weights(model: GPT, plain: ModelConfig) -> Weights:
    """The weights of GPT(plain) that give the model's logits: fp32 copies on the CPU, a tied head only once.

    Raises ValueError where they do not fit, which happens to a model whose blocks were exchanged.
    """
    cfg = model.cfg
    weights = {name: tensor.detach().cpu().float().clone() for name, tensor in model.state_dict().items()}
    if cfg.recipe != plain.recipe or cfg.post_norm != plain.post_norm:
        weights = _renamed(weights, dict(zip(module_names(cfg), module_names(plain))))
    if cfg.embed_dim is not None:
        _multiply_out(weights)
    weights["embed.weight"] *= cfg.dim ** (0.5 * (cfg.scale_first_residual - plain.scale_first_residual))
    if cfg.positions == "rope_interleaved" and plain.positions == "rope":
        weights = {name: halves(w, cfg) if ROTATED.search(name) else w for name, w in weights.items()}
    if cfg.positions != "learned" and plain.positions == "learned":
        weights["position_embed.weight"] = _position_table(cfg)
    if cfg.num_kv_heads != plain.num_kv_heads:
        weights = {name: _repeated(w, cfg) if KEYS_VALUES.search(name) else w for name, w in weights.items()}
    expected = {name: tensor.shape for name, tensor in new_model(plain).state_dict().items()}
    weights = _neutral(expected, cfg) | weights
    if {name: tensor.shape for name, tensor in weights.items()} != expected:
        raise ValueError(
            "this model is not what GPT(model.cfg) builds (blocks exchanged by hand?): it can't be written"
        )
    if plain.tied_head:
        del weights["head.weight"]
    return weights


def _renamed(weights: Weights, names: dict[str, str]) -> Weights:
    """The weights with a layer's modules under other names: "layers.0.norm_2.weight" -> "layers.0.mlp_norm.weight"."""

    def rename(match: re.Match) -> str:
        return match[1] + names.get(match[2], match[2]) + match[3]

    return {re.sub(r"^(layers\.\d+\.)(\w+)(.*)", rename, name): tensor for name, tensor in weights.items()}


def _multiply_out(weights: Weights) -> None:
    """Makes one matrix (V, D) of each of the two factors of embedding and head."""
    weights["embed.weight"] = weights["embed.weight"] @ weights.pop("embed_up.weight").T
    if "head.0.weight" in weights:
        weights["head.weight"] = weights.pop("head.1.weight") @ weights.pop("head.0.weight")


def _position_table(cfg: ModelConfig) -> Tensor:
    """What a model without learned positions adds to its embeddings, as if it had learned it: (max_seq_len, D)."""
    if cfg.positions == "sinusoidal":
        return sinusoid(torch.arange(cfg.max_seq_len), cfg.dim)
    return torch.zeros(cfg.max_seq_len, cfg.dim)


def _repeated(rows: Tensor, cfg: ModelConfig) -> Tensor:
    """The rows of G key or value heads, once for each of the H query heads: (G * K, ...) -> (H * K, ...)."""
    heads = rows.unflatten(0, (cfg.num_kv_heads, cfg.head_dim))
    return heads.repeat_interleave(cfg.num_q_heads // cfg.num_kv_heads, dim=0).flatten(0, 1)


def _neutral(expected: dict[str, torch.Size], cfg: ModelConfig) -> Weights:
    """Weights that change nothing: biases of zeros, and, where norms have no scale, scales of ones."""
    zeros = {name: torch.zeros(shape) for name, shape in expected.items() if name.endswith(".bias")}
    if cfg.norm_affine:
        return zeros
    scales = [name for name in expected if re.search(r"(^|[._])norm(_\d+)?\.weight$", name)]
    return zeros | {name: torch.ones(expected[name]) for name in scales}


def halves(rows: Tensor, cfg: ModelConfig) -> Tensor:
    """Rows for RoPE on neighbouring channels (2i, 2i + 1), put in the order for RoPE on halves (i, i + K/2)."""
    return rows.view(-1, cfg.head_dim // 2, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def neighbours(rows: Tensor, cfg: ModelConfig) -> Tensor:
    """The inverse of `halves`."""
    return rows.view(-1, 2, cfg.head_dim // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
