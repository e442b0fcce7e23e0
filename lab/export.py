"""Models from and to other people's programs: Hugging Face folders, and karpathy's llama2.c.

    model = from_hf("path/to/folder")                       # config.json and safetensors -> GPT, with equal logits
    to_hf(model, tok, "exported")                           # AutoModelForCausalLM and AutoTokenizer load the folder
    model, tok = from_llama2c("stories.bin", "tokenizer.bin")
    to_llama2c(model, tok, "stories.bin", "tokenizer.bin")  # for llama2.c's run

A folder is data: nothing in it is run, and no pickle is opened. What the other side cannot hold is refused with the
setting that stands in the way. None of this needs the package `transformers`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from config import NONLINEARITIES, PRE_NORM, SANDWICH, ModelConfig
from lab.files import clear_write_errors, json_text, read_json, shown, sync_folder, temporary_beside, write_atomic
from lab.saving import NO_PICKLE, PICKLE_SUFFIXES, model_folder, read_weights
from model import GPT, rope_tables
from tokenizer import REPLACEMENT, RESERVED, SPACE, ByteTokenizer, SentencePieceTokenizer, Tokenizer

Weights = dict[str, Tensor]

# ---------------------------------------------------------------- Hugging Face: architectures

# How Llama-shaped models call our modules: those at the ends, and those of a layer, whose norms differ by family.
# ResidualLayer and a layer built from a recipe have different names for the same norm.
ENDS = {"embed": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}
ATTENTION = {"Wq": "q_proj", "Wk": "k_proj", "Wv": "v_proj", "Wo": "o_proj", "q_norm": "q_norm", "k_norm": "k_norm"}
BLOCKS = {
    f"{block}.{ours}": f"self_attn.{theirs}"
    for block in ("attn", "softcapattn", "flatnormattn")
    for ours, theirs in ATTENTION.items()
} | {"mlp.Wgate": "mlp.gate_proj", "mlp.Wup": "mlp.up_proj", "mlp.Wdown": "mlp.down_proj"}
PARTS = BLOCKS | {
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "norm": "input_layernorm",
    "norm_2": "post_attention_layernorm",
}
GEMMA2_PARTS = BLOCKS | {
    "norm": "input_layernorm",
    "norm_2": "post_attention_layernorm",
    "norm_3": "pre_feedforward_layernorm",
    "norm_4": "post_feedforward_layernorm",
}
OLMO2_PARTS = BLOCKS | {"norm": "post_attention_layernorm", "norm_2": "post_feedforward_layernorm"}
GPT2_PARTS = {
    "norm": "ln_1", "attn.Wq": "attn.q", "attn.Wk": "attn.k", "attn.Wv": "attn.v", "attn.Wo": "attn.c_proj",
    "norm_2": "ln_2", "mlp.Wup": "mlp.c_fc", "mlp.Wdown": "mlp.c_proj",
}  # fmt: skip
GPT2_ENDS = {"embed": "wte", "position_embed": "wpe", "final_norm": "ln_f", "head": "lm_head"}
# What transformers takes for a setting that config.json leaves out, where no shape of a weight would tell.
DEFAULTS = {
    "mistral": {"sliding_window": 4096},
    "qwen3": {"sliding_window": 4096, "max_window_layers": 28},
    "gemma2": {
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "query_pre_attn_scalar": 256,
        "tie_word_embeddings": True,
    },
    "olmo2": {"rms_norm_eps": 1e-5},
    "gpt2": {"tie_word_embeddings": True},
}
# Nonlinearities whose names differ from ours.
ACTIVATIONS = {"swish": "silu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
# Buffers that old checkpoints hold beside the weights.
IGNORED = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$")


@dataclass(frozen=True)
class Family:
    """An architecture of transformers: what its config says in ours, how its weights are called, how they differ.

    prepare: changes their weights so that they mean what ours do, before they are renamed.
    """

    settings: Callable[[dict], dict]
    parts: dict[str, str]
    ends: dict[str, str]
    layers: str = "model.layers"
    prepare: Callable[[Weights, dict], Weights] = lambda weights, hf: weights

    def name(self, ours: str) -> str:
        """E.g. "layers.3.attn.Wq.weight" -> "model.layers.3.self_attn.q_proj.weight"; ours where it has no place."""
        layer = re.fullmatch(r"layers\.(\d+)\.(.+)\.(\w+)", ours)
        if layer and layer[2] in self.parts:
            return f"{self.layers}.{layer[1]}.{self.parts[layer[2]]}.{layer[3]}"
        part, _, kind = ours.rpartition(".")
        return f"{self.ends[part]}.{kind}" if part in self.ends else ours


def _need(hf: dict, name: str, kind: type = int):
    """A setting that must be there: a size, unless another kind is asked for."""
    value = hf.get(name)
    if type(value) is not kind or (kind is int and value < 1):
        what = "a number from 1 up" if kind is int else "a text"
        raise ValueError(
            f"{name}={value!r} in the config of this {hf['model_type']} model must be {what}: is it damaged?"
        )
    return value


def _refuse(hf: dict, name: str, *held, why: str) -> None:
    """Raises ValueError if the setting is there with another value than those that the model holds."""
    if hf.get(name) not in (None, *held):
        raise ValueError(f"{name}={hf[name]!r} (model_type={hf['model_type']}) can't be held: {why}")


def _activation(hf: dict, name: str) -> str:
    ours = ACTIVATIONS.get(_need(hf, name, str), hf[name])
    if ours not in NONLINEARITIES:
        raise ValueError(f"{name}={hf[name]!r} can't be held: our MLP has {', '.join(NONLINEARITIES)}")
    return ours


def _rope_theta(hf: dict) -> float:
    """The base of the rotary angles. Configs hold it in one of two places; a stretched table is refused."""
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    if kind != "default":
        raise ValueError(f"rope_type={kind!r} can't be held: our RoPE turns by position * theta^(-2i/K), unscaled")
    return float(rope.get("rope_theta", hf.get("rope_theta") or 10_000.0))


def _attention(hf: dict, types: list[str], **own) -> str:
    """`Attn` with its arguments as a recipe writes them: the window of each layer, and `own`.

    types: of each layer, "sliding_attention" (with the window) or "full_attention"; a shorter list is gone through
    again and again. A window that holds the whole context is none.
    """
    if not set(types) <= {"sliding_attention", "full_attention"}:
        raise ValueError(f"layer_types={sorted(set(types))} can't be held: our attention is full, or slides")
    window = None if hf.get("sliding_window") is None else _need(hf, "sliding_window")
    if window is not None and window < _need(hf, "max_position_embeddings"):
        values = ["none" if kind == "full_attention" else str(window) for kind in types]
        period = next(p for p in range(1, len(values) + 1) if all(v == values[i % p] for i, v in enumerate(values)))
        own["window"] = f"cyc({','.join(values[:period])})" if period > 1 else values[0]
    arguments = [f"{name}={value}" for name, value in own.items() if value != "none"]
    return f"Attn({','.join(arguments)})" if arguments else "Attn"


def _bias(hf: dict) -> dict[str, str]:
    return {"bias": "true"} if hf.get("attention_bias") else {}


def _pre_norm(attention: str) -> str:
    """The recipe of a pre-norm layer; "", our default layer, where its attention needs no arguments."""
    return "" if attention == "Attn" else PRE_NORM.replace("Attn", attention)


def _llama(hf: dict) -> dict:
    """The settings that Llama and all that descend from it share."""
    dim, heads = _need(hf, "hidden_size"), _need(hf, "num_attention_heads")
    types = hf.get("layer_types") or ["full_attention"]
    return {
        "dim": dim,
        "num_layers": _need(hf, "num_hidden_layers"),
        "vocab_size": _need(hf, "vocab_size"),
        "max_seq_len": _need(hf, "max_position_embeddings"),
        "recipe": _pre_norm(_attention(hf, types, **_bias(hf))),
        "num_q_heads": heads,
        "num_kv_heads": hf.get("num_key_value_heads") or heads,
        "head_dim": hf.get("head_dim") or dim // heads,
        "mlp_hidden": _need(hf, "intermediate_size"),
        "mlp_nonlinearity": _activation(hf, "hidden_act"),
        "mlp_bias": bool(hf.get("mlp_bias")),
        "norm_eps": hf.get("rms_norm_eps", 1e-6),
        "rope_theta": _rope_theta(hf),
        "tied_head": bool(hf.get("tie_word_embeddings", False)),
    }


def _mistral(hf: dict) -> dict:
    return _llama(hf) | {"recipe": _pre_norm(_attention(hf, ["sliding_attention"]))}


def _qwen3(hf: dict) -> dict:
    if not hf.get("use_sliding_window"):
        hf = hf | {"sliding_window": None}
    elif not hf.get("layer_types"):
        kinds, first = ["full_attention", "sliding_attention"], hf["max_window_layers"]
        hf = hf | {"layer_types": [kinds[i >= first] for i in range(_need(hf, "num_hidden_layers"))]}
    return _llama(hf) | {"qk_norm": True}


def _gpt2(hf: dict) -> dict:
    """GPT-2: LayerNorm, learned positions and biases everywhere."""
    _refuse(hf, "scale_attn_weights", True, why="our scores are always divided by sqrt(head_dim)")
    _refuse(hf, "scale_attn_by_inverse_layer_idx", False, why="our scores are divided by sqrt(head_dim) alone")
    _refuse(hf, "add_cross_attention", False, why="this is a decoder-only model")
    return {
        "dim": _need(hf, "n_embd"),
        "num_layers": _need(hf, "n_layer"),
        "vocab_size": _need(hf, "vocab_size"),
        "max_seq_len": _need(hf, "n_positions"),
        "recipe": _pre_norm("Attn(bias=true)"),
        "num_q_heads": _need(hf, "n_head"),
        "num_kv_heads": hf["n_head"],
        "mlp_hidden": hf.get("n_inner") or 4 * hf["n_embd"],
        "mlp_gated": False,
        "mlp_nonlinearity": _activation(hf, "activation_function"),
        "mlp_bias": True,
        "norm_type": "LayerNorm",
        "norm_bias": True,
        "norm_eps": hf.get("layer_norm_epsilon", 1e-5),
        "positions": "learned",
        "tied_head": bool(hf["tie_word_embeddings"]),
    }


def _split_gpt2(weights: Weights, hf: dict) -> Weights:
    """GPT-2 keeps its matrices transposed (inputs, outputs), and queries, keys and values in one of them."""
    found = {}
    for name, tensor in weights.items():
        name = name.removeprefix("transformer.")
        if re.search(r"\.c_(attn|proj|fc)\.weight$", name):
            tensor = tensor.T
        if ".attn.c_attn." in name:
            found |= {name.replace("c_attn", part): piece for part, piece in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            found[name] = tensor
    if "wpe.weight" in found:
        found["wpe.weight"] = found["wpe.weight"][: hf["n_positions"]]  # fewer where a shorter context is asked for
    return found


def _gemma2(hf: dict) -> dict:
    """Gemma 2: a second norm behind each block, scaled embeddings, every other layer with a window, capped scores."""
    _refuse(hf, "use_bidirectional_attention", False, why="our attention is causal")
    _refuse(hf, "final_logit_softcapping", why="our head's logits are not capped")
    types = hf.get("layer_types") or ["sliding_attention", "full_attention"]
    cap = hf.get("attn_logit_softcapping")
    attention = _attention(hf, types, **({"cap": cap} if cap else {}), **_bias(hf))
    if cap:
        attention = attention.replace("Attn", "SoftCapAttn")
    _need(hf, "head_dim")
    hf = hf | {"hidden_act": hf.get("hidden_activation") or hf.get("hidden_act")}
    return _llama(hf) | {"recipe": SANDWICH.replace("Attn", attention), "scale_first_residual": True}


def _prepare_gemma2(weights: Weights, hf: dict) -> Weights:
    """Gemma's norms multiply by 1 + w, and its scores are divided by another root than that of head_dim."""
    scale = (hf["head_dim"] / _need(hf, "query_pre_attn_scalar")) ** 0.5
    weights = {name: 1 + w.float() if name.endswith("norm.weight") else w for name, w in weights.items()}
    return {name: w * scale if ".q_proj." in name else w for name, w in weights.items()}


def _olmo2(hf: dict) -> dict:
    """OLMo 2: norms behind the blocks alone, and queries and keys normalised over all heads together."""
    attention = _attention(hf, ["full_attention"], **_bias(hf)).replace("Attn", "FlatNormAttn")
    return _llama(hf) | {"recipe": f"{attention}->Norm->+->MLP->Norm->+"}


FAMILIES = {
    "llama": Family(_llama, PARTS, ENDS),
    "mistral": Family(_mistral, PARTS, ENDS),
    "qwen3": Family(_qwen3, PARTS, ENDS),
    "gemma2": Family(_gemma2, GEMMA2_PARTS, ENDS, prepare=_prepare_gemma2),
    "olmo2": Family(_olmo2, OLMO2_PARTS, ENDS),
    "gpt2": Family(_gpt2, GPT2_PARTS, GPT2_ENDS, layers="h", prepare=_split_gpt2),
}

# ---------------------------------------------------------------- Hugging Face: reading


def from_hf(source: Any, *, max_seq_len: int | None = None) -> GPT:
    """A `GPT` with the logits of someone else's model, in fp32 and in eval mode.

    source: a folder with config.json and safetensors (one file, or several with their index), or a model object of
    transformers.  max_seq_len: a shorter context than the model's own, which makes a smaller decode cache.
    Raises: ValueError for an architecture or a setting that a `GPT` cannot hold, and for files that are damaged or do
    not fit together; FileNotFoundError for a missing one. Code that lies in the folder is not run.
    """
    hf, weights = _read_folder(source) if isinstance(source, str | Path) else _read_object(source)
    family = FAMILIES.get(str(hf.get("model_type")))
    if family is None:
        raise ValueError(f"model_type={hf.get('model_type')!r} is unknown; from_hf reads {', '.join(FAMILIES)}")
    _refuse(hf, "quantization_config", why="load the model unquantized")
    hf = _shortened(DEFAULTS.get(hf["model_type"], {}) | hf, max_seq_len)
    model = _new(ModelConfig(**family.settings(hf)))
    _fill(model, family.prepare(weights, hf), family.name)
    return model.eval()


def _shortened(hf: dict, max_seq_len: int | None) -> dict:
    """The config with a context of at most `max_seq_len` tokens."""
    if max_seq_len is None:
        return hf
    name = "n_positions" if "n_positions" in hf else "max_position_embeddings"
    if max_seq_len > _need(hf, name):
        raise ValueError(f"max_seq_len={max_seq_len} exceeds the {name}={hf[name]} of the model: ask for less")
    return hf | {name: max_seq_len}


def _new(cfg: ModelConfig) -> GPT:
    """GPT(cfg), without drawing from the random state that the caller's own numbers come from."""
    with torch.random.fork_rng(devices=[]):
        return GPT(cfg)


def _read_object(model) -> tuple[dict, Weights]:
    if not (hasattr(model, "state_dict") and hasattr(getattr(model, "config", None), "to_dict")):
        raise TypeError(f"source={type(model).__name__}: give a folder or a model object of transformers")
    return model.config.to_dict(), {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}


def _read_folder(source: str | Path) -> tuple[dict, Weights]:
    folder = model_folder(Path(source))
    if not folder.is_dir():
        raise FileNotFoundError(f"{shown(folder)}: no such folder; give one that holds config.json and safetensors")
    hf = read_json(folder / "config.json")
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return hf, _read_weights(folder, "model.safetensors")
    weights = {}
    for file in sorted(set(_shards(index))):
        weights |= _read_weights(folder, file)
    return hf, weights


def _shards(index: Path) -> list[str]:
    """The names of the files that an index leads to: files beside it, nothing else."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(f, str) and Path(f).name == f for f in files.values()):
        raise ValueError(f"{shown(index)} must hold a 'weight_map' from weights to the names of files beside it")
    return list(files.values())


def _read_weights(folder: Path, file: str) -> Weights:
    if (folder / file).is_file():
        return read_weights(folder / file)[0]
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise ValueError(f"{shown(folder)} holds no {file}, only {pickles[0]}; {NO_PICKLE}")
    raise FileNotFoundError(f"{shown(folder)} holds no {file}: copy it there from where the model came from")


@torch.no_grad()
def _fill(model: GPT, weights: Weights, name_of: Callable[[str], str]) -> None:
    """Copies every weight to its place. Raises ValueError if one is missing, of another shape, or left over."""
    state = model.state_dict()
    if model.cfg.tied_head:
        del state["head.weight"]
        weights = _without_head(weights, name_of("head.weight"), name_of("embed.weight"))
    names = {name: name_of(name) for name in state}
    missing = [theirs for theirs in names.values() if theirs not in weights]
    extra = [theirs for theirs in weights if theirs not in set(names.values()) and not IGNORED.search(theirs)]
    if missing or extra:
        raise ValueError(f"the weights do not fit the config: missing {_few(missing)}; not expected {_few(extra)}")
    for name, parameter in state.items():
        theirs = weights[names[name]]
        if theirs.shape != parameter.shape:
            raise ValueError(
                f"the weights do not fit the config: {names[name]} is {tuple(theirs.shape)}, "
                f"where the config asks for {tuple(parameter.shape)}"
            )
        parameter.copy_(theirs)


def _without_head(weights: Weights, head: str, embed: str) -> Weights:
    """The weights without a head that is the embedding once more. Raises ValueError if it is another matrix."""
    if head in weights and embed in weights and not torch.equal(weights[head], weights[embed]):
        raise ValueError(f"the config ties {head} to {embed} (tie_word_embeddings), but the weights hold two values")
    return {name: tensor for name, tensor in weights.items() if name != head}


def _few(names: list[str], few: int = 3) -> str:
    return (", ".join(names[:few]) or "none") + (f" and {len(names) - few} more" if len(names) > few else "")


# ---------------------------------------------------------------- Hugging Face: writing

CLASSES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM", "mistral": "MistralForCausalLM"}
HF_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")


def to_hf(model: GPT, tok: Tokenizer, folder: str | Path) -> Path:
    """Writes a folder that transformers' AutoModelForCausalLM and AutoTokenizer load; returns it.

    The model becomes a Llama, with `qk_norm` a Qwen3, with a window in each layer (or a head_dim that Llama refuses) a
    Mistral, with equal logits in fp32. AutoTokenizer gives the ids of `tok.encode(text)`, BOS in front, and
    `decode(ids, skip_special_tokens=True)` the text of `tok.decode(ids)`; only bytes that form no character may come
    out as another number of U+FFFD. Dropout is left behind. A folder written by an earlier call is replaced.
    Raises: ValueError for a setting that none of these architectures holds, a tokenizer of another vocabulary, or a
    folder that holds other files; OSError if it can't be written.
    """
    import safetensors.torch

    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    _check_vocabulary(model.cfg, tok)
    cfg = _plain_config(model.cfg)
    hf = _hf_config(cfg)
    family = FAMILIES[hf["model_type"]]
    weights = {family.name(name): tensor for name, tensor in _plain_weights(model, cfg).items()}
    special = {"bos_token_id": tok.bos_id, "eos_token_id": tok.eos_id, "pad_token_id": tok.pad_id}
    contents = {
        "config.json": json_text(hf | special),
        "generation_config.json": json_text(special),
        **_tokenizer_files(tok, cfg.max_seq_len),
        "model.safetensors": safetensors.torch.save(weights, {"format": "pt"}),
    }
    return _write_folder(model_folder(Path(folder)), contents)


def _check_vocabulary(cfg: ModelConfig, tok: Tokenizer) -> None:
    if cfg.vocab_size != tok.vocab_size:
        raise ValueError(
            f"vocab_size={cfg.vocab_size} of the model differs from the tokenizer's {tok.vocab_size}: "
            "use the tokenizer that the model was trained with"
        )


def _plain_config(cfg: ModelConfig) -> ModelConfig:
    """The config with the fewest settings for the same function, `_plain_weights` making up for the others."""
    settings = {
        "mlp_hidden": int(cfg.mlp_hidden),
        "mlp_hidden_mult": 2.0,
        "norm_affine": cfg.norm_affine or cfg.norm_type == "RMSNorm",
        "scale_first_residual": False,
        "tied_head": cfg.tied_head and not cfg.scale_first_residual,
        "dropout_rate": 0.0,
    }
    if cfg.recipe == PRE_NORM:
        settings["recipe"] = ""
    if cfg.rope_dim in (None, cfg.head_dim):
        settings |= {"rope_dim": None, "positions": cfg.positions.replace("rope_interleaved", "rope")}
    return cfg.replace(**settings)


def _plain_weights(model: GPT, plain: ModelConfig) -> Weights:
    """The weights of GPT(plain) that give the model's logits: fp32 copies on the CPU, a tied head only once.

    A norm without a scale gets one of ones; scaled embeddings are written scaled, the head then not being tied to them;
    the rows of an interleaved RoPE are put in the order of the other one. Raises ValueError where they do not fit.
    """
    cfg = model.cfg
    weights = {name: tensor.detach().cpu().float().clone() for name, tensor in model.state_dict().items()}
    if cfg.recipe != plain.recipe:  # the same layer, its norms under other names
        for name, other in ((".norm.", ".attn_norm."), (".norm_2.", ".mlp_norm.")):
            weights = {key.replace(name, other): tensor for key, tensor in weights.items()}
    if cfg.positions != plain.positions:
        weights = {name: _halves(w, cfg) if ROTATED.search(name) else w for name, w in weights.items()}
    if cfg.scale_first_residual:
        weights["embed.weight"] *= cfg.dim**0.5
    expected = {name: tensor.shape for name, tensor in _new(plain).state_dict().items()}
    if not cfg.norm_affine:
        weights = {name: torch.ones(cfg.dim) for name in expected if name.endswith("norm.weight")} | weights
    if {name: tensor.shape for name, tensor in weights.items()} != expected:
        raise ValueError(
            "this model is not what GPT(model.cfg) builds (blocks exchanged by hand?): it can't be written"
        )
    if plain.tied_head:
        del weights["head.weight"]
    return weights


ROTATED = re.compile(r"\.(Wq|Wk|q_norm|k_norm)\.\w+$")  # what has a row for each channel that RoPE turns


def _halves(rows: Tensor, cfg: ModelConfig) -> Tensor:
    """Rows for RoPE on neighbouring channels (2i, 2i + 1), put in the order for RoPE on halves (i, i + K/2)."""
    return rows.view(-1, cfg.head_dim // 2, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _neighbours(rows: Tensor, cfg: ModelConfig) -> Tensor:
    """The inverse of `_halves`."""
    return rows.view(-1, 2, cfg.head_dim // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _hf_config(cfg: ModelConfig) -> dict:
    """config.json of the first architecture that holds `cfg`: one that, read back, gives `cfg` again."""
    obstacles = {}
    for model_type in ("qwen3",) if cfg.qk_norm else ("llama", "mistral"):
        hf = _describe(cfg, model_type)
        back = ModelConfig(**FAMILIES[model_type].settings(hf))
        obstacles[model_type] = [
            f"{field.name}={getattr(cfg, field.name)!r} (it would be {getattr(back, field.name)!r})"
            for field in dataclasses.fields(cfg)
            if field.name != "mlp_hidden_mult" and getattr(cfg, field.name) != getattr(back, field.name)
        ]
        if model_type == "llama" and cfg.dim % cfg.num_q_heads:
            obstacles["llama"].append(f"num_q_heads={cfg.num_q_heads} (it must divide dim={cfg.dim})")
        if not obstacles[model_type]:
            return hf
    nearest = min(obstacles, key=lambda name: len(obstacles[name]))
    raise ValueError(
        f"no stock architecture of transformers holds this model; the nearest, {nearest}, stands out in "
        f"{'; '.join(obstacles[nearest])}. save_model keeps it as it is"
    )


def _describe(cfg: ModelConfig, model_type: str) -> dict:
    """config.json as that architecture has it; what it has no setting for is left out."""
    theirs = {ours: name for name, ours in ACTIVATIONS.items()}
    window = re.search(r"window=(\d+)", cfg.recipe)
    hf = {
        "architectures": [CLASSES[model_type]],
        "model_type": model_type,
        "hidden_size": cfg.dim,
        "num_hidden_layers": cfg.num_layers,
        "vocab_size": cfg.vocab_size,
        "max_position_embeddings": cfg.max_seq_len,
        "num_attention_heads": cfg.num_q_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": int(cfg.head_dim),
        "intermediate_size": cfg.mlp_hidden,
        "hidden_act": theirs.get(cfg.mlp_nonlinearity, cfg.mlp_nonlinearity),
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,  # where transformers 4 looks; version 5 looks at the next line
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},
        "tie_word_embeddings": cfg.tied_head,
    }
    if model_type == "mistral":
        return hf | {"sliding_window": int(window[1]) if window else None}
    hf["attention_bias"] = "bias=true" in cfg.recipe
    return hf | ({"mlp_bias": cfg.mlp_bias} if model_type == "llama" else {})


def _write_folder(folder: Path, contents: dict[str, str | bytes]) -> Path:
    """Puts a folder together under a temporary name, then renames it, so that it is never there by halves."""
    if folder.exists():
        others = [path.name for path in folder.iterdir() if path.name not in HF_FILES]
        if others:
            raise ValueError(f"{shown(folder)} holds other files ({_few(others)}): choose a new or an empty folder")
    with clear_write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(folder)
        try:
            for file, content in contents.items():
                write_atomic(temporary / file, content)
            if folder.exists():
                shutil.rmtree(folder)
            os.rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(folder.parent)
    return folder


# ---------------------------------------------------------------- Hugging Face: tokenizers


def _tokenizer_files(tok: Tokenizer, max_seq_len: int) -> dict[str, str]:
    """tokenizer.json and tokenizer_config.json that encode and decode as `tok` does."""
    import tokenizers

    backend = _backend(tok)
    parts = {"bos_token": tok.bos_id, "eos_token": tok.eos_id, "pad_token": tok.pad_id}
    specials = {part: backend.id_to_token(i) for part, i in parts.items()}
    backend.add_special_tokens(list(dict.fromkeys(specials.values())))
    bos = specials["bos_token"]
    template = {"single": f"{bos} $A", "pair": f"{bos} $A {bos} $B", "special_tokens": [(bos, tok.bos_id)]}
    backend.post_processor = tokenizers.processors.TemplateProcessing(**template)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **specials,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # "<s>" in a text is that text, not the token
        "model_max_length": max_seq_len,
    }
    return {"tokenizer.json": backend.to_str(), "tokenizer_config.json": json_text(settings)}


def _backend(tok: Tokenizer):
    """A `tokenizers.Tokenizer` with the vocabulary of `tok`."""
    import tokenizers

    if isinstance(tok, SentencePieceTokenizer):
        return _from_sentencepiece(tok)
    if isinstance(tok, ByteTokenizer):
        return _from_bytes(tok)
    if tok.kind == "huggingface":
        return tokenizers.Tokenizer.from_str(json.dumps(json.loads(tok._file()[1])["tokenizer"]))
    raise ValueError(f"tokenizer={tok.name}: a tokenizer of kind {tok.kind!r} can't be written for AutoTokenizer")


def _from_bytes(tok: ByteTokenizer):
    """Bytes as GPT-2 writes them: each as a printable character."""
    import tokenizers
    from lab.tokenizers import BYTE_OF

    first = tok.vocab_size - 256
    vocabulary = {tok.piece(i): i for i in range(1, first)} | {c: first + byte for c, byte in BYTE_OF.items()}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({REPLACEMENT: tok.unk_id} | vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    return backend


def _from_sentencepiece(tok: SentencePieceTokenizer):
    """The same pieces and merges. Spaces stay spaces here, so that the character U+2581 needs no exception.

    sentencepiece joins, of all neighbours that form a piece, those whose piece scores highest; a list of merges in the
    order of the scores says the same. Of equal scores (Llama's runs of spaces) it takes the one furthest to the left;
    what stands there has grown longest, so longer left parts come first.
    """
    import tokenizers

    proto = _sentencepiece_proto(tok)
    kinds = proto.SentencePiece
    pieces = [piece.piece.replace(SPACE, " ") for piece in proto.pieces]
    fallback = proto.trainer_spec.byte_fallback
    if not fallback:  # an unknown character is decoded as U+FFFD; with bytes to fall back to there is none
        pieces[tok.unk_id] = REPLACEMENT
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for piece, entry in zip(pieces, proto.pieces, strict=True):
        if entry.type == kinds.NORMAL:
            cuts = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
            merges += [(entry.score, *map(len, cut), cut) for cut in cuts if set(cut) <= vocabulary.keys()]
    bpe = tokenizers.models.BPE(
        vocabulary,
        [cut for *_, cut in sorted(merges, reverse=True)],
        unk_token=pieces[tok.unk_id],
        fuse_unk=True,
        byte_fallback=fallback,
    )
    backend = tokenizers.Tokenizer(bpe)
    decoders, normalizers = tokenizers.decoders, tokenizers.normalizers
    steps = [decoders.ByteFallback(), decoders.Fuse()]
    changes = []
    if not fallback:
        changes.append(normalizers.Replace(REPLACEMENT, RESERVED))  # U+FFFD in a text is unknown like others
    if proto.normalizer_spec.add_dummy_prefix:
        changes += [normalizers.Prepend(" "), normalizers.Replace(SPACE, " ")]
        steps.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = normalizers.Sequence(changes) if changes else None
    backend.decoder = decoders.Sequence(steps)
    return backend


def _sentencepiece_proto(tok: SentencePieceTokenizer):
    """The model file as a protocol buffer. Raises ValueError for what no list of merges can express."""
    from sentencepiece import sentencepiece_model_pb2 as format

    proto = format.ModelProto()
    proto.ParseFromString(tok._file()[1])
    kind = format.TrainerSpec.ModelType.Name(proto.trainer_spec.model_type)
    if kind not in ("BPE", "CHAR"):
        raise ValueError(f"tokenizer={tok.name}: model_type={kind} has no merges; only BPE and CHAR can be written")
    normal = proto.normalizer_spec
    suffix = proto.trainer_spec.treat_whitespace_as_suffix
    if normal.precompiled_charsmap or normal.remove_extra_whitespaces or not normal.escape_whitespaces or suffix:
        raise ValueError(f"tokenizer={tok.name}: it changes the text before it cuts it (normalizer {normal.name!r})")
    symbols = [p.piece for p in proto.pieces if p.type == p.USER_DEFINED and len(p.piece) > 1]
    if symbols:
        raise ValueError(f"tokenizer={tok.name}: user-defined symbols such as {symbols[0]!r} can't be written")
    return proto


# ---------------------------------------------------------------- llama2.c

MAGIC = 0x616B3432  # "ak42", with which every version but the first begins
HEADER = "<7i"  # dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len
# The order of the weights. What belongs to a layer comes for each layer in turn; `cos` and `sin` are tables of RoPE
# that today's llama2.c skips; the head is only there if it is not the embedding.
ORDER = {
    0: "embed attn_norm attn.Wq attn.Wk attn.Wv attn.Wo mlp_norm mlp.Wgate mlp.Wdown mlp.Wup final_norm cos sin head",
    1: "attn_norm mlp_norm final_norm embed attn.Wq attn.Wk attn.Wv attn.Wo mlp.Wgate mlp.Wdown mlp.Wup head",
}
# How the file writes the first tokens; the line breaks keep them from being found in a text. `<pad>` is ours alone: it
# marks a tokenizer that puts no space before a text.
LLAMA2C_SPECIALS = {"<unk>": b"<unk>", "<s>": b"\n<s>\n", "</s>": b"\n</s>\n", "<pad>": b"\n<pad>\n"}


def from_llama2c(model_bin: str | Path, tokenizer_bin: str | Path) -> tuple[GPT, Tokenizer]:
    """The model (in eval mode) and the tokenizer of a pair of llama2.c's files, version 0 or 1.

    RoPE's base and the norms' eps, which the files do not hold, are llama2.c's own: 10,000 and 1e-5. As in llama2.c a
    space is put before a text, but not for a tokenizer that `to_llama2c` wrote from one which puts none.
    Raises: ValueError for files that are cut short, of another kind or version, or that do not fit one another.
    Source: github.com/karpathy/llama2.c, export.py and run.c. Its RoPE turns neighbouring channels, ours the halves of
    a head, so the rows of Wq and Wk are put in another order.
    """
    path = model_folder(Path(model_bin))
    content = path.read_bytes()
    version, start, cfg = _read_header(content, path)
    layout = _layout(cfg, version)
    expected = start + 4 * sum(int(np.prod(shape)) for _, shape in layout)
    if len(content) != expected:
        raise ValueError(
            f"{shown(path)} has {len(content):,} bytes, but its header asks for {expected:,}: "
            "it is cut short, or no model file of llama2.c"
        )
    tok = _read_tokenizer_bin(model_folder(Path(tokenizer_bin)), cfg.vocab_size)
    weights, numbers = {}, np.frombuffer(content, "<f4", offset=start)
    for name, shape in layout:
        piece, numbers = np.split(numbers, [int(np.prod(shape))])
        weights[f"{name}.weight"] = torch.tensor(piece).view(shape)
    weights = {name: _halves(w, cfg) if ROTATED.search(name) else w for name, w in weights.items()}
    model = _new(cfg)
    _fill(model, {name: tensor for name, tensor in weights.items() if name[:3] not in ("cos", "sin")}, str)
    return model.eval(), tok


def to_llama2c(
    model: GPT, tok: Tokenizer, model_bin: str | Path, tokenizer_bin: str | Path, *, version: int = 0
) -> None:
    """Writes a model and its tokenizer for llama2.c.

    version: 0, which `run` reads, or 1, the same numbers behind a header of 256 bytes.
    Ids stay what they are. Two things in `run` are not in the files: it puts a space before a prompt, and it takes it
    that byte b has the id b + 3, so that a character without a piece of its own comes out wrong in a prompt unless the
    tokenizer has its bytes there (ours have them further on). Text that the model writes is right in any case.
    Raises: ValueError for a setting or a tokenizer that the format can't hold.
    """
    if version not in ORDER:
        raise ValueError(f"version={version!r} is not written; choose 0, which llama2.c's run reads, or 1")
    model = getattr(model, "_orig_mod", model)
    _check_vocabulary(model.cfg, tok)
    cfg = _plain_config(model.cfg)
    _check_llama2c(cfg)
    tokenizer = _tokenizer_bin(tok)
    weights = _plain_weights(model, cfg)
    weights = {name: _neighbours(w, cfg) if ROTATED.search(name) else w for name, w in weights.items()}
    weights["cos.weight"], weights["sin.weight"] = rope_tables(torch.arange(cfg.max_seq_len), cfg)
    body = [weights[f"{name}.weight"].numpy().astype("<f4").tobytes() for name, _ in _layout(cfg, version)]
    write_atomic(model_folder(Path(model_bin)), _header(cfg, version) + b"".join(body))
    write_atomic(model_folder(Path(tokenizer_bin)), tokenizer)


def _header(cfg: ModelConfig, version: int) -> bytes:
    """The beginning of a model file. Version 0 says by the sign of the vocabulary whether the head is tied."""
    sizes = [cfg.dim, cfg.mlp_hidden, cfg.num_layers, cfg.num_q_heads, cfg.num_kv_heads]
    if version == 0:
        return struct.pack(HEADER, *sizes, cfg.vocab_size if cfg.tied_head else -cfg.vocab_size, cfg.max_seq_len)
    header = struct.pack("<Ii", MAGIC, version) + struct.pack(HEADER, *sizes, cfg.vocab_size, cfg.max_seq_len)
    return (header + bytes([cfg.tied_head])).ljust(256, b"\0")


def _read_header(content: bytes, path: Path) -> tuple[int, int, ModelConfig]:
    """(version, where the weights begin, config) of a model file."""
    new = content[:4] == struct.pack("<I", MAGIC)
    if len(content) < (256 if new else 28):
        raise ValueError(f"{shown(path)} has only {len(content)} bytes: it is cut short, or no model file of llama2.c")
    version = struct.unpack_from("<i", content, 4)[0] if new else 0
    if version not in ORDER:
        raise ValueError(
            f"{shown(path)}: version={version} of llama2.c's format can't be read (2 holds rounded weights)"
        )
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack_from(HEADER, content, 8 if new else 0)
    try:
        cfg = ModelConfig(
            dim=dim,
            mlp_hidden=hidden,
            num_layers=layers,
            num_q_heads=heads,
            num_kv_heads=kv_heads,
            vocab_size=abs(vocab),
            max_seq_len=length,
            tied_head=bool(content[36]) if new else vocab > 0,
        )
    except ValueError as error:
        raise ValueError(f"{shown(path)} is no model file of llama2.c, or a damaged one: {error}") from error
    if layers * dim > len(content):  # looked at here, before something is made for each layer
        raise ValueError(f"{shown(path)} is cut short, or no model file of llama2.c: {layers:,} layers can't be in it")
    return version, 256 if new else 28, cfg


def _layout(cfg: ModelConfig, version: int) -> list[tuple[str, tuple[int, ...]]]:
    """(our name, shape) of each tensor in the order of the file."""
    D, F, V, K = cfg.dim, cfg.mlp_hidden, cfg.vocab_size, cfg.head_dim
    H, G, table = cfg.num_q_heads * K, cfg.num_kv_heads * K, (cfg.max_seq_len, K // 2)
    shapes = {"embed": (V, D), "final_norm": (D,), "head": (V, D), "cos": table, "sin": table}
    per_layer = {
        "attn_norm": (D,), "mlp_norm": (D,), "attn.Wq": (H, D), "attn.Wk": (G, D), "attn.Wv": (G, D),
        "attn.Wo": (D, H), "mlp.Wgate": (F, D), "mlp.Wup": (F, D), "mlp.Wdown": (D, F),
    }  # fmt: skip
    layout = []
    for part in ORDER[version].split():
        if part in per_layer:
            layout += [(f"layers.{i}.{part}", per_layer[part]) for i in range(cfg.num_layers)]
        elif part != "head" or not cfg.tied_head:
            layout.append((part, shapes[part]))
    return layout


def _check_llama2c(cfg: ModelConfig) -> None:
    """Raises ValueError unless the format holds `cfg`: its header has seven sizes, all else is as llama2.c has it."""
    held = ("dim", "num_layers", "vocab_size", "max_seq_len", "num_q_heads", "num_kv_heads", "mlp_hidden", "tied_head")
    plain = ModelConfig()
    wanted = {f.name: getattr(plain, f.name) for f in dataclasses.fields(cfg) if f.name not in held}
    wanted["head_dim"] = cfg.dim / cfg.num_q_heads
    problems = [
        f"{name}={getattr(cfg, name)!r} (it must be {value!r})"
        for name, value in wanted.items()
        if getattr(cfg, name) != value
    ]
    if problems:
        raise ValueError(f"llama2.c's format can't hold this model: {'; '.join(problems)}")


def _tokenizer_bin(tok: Tokenizer) -> bytes:
    """tokenizer.bin: the length of the longest piece, then for each its score, its length and its bytes."""
    names = list(LLAMA2C_SPECIALS)
    if isinstance(tok, ByteTokenizer):
        pieces = [(tok.piece(i), 0.0) for i in range(4)] + [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    elif isinstance(tok, SentencePieceTokenizer):
        proto = _sentencepiece_proto(tok)
        pieces = [(piece.piece, piece.score) for piece in proto.pieces]
        names = names[:3] if proto.normalizer_spec.add_dummy_prefix else names
    else:
        raise ValueError(f"tokenizer={tok.name}: llama2.c needs scores, which a {tok.kind} tokenizer does not have")
    if [piece for piece, _ in pieces[:3]] != names[:3]:
        raise ValueError(f"tokenizer={tok.name}: llama2.c has <unk>, <s> and </s> as its first three ids")
    specials = {i: LLAMA2C_SPECIALS[name] for i, name in enumerate(names) if pieces[i][0] == name}
    ready = [(specials.get(i, piece.replace(SPACE, " ").encode()), score) for i, (piece, score) in enumerate(pieces)]
    longest = max(len(piece) for piece, _ in ready)
    return struct.pack("<I", longest) + b"".join(struct.pack("<fI", score, len(p)) + p for p, score in ready)


def _read_tokenizer_bin(path: Path, vocab_size: int) -> Tokenizer:
    content, at, pieces = path.read_bytes(), 4, []
    while at < len(content) and len(pieces) < vocab_size:
        if at + 8 > len(content):
            break
        score, length = struct.unpack_from("<fI", content, at)
        pieces.append((content[at + 8 : at + 8 + length], score))
        at += 8 + length
    if len(pieces) != vocab_size or at != len(content):
        raise ValueError(
            f"{shown(path)} does not hold the {vocab_size} pieces that the model asks for: it is cut short, belongs to "
            "another model, or is no tokenizer file of llama2.c"
        )
    if [piece for piece, _ in pieces[:3]] != list(LLAMA2C_SPECIALS.values())[:3]:
        raise ValueError(f"{shown(path)} is no tokenizer file of llama2.c: it does not begin with <unk>, <s>, </s>")
    if [piece for piece, _ in pieces[4:]] == [b"<0x%02X>" % byte for byte in range(256)]:
        return ByteTokenizer()
    try:
        return SentencePieceTokenizer(_sentencepiece_model(pieces), path.stem)
    except ValueError as error:
        raise ValueError(f"{shown(path)}: its pieces form no tokenizer, so it is damaged: {error}") from error


def _sentencepiece_model(pieces: list[tuple[bytes, float]]) -> bytes:
    """A sentencepiece model of these pieces and scores: llama2.c joins pieces by the same rule."""
    from sentencepiece import sentencepiece_model_pb2 as format

    proto = format.ModelProto()
    kinds = format.ModelProto.SentencePiece
    names = {written: name for name, written in LLAMA2C_SPECIALS.items()}
    for i, (piece, score) in enumerate(pieces):
        text = names.get(piece) or piece.decode().replace(" ", SPACE)  # UnicodeDecodeError is a ValueError
        special = kinds.UNKNOWN if i == 0 else kinds.CONTROL if piece in names else kinds.NORMAL
        byte = re.fullmatch(r"<0x[0-9A-F]{2}>", text)
        proto.pieces.add(piece=text, score=score, type=kinds.BYTE if byte else special)
    spec = proto.trainer_spec
    spec.model_type, spec.vocab_size, spec.unk_surface = format.TrainerSpec.BPE, len(pieces), REPLACEMENT
    spec.byte_fallback = any(piece.type == kinds.BYTE for piece in proto.pieces)
    ours = pieces[3:] and pieces[3][0] == LLAMA2C_SPECIALS["<pad>"]
    spec.unk_id, spec.bos_id, spec.eos_id, spec.pad_id = 0, 1, 2, 3 if ours else -1
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = not ours
    proto.normalizer_spec.remove_extra_whitespaces = False
    return proto.SerializeToString()
