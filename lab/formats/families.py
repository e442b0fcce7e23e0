"""Six architectures of transformers: what their config.json says in our settings, and how their weights are called."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from config import NONLINEARITIES, PRE_NORM, SANDWICH, ModelConfig
from lab.formats.layer_form import LayerForm, module_names
from lab.formats.plain import Weights
from lab.formats.settings import flag, number, refuse, size, text

# The steps of a layer. OLMo 2 has norms behind its blocks alone.
STEPS = {name: tuple(recipe.split("->")) for name, recipe in (("pre", PRE_NORM), ("sandwich", SANDWICH))}
STEPS["behind"] = ("Attn", "Norm", "+", "MLP", "Norm", "+")
# What they call our modules: at the ends, and inside of a layer's blocks.
ENDS = {"embed": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}
PARTS = {
    "Wq": "q_proj", "Wk": "k_proj", "Wv": "v_proj", "Wo": "o_proj", "q_norm": "q_norm", "k_norm": "k_norm",
    "Wgate": "gate_proj", "Wup": "up_proj", "Wdown": "down_proj",
}  # fmt: skip
GPT2_ENDS = {"embed": "wte", "position_embed": "wpe", "final_norm": "ln_f", "head": "lm_head"}
# What transformers takes for a setting that config.json leaves out, where that is not the same for all.
DEFAULTS = {
    "mistral": {"sliding_window": 4096, "num_key_value_heads": 8},
    "qwen3": {"sliding_window": 4096, "max_window_layers": 28, "num_key_value_heads": 32, "head_dim": 128},
    "gemma2": {
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "query_pre_attn_scalar": 256,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    },
    "olmo2": {"rms_norm_eps": 1e-5},
    "gpt2": {"tie_word_embeddings": True, "activation_function": "gelu_new"},
}
# Nonlinearities whose names differ from ours.
ACTIVATIONS = {"swish": "silu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
ROPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Family:
    """An architecture of transformers, read and written.

    read: config.json -> settings of a ModelConfig.  write: those settings and the form of the layers -> config.json.
    modules: what a layer's modules are called, in the order in which they run.  parts: what stands in these.
    wanted: what `plain_config` is asked for, for a config.
    after_reading, before_writing: change the weights, under their names there, to what ours mean and back.
    strange: what transformers itself refuses in such a config, or "".
    """

    class_name: str
    read: Callable[[dict], dict]
    write: Callable[[ModelConfig, LayerForm], dict]
    modules: tuple[str, ...]
    parts: dict[str, str] = field(default_factory=lambda: PARTS)
    ends: dict[str, str] = field(default_factory=lambda: ENDS)
    layers: str = "model.layers"
    wanted: Callable[[ModelConfig], dict] = lambda cfg: {}
    after_reading: Callable[[Weights, dict], Weights] = lambda weights, hf: weights
    before_writing: Callable[[Weights], Weights] = lambda weights: weights
    strange: Callable[[ModelConfig], str] = lambda cfg: ""

    def name(self, ours: str, cfg: ModelConfig) -> str:
        """E.g. "layers.3.attn.Wq.weight" -> "model.layers.3.self_attn.q_proj.weight"."""
        if not ours.startswith("layers."):
            part, _, kind = ours.rpartition(".")
            return f"{self.ends[part]}.{kind}"
        _, layer, module, *parts, kind = ours.split(".")
        module = self.modules[module_names(cfg).index(module)]
        return ".".join([self.layers, layer, module, *(self.parts[part] for part in parts), kind])


# ---------------------------------------------------------------- what many share


def _activation(hf: dict, name: str) -> str:
    ours = ACTIVATIONS.get(text(hf, name), hf[name])
    if ours not in NONLINEARITIES:
        raise ValueError(f"{name}={hf[name]!r} can't be held: our MLP has {', '.join(NONLINEARITIES)}")
    return ours


def _written_activation(cfg: ModelConfig) -> str:
    return "gelu_pytorch_tanh" if cfg.mlp_nonlinearity == "gelu_tanh" else cfg.mlp_nonlinearity


def _rope(hf: dict) -> dict:
    """RoPE's base and its stretching, which configs hold in one of three places."""
    rope = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    if kind not in ROPES:
        raise ValueError(f"rope_type={kind!r} can't be held: our RoPE has {', '.join(ROPES)}")
    rope = {"model_type": hf["model_type"], "rope_theta": hf.get("rope_theta")} | rope
    refuse(rope, "partial_rotary_factor", 1, why="this architecture turns whole heads")
    settings = {"rope_theta": number(rope, "rope_theta", 10_000.0)}
    if kind == "default" or number(rope, "factor") == 1:
        return settings
    settings["rope_factor"] = rope["factor"]
    if kind == "llama3":
        for name, ours in (("low_freq_factor", 1), ("high_freq_factor", 4)):
            refuse(rope, name, ours, why=f"our RoPE follows Llama 3.1, which has {ours}")
        settings["rope_original_len"] = size(rope, "original_max_position_embeddings")
    return settings


def _written_rope(cfg: ModelConfig) -> dict:
    """The same for transformers 4, which reads the first entries, and for version 5, which looks at the last."""
    rope = {"rope_type": "default", "rope_theta": cfg.rope_theta}
    if cfg.rope_factor != 1:
        rope |= {"rope_type": "linear", "factor": float(cfg.rope_factor)}
    if cfg.rope_original_len is not None:
        rope |= {"rope_type": "llama3", "original_max_position_embeddings": cfg.rope_original_len}
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling = {} if cfg.rope_factor == 1 else {"rope_scaling": rope}
    return {"rope_theta": cfg.rope_theta, **scaling, "rope_parameters": rope}


def _windows(hf: dict, types: tuple[str, ...] = ("full_attention",)) -> tuple[int | None, ...]:
    """The window of each layer; one that holds the whole context is none.

    types: of each layer, "sliding_attention" or "full_attention", where the config has no layer_types; gone through
    again and again.
    """
    layers, given = size(hf, "num_hidden_layers"), hf.get("layer_types")
    types = given if given is not None else [types[i % len(types)] for i in range(layers)]
    if not isinstance(types, list | tuple) or not set(types) <= {"sliding_attention", "full_attention"}:
        raise ValueError(f"layer_types={types!r} can't be held: our attention is full, or slides")
    if len(types) != layers:
        raise ValueError(f"layer_types={types!r} has {len(types)} entries, but num_hidden_layers={layers}")
    window = None if hf.get("sliding_window") is None else size(hf, "sliding_window")
    if window is None or window >= size(hf, "max_position_embeddings"):
        return (None,) * layers
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _written_windows(form: LayerForm) -> dict:
    """The largest window stands for all, since a config has only one."""
    kinds = ["full_attention" if window is None else "sliding_attention" for window in form.windows]
    return {"sliding_window": max(filter(None, form.windows), default=None), "layer_types": kinds}


def _common(hf: dict, activation: str = "hidden_act") -> dict:
    """The settings that Llama and all that descend from it share, but for the recipe.

    activation: the name of the setting with the MLP's nonlinearity.
    """
    dim, heads = size(hf, "hidden_size"), size(hf, "num_attention_heads")
    return {
        "dim": dim,
        "num_layers": size(hf, "num_hidden_layers"),
        "vocab_size": size(hf, "vocab_size"),
        "max_seq_len": size(hf, "max_position_embeddings"),
        "num_q_heads": heads,
        "num_kv_heads": size(hf, "num_key_value_heads", heads),
        "head_dim": size(hf, "head_dim", dim // heads),
        "mlp_hidden": size(hf, "intermediate_size"),
        "mlp_nonlinearity": _activation(hf, activation),
        "norm_eps": number(hf, "rms_norm_eps", 1e-6),
        **_rope(hf),
        "tied_head": flag(hf, "tie_word_embeddings"),
    }


def _written_common(cfg: ModelConfig) -> dict:
    return {
        "hidden_size": cfg.dim,
        "num_hidden_layers": cfg.num_layers,
        "vocab_size": cfg.vocab_size,
        "max_position_embeddings": cfg.max_seq_len,
        "num_attention_heads": cfg.num_q_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": int(cfg.head_dim),
        "intermediate_size": cfg.mlp_hidden,
        "hidden_act": _written_activation(cfg),
        "rms_norm_eps": cfg.norm_eps,
        **_written_rope(cfg),
        "tie_word_embeddings": cfg.tied_head,
    }


def _heads_must_divide_dim(cfg: ModelConfig) -> str:
    return f"num_q_heads={cfg.num_q_heads} (it must divide dim={cfg.dim})" if cfg.dim % cfg.num_q_heads else ""


# ---------------------------------------------------------------- Llama, Mistral, Qwen3


def _read_llama(hf: dict) -> dict:
    form = LayerForm(STEPS["pre"], windows=_windows(hf), bias=flag(hf, "attention_bias"))
    return _common(hf) | {"recipe": form.recipe(), "mlp_bias": flag(hf, "mlp_bias")}


def _write_llama(cfg: ModelConfig, form: LayerForm) -> dict:
    return _written_common(cfg) | {"attention_bias": form.bias, "mlp_bias": cfg.mlp_bias}


def _read_mistral(hf: dict) -> dict:
    form = LayerForm(STEPS["pre"], windows=_windows(hf | {"layer_types": None}, ("sliding_attention",)))
    return _common(hf) | {"recipe": form.recipe()}


def _write_mistral(cfg: ModelConfig, form: LayerForm) -> dict:
    return _written_common(cfg) | {"sliding_window": _written_windows(form)["sliding_window"]}


def _read_qwen3(hf: dict) -> dict:
    if not flag(hf, "use_sliding_window"):
        hf = hf | {"sliding_window": None}
    elif hf.get("layer_types") is None:
        layers, first = size(hf, "num_hidden_layers"), size(hf, "max_window_layers", low=0)
        hf = hf | {"layer_types": [("full_attention", "sliding_attention")[i >= first] for i in range(layers)]}
    form = LayerForm(STEPS["pre"], windows=_windows(hf), bias=flag(hf, "attention_bias"))
    return _common(hf) | {"recipe": form.recipe(), "qk_norm": True}


def _write_qwen3(cfg: ModelConfig, form: LayerForm) -> dict:
    windows = _written_windows(form) | {"use_sliding_window": True} if any(form.windows) else {}
    return _written_common(cfg) | {"attention_bias": form.bias} | windows


# ---------------------------------------------------------------- Gemma 2


def _read_gemma2(hf: dict) -> dict:
    """A second norm behind each block, scaled embeddings, every other layer with a window, capped scores and logits."""
    refuse(hf, "use_bidirectional_attention", False, why="our attention is causal")
    cap = number(hf, "attn_logit_softcapping", None)
    form = LayerForm(
        STEPS["sandwich"],
        attention="MQA" if cap is None else "SoftCapAttn",
        windows=_windows(hf, ("sliding_attention", "full_attention")),
        bias=flag(hf, "attention_bias"),
        cap=cap,
    )
    return _common(hf, "hidden_activation") | {
        "recipe": form.recipe(),
        "scale_first_residual": True,
        "logit_cap": number(hf, "final_logit_softcapping", None),
    }


def _write_gemma2(cfg: ModelConfig, form: LayerForm) -> dict:
    windows = _written_windows(form)
    return _written_common(cfg) | {
        "hidden_activation": _written_activation(cfg),
        "layer_types": windows["layer_types"],
        "sliding_window": windows["sliding_window"] or cfg.max_seq_len,  # transformers wants one in any case
        "query_pre_attn_scalar": int(cfg.head_dim),
        "attention_bias": form.bias,
        "attn_logit_softcapping": form.cap,
        "final_logit_softcapping": cfg.logit_cap,
    }


def _from_gemma2(weights: Weights, hf: dict) -> Weights:
    """Gemma's norms multiply by 1 + w, and its scores are divided by another root than that of head_dim."""
    scale = (size(hf, "head_dim") / number(hf, "query_pre_attn_scalar")) ** 0.5
    weights = {name: 1 + w.float() if name.endswith("norm.weight") else w for name, w in weights.items()}
    return {name: w * scale if ".q_proj." in name else w for name, w in weights.items()}


def _to_gemma2(weights: Weights) -> Weights:
    return {name: w - 1 if name.endswith("norm.weight") else w for name, w in weights.items()}


# ---------------------------------------------------------------- OLMo 2


def _read_olmo2(hf: dict) -> dict:
    """Norms behind the blocks alone, and queries and keys normalised over all heads together."""
    form = LayerForm(STEPS["behind"], "FlatNormAttn", bias=flag(hf, "attention_bias"))
    return _common(hf) | {"recipe": form.recipe()}


def _write_olmo2(cfg: ModelConfig, form: LayerForm) -> dict:
    return _written_common(cfg) | {"attention_bias": form.bias}


# ---------------------------------------------------------------- GPT-2


def _read_gpt2(hf: dict) -> dict:
    """LayerNorm, learned positions and biases everywhere."""
    refuse(hf, "scale_attn_weights", True, why="our scores are always divided by sqrt(head_dim)")
    refuse(hf, "scale_attn_by_inverse_layer_idx", False, why="our scores are divided by sqrt(head_dim) alone")
    refuse(hf, "add_cross_attention", False, why="this is a decoder-only model")
    dim, heads = size(hf, "n_embd"), size(hf, "n_head")
    return {
        "dim": dim,
        "num_layers": size(hf, "n_layer"),
        "vocab_size": size(hf, "vocab_size"),
        "max_seq_len": size(hf, "n_positions"),
        "recipe": LayerForm(STEPS["pre"], bias=True).recipe(),
        "num_q_heads": heads,
        "num_kv_heads": heads,
        "head_dim": dim // heads,
        "mlp_hidden": size(hf, "n_inner", 4 * dim),
        "mlp_gated": False,
        "mlp_nonlinearity": _activation(hf, "activation_function"),
        "mlp_bias": True,
        "norm_type": "LayerNorm",
        "norm_bias": True,
        "norm_eps": number(hf, "layer_norm_epsilon", 1e-5),
        "positions": "learned",
        "tied_head": flag(hf, "tie_word_embeddings"),
    }


def _write_gpt2(cfg: ModelConfig, form: LayerForm) -> dict:
    return {
        "n_embd": cfg.dim,
        "n_layer": cfg.num_layers,
        "n_head": cfg.num_q_heads,
        "n_positions": cfg.max_seq_len,
        "n_inner": cfg.mlp_hidden,
        "vocab_size": cfg.vocab_size,
        "activation_function": _written_activation(cfg),
        "layer_norm_epsilon": cfg.norm_eps,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "tie_word_embeddings": cfg.tied_head,
    }


def _from_gpt2(weights: Weights, hf: dict) -> Weights:
    """GPT-2 keeps its matrices transposed (inputs, outputs), and queries, keys and values in one of them."""
    found = {}
    for name, tensor in weights.items():
        name = name.removeprefix("transformer.")
        if re.search(r"\.c_(attn|proj|fc)\.weight$", name):
            tensor = tensor.T
        if ".attn.c_attn." in name:
            found |= {name.replace("c_attn", part): piece for part, piece in zip("qkv", tensor.chunk(3))}
        else:
            found[name] = tensor
    if "wpe.weight" in found:
        found["wpe.weight"] = found["wpe.weight"][: hf["n_positions"]]  # fewer where a shorter context is asked for
    return found


def _to_gpt2(weights: Weights) -> Weights:
    """The inverse of `_from_gpt2`."""
    found = {}
    for name, tensor in weights.items():
        if ".attn.k." in name or ".attn.v." in name:
            continue
        if ".attn.q." in name:
            tensor = torch.cat([weights[name.replace(".q.", f".{part}.")] for part in "qkv"])
            name = name.replace(".q.", ".c_attn.")
        if re.search(r"\.c_(attn|proj|fc)\.weight$", name):
            tensor = tensor.T.contiguous()
        found[name if name.startswith("lm_head") else f"transformer.{name}"] = tensor
    return found


def _gpt2_wants(cfg: ModelConfig) -> dict:
    biases = {"mlp_bias": True, "norm_bias": True, "attention_bias": True}
    return biases | {"positions": "learned", "num_kv_heads": cfg.num_q_heads}


PRE_NORM_MODULES = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")

# In the order in which `to_hf` looks for one that holds a model.
FAMILIES = {
    "llama": Family("LlamaForCausalLM", _read_llama, _write_llama, PRE_NORM_MODULES, strange=_heads_must_divide_dim),
    "mistral": Family("MistralForCausalLM", _read_mistral, _write_mistral, PRE_NORM_MODULES),
    "qwen3": Family("Qwen3ForCausalLM", _read_qwen3, _write_qwen3, PRE_NORM_MODULES),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        _read_gemma2,
        _write_gemma2,
        modules=(
            "input_layernorm", "self_attn", "post_attention_layernorm",
            "pre_feedforward_layernorm", "mlp", "post_feedforward_layernorm",
        ),
        wanted=lambda cfg: {"scale_first_residual": True},
        after_reading=_from_gemma2,
        before_writing=_to_gemma2,
        strange=_heads_must_divide_dim,
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        _read_olmo2,
        _write_olmo2,
        modules=("self_attn", "post_attention_layernorm", "mlp", "post_feedforward_layernorm"),
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        _read_gpt2,
        _write_gpt2,
        modules=("ln_1", "attn", "ln_2", "mlp"),
        parts={"Wq": "q", "Wk": "k", "Wv": "v", "Wo": "c_proj", "Wup": "c_fc", "Wdown": "c_proj"},
        ends=GPT2_ENDS,
        layers="h",
        wanted=_gpt2_wants,
        after_reading=_from_gpt2,
        before_writing=_to_gpt2,
        strange=_heads_must_divide_dim,
    ),
}  # fmt: skip
