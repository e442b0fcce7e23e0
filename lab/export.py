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
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from config import NONLINEARITIES, PRE_NORM, ModelConfig
from lab.files import json_text, read_json, shown, write_atomic
from lab.saving import NO_PICKLE, PICKLE_SUFFIXES, model_folder, read_weights
from model import GPT, rope_tables
from tokenizer import REPLACEMENT, RESERVED, SPACE, ByteTokenizer, SentencePieceTokenizer, Tokenizer

Weights = dict[str, Tensor]

# ---------------------------------------------------------------- Hugging Face: architectures

# How Llama-shaped models call our modules: those at the ends, and those of a layer.
ENDS = {"embed": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}
ATTENTION = {"Wq": "q_proj", "Wk": "k_proj", "Wv": "v_proj", "Wo": "o_proj", "q_norm": "q_norm", "k_norm": "k_norm"}
PARTS = {
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.Wgate": "mlp.gate_proj",
    "mlp.Wup": "mlp.up_proj",
    "mlp.Wdown": "mlp.down_proj",
} | {f"attn.{ours}": f"self_attn.{theirs}" for ours, theirs in ATTENTION.items()}
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
        """"layers.3.attn.Wq.weight" -> "model.layers.3.self_attn.q_proj.weight"; ours itself where it has no place."""
        layer = re.fullmatch(r"layers\.(\d+)\.(.+)\.(\w+)", ours)
        if layer and layer[2] in self.parts:
            return f"{self.layers}.{layer[1]}.{self.parts[layer[2]]}.{layer[3]}"
        part, _, kind = ours.rpartition(".")
        return f"{self.ends[part]}.{kind}" if part in self.ends else ours


def _need(hf: dict, name: str):
    if hf.get(name) is None:
        raise ValueError(f"config.json has no {name!r}: is it the config of a {hf.get('model_type')} model, whole?")
    return hf[name]


def _refuse(hf: dict, name: str, *held, why: str) -> None:
    """Raises ValueError if the setting is there with another value than those that the model holds."""
    if hf.get(name) not in (None, *held):
        raise ValueError(f"{name}={hf[name]!r} (model_type={hf['model_type']}) can't be held: {why}")


def _activation(hf: dict, name: str) -> str:
    ours = ACTIVATIONS.get(_need(hf, name), hf[name])
    if ours not in NONLINEARITIES:
        raise ValueError(f"{name}={hf[name]!r} can't be held: our MLP has {', '.join(NONLINEARITIES)}")
    return ours


def _rope_theta(hf: dict) -> float:
    """The base of the rotary angles. Configs hold it in one of two places; a stretched table is refused."""
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"rope_type={kind!r} can't be held: our RoPE turns by position * theta^(-2i/K), unscaled")
    return float(rope.get("rope_theta", hf.get("rope_theta") or 10_000.0))


def _attention(hf: dict, types: list[str] | None = None, **own) -> str:
    """`Attn` with its arguments as a recipe writes them: the window of each layer, and `own`.

    types: of each layer, "sliding_attention" or "full_attention"; None: all of them slide. A window that holds the whole
    context is none.
    """
    window = hf.get("sliding_window")
    if window is not None and window < hf["max_position_embeddings"]:
        values = [window if kind == "sliding_attention" else None for kind in types or ["sliding_attention"]]
        period = next(p for p in range(1, len(values) + 1) if all(v == values[i % p] for i, v in enumerate(values)))
        turns = ",".join("none" if value is None else str(value) for value in values[:period])
        own["window"] = f"cyc({turns})" if period > 1 else turns
    arguments = [f"{name}={value}" for name, value in own.items() if value != "none"]
    return f"Attn({','.join(arguments)})" if arguments else "Attn"


def _pre_norm(attention: str) -> str:
    """The recipe of a pre-norm layer; "", our default layer, where its attention needs no arguments."""
    return "" if attention == "Attn" else PRE_NORM.replace("Attn", attention)


def _llama(hf: dict) -> dict:
    """The settings that Llama and all that descend from it share."""
    dim, heads = _need(hf, "hidden_size"), _need(hf, "num_attention_heads")
    bias = {"bias": "true"} if hf.get("attention_bias") else {}
    types = hf.get("layer_types") or ["full_attention"]
    return {
        "dim": dim,
        "num_layers": _need(hf, "num_hidden_layers"),
        "vocab_size": _need(hf, "vocab_size"),
        "max_seq_len": _need(hf, "max_position_embeddings"),
        "recipe": _pre_norm(_attention(hf, types, **bias)),
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
    return _llama(hf) | {"recipe": _pre_norm(_attention(hf))}


def _qwen3(hf: dict) -> dict:
    if not hf.get("use_sliding_window"):
        hf = hf | {"sliding_window": None}
    elif not hf.get("layer_types"):
        first = hf.get("max_window_layers", 28)
        kinds = ["full_attention", "sliding_attention"]
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
        "tied_head": bool(hf.get("tie_word_embeddings", True)),
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
    return found


GPT2_PARTS = {
    "norm": "ln_1",
    "attn.Wq": "attn.q",
    "attn.Wk": "attn.k",
    "attn.Wv": "attn.v",
    "attn.Wo": "attn.c_proj",
    "norm_2": "ln_2",
    "mlp.Wup": "mlp.c_fc",
    "mlp.Wdown": "mlp.c_proj",
}
GPT2_ENDS = {"embed": "wte", "position_embed": "wpe", "final_norm": "ln_f", "head": "lm_head"}
FAMILIES = {
    "llama": Family(_llama, PARTS, ENDS),
    "mistral": Family(_mistral, PARTS, ENDS),
    "qwen3": Family(_qwen3, PARTS, ENDS),
    "gpt2": Family(_gpt2, GPT2_PARTS, GPT2_ENDS, layers="h", prepare=_split_gpt2),
}

# ---------------------------------------------------------------- Hugging Face: reading


def from_hf(source, *, max_seq_len: int | None = None) -> GPT:
    """A `GPT` with the logits of someone else's model, in fp32 and in eval mode.

    source: a folder with config.json and safetensors (one file, or several with their index), or a model object of
    transformers.  max_seq_len: a shorter context than the model's own, which makes a smaller decode cache.
    Raises: ValueError for an architecture or a setting that a `GPT` cannot hold, and for files that are damaged or do
    not fit together; FileNotFoundError for a missing one. Code that lies in the folder is not run.
    """
    hf, weights = _read_folder(source) if isinstance(source, str | Path) else _read_object(source)
    family = FAMILIES.get(hf.get("model_type"))
    if family is None:
        raise ValueError(f"model_type={hf.get('model_type')!r} is unknown; from_hf reads {', '.join(FAMILIES)}")
    _refuse(hf, "quantization_config", why="load the model unquantized")
    for name in ("max_position_embeddings", "n_positions"):
        if max_seq_len is not None and name in hf:
            if max_seq_len > hf[name]:
                raise ValueError(f"max_seq_len={max_seq_len} exceeds the {name}={hf[name]} of the model")
            hf = hf | {name: max_seq_len}
    cfg = ModelConfig(**family.settings(hf))
    model = _new(cfg)
    _fill(model, family.prepare(weights, hf), family.name)
    return model.eval()


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
        weights = {name: tensor for name, tensor in weights.items() if name != name_of("head.weight")}
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


def _few(names: list[str], few: int = 3) -> str:
    return (", ".join(names[:few]) or "none") + (f" and {len(names) - few} more" if len(names) > few else "")
