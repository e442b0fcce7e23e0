"""Models in and out of other people's formats, against transformers itself and against readers written here."""

import json
import struct
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from config import NONLINEARITIES, PRE_NORM, SANDWICH, ModelConfig
from lab.export import from_hf, from_llama2c, to_hf, to_llama2c
from lab.tokenizers import HuggingFaceTokenizer
from model import GPT
from tokenizer import ByteTokenizer, get_tokenizer

SIZES = dict(
    vocab_size=50,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
)
NO_IDS = dict(pad_token_id=None, bos_token_id=None, eos_token_id=None)
GEMMA2 = dict(head_dim=8, query_pre_attn_scalar=6, sliding_window=5)
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 500.0,
}
GPT2 = dict(vocab_size=50, n_embd=24, n_layer=3, n_head=4, n_positions=32)
ARCHITECTURES = {
    "llama": ("LlamaConfig", SIZES | dict(rope_theta=500.0)),
    "llama, tied, head_dim": ("LlamaConfig", SIZES | dict(head_dim=8, tie_word_embeddings=True)),
    "llama, biases": ("LlamaConfig", SIZES | dict(attention_bias=True, mlp_bias=True, hidden_act="gelu")),
    "llama, linear RoPE": ("LlamaConfig", SIZES | dict(rope_parameters=LINEAR)),
    "llama 3.1": ("LlamaConfig", SIZES | dict(rope_parameters=LLAMA3, head_dim=12)),
    "mistral": ("MistralConfig", SIZES | dict(sliding_window=None)),
    "mistral, window": ("MistralConfig", SIZES | dict(sliding_window=5)),
    "qwen3": ("Qwen3Config", SIZES | dict(head_dim=8)),
    "qwen3, windows": (
        "Qwen3Config",
        SIZES | dict(head_dim=6, use_sliding_window=True, sliding_window=4, max_window_layers=2),
    ),
    "gpt2": ("GPT2Config", GPT2 | dict(activation_function="gelu")),
    "gpt2, untied": ("GPT2Config", GPT2 | dict(activation_function="relu", tie_word_embeddings=False, n_inner=30)),
    "gemma2": (
        "Gemma2Config",
        SIZES | GEMMA2 | dict(hidden_activation="gelu", attn_logit_softcapping=2.0),
    ),
    "gemma2, no cap": (
        "Gemma2Config",
        SIZES
        | GEMMA2
        | dict(
            hidden_activation="silu",
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
            tie_word_embeddings=False,
        ),
    ),
    "gemma2, as published": ("Gemma2Config", SIZES),
    "gemma2, llama3 RoPE": ("Gemma2Config", SIZES | GEMMA2 | dict(final_logit_softcapping=3.0, rope_parameters=LLAMA3)),
    "olmo2": ("Olmo2Config", SIZES),
}
if "gelu_tanh" in NONLINEARITIES:
    ARCHITECTURES["gpt2, as published"] = ("GPT2Config", GPT2)
    ARCHITECTURES["gemma2, tanh"] = ("Gemma2Config", SIZES | GEMMA2)


def theirs(name: str, **changes):
    """A small transformers model with random weights everywhere, norms and biases too."""
    transformers = pytest.importorskip("transformers")
    kind, settings = ARCHITECTURES[name]
    config = getattr(transformers, kind)(**NO_IDS | settings | changes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def ours(tok, **settings) -> GPT:
    """A small GPT for a tokenizer, with random weights everywhere."""
    sizes = dict(dim=24, num_layers=2, vocab_size=tok.vocab_size, max_seq_len=32, num_q_heads=4, mlp_hidden=40)
    model = GPT(ModelConfig(**sizes | settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


@torch.no_grad()
def difference(a, b, vocab_size: int = 50) -> float:
    """The largest difference of two models' logits; what the first says must depend on the tokens."""
    tokens = torch.randint(0, vocab_size, (3, 13))
    one, two = (getattr(out, "logits", out) for out in (a(tokens), b(tokens)))
    assert one.std(dim=1).max() > 0.1
    return (one - two).abs().max().item()


# ---------------------------------------------------------------- from Hugging Face


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_those_of_transformers(name, tmp_path):
    model = theirs(name)
    assert difference(model, from_hf(model)) <= 1e-5
    model.save_pretrained(tmp_path)
    loaded = from_hf(tmp_path)
    assert difference(model, loaded) <= 1e-5
    assert not loaded.training


def test_what_is_loaded_decodes_step_by_step():
    model = from_hf(theirs("gemma2"))
    tokens = torch.randint(0, 50, (2, 13))
    ctx = model.context(tokens, decode=True)
    with torch.no_grad():
        steps = torch.cat([model(tokens[:, t : t + 1], ctx) for t in range(13)], dim=1)
        assert torch.allclose(steps, model(tokens), atol=1e-5)


def test_windows_become_a_recipe_and_one_that_holds_the_context_is_none():
    assert from_hf(theirs("mistral, window")).cfg.recipe == "Norm->Attn(window=5)->+->Norm->MLP->+"
    assert "window=cyc(none,none,4,4)" in from_hf(theirs("qwen3, windows")).cfg.recipe
    assert "window=cyc(5,none)" in from_hf(theirs("gemma2")).cfg.recipe
    assert from_hf(theirs("mistral, window", sliding_window=32)).cfg.recipe == ""
    short = from_hf(theirs("mistral, window"), max_seq_len=5)
    assert (short.cfg.recipe, short.cfg.max_seq_len) == ("", 5)
    assert from_hf(theirs("gpt2"), max_seq_len=20).position_embed.weight.shape == (20, 24)


def test_weights_in_several_files_and_in_bf16(tmp_path):
    model = theirs("llama")
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert difference(model, from_hf(tmp_path)) <= 1e-5
    half = from_hf(model.to(torch.bfloat16))
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    assert torch.equal(half.layers[3].mlp.Wup.weight, model.model.layers[3].mlp.up_proj.weight.float())


def test_old_configs_without_newer_settings(tmp_path):
    model = theirs("llama", rope_theta=10_000.0, num_key_value_heads=4, rms_norm_eps=1e-6)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("rope_parameters", "num_key_value_heads", "head_dim", "attention_bias", "mlp_bias", "rms_norm_eps"):
        config.pop(name)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert difference(model, from_hf(tmp_path)) <= 1e-5


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"model_type": "mamba"}, "model_type='mamba' is unknown; from_hf reads llama"),
        ("llama", {"rope_parameters": LLAMA3 | {"low_freq_factor": 2.0}}, r"low_freq_factor=2\.0.*has 1"),
        ("llama", {"rope_parameters": LLAMA3 | {"high_freq_factor": 8.0}}, r"high_freq_factor=8\.0.*has 4"),
        ("llama", {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": None}}, "original_max_position"),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "factor=None"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type='dynamic' can't be held"),
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type='yarn' can't be held.*linear, llama3"),
        ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "rope_type='longrope' can't be held"),
        ("llama", {"rope_parameters": LINEAR | {"factor": 0.5}}, r"rope_factor=0\.5"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ("llama", {"hidden_act": "mish"}, "hidden_act='mish' can't be held: our MLP has silu"),
        ("llama", {"hidden_size": None}, "hidden_size=None"),
        ("llama", {"num_attention_heads": 0}, "num_attention_heads=0"),
        ("llama", {"num_hidden_layers": "4"}, "num_hidden_layers='4'"),
        ("llama", {"num_hidden_layers": 3}, "not expected model.layers.3"),
        ("llama", {"num_hidden_layers": 5}, "missing model.layers.4"),
        ("llama", {"intermediate_size": 44}, r"mlp.gate_proj.weight is \(40, 24\).*asks for \(44, 24\)"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config="),
        ("qwen3", {"layer_types": ["chunked_attention"]}, "layer_types="),
        ("llama", {"rope_parameters": "none"}, "rope_type='none'"),
        ("llama", {"tie_word_embeddings": True}, "ties lm_head.weight to model.embed_tokens.weight"),
        ("llama", {"vocab_size": 50.0}, r"vocab_size=50\.0"),
        ("llama", {"num_key_value_heads": "2"}, "num_key_value_heads='2'.*whole number"),
        ("llama", {"head_dim": [6]}, r"head_dim=\[6\]"),
        ("llama", {"rms_norm_eps": "1e-6"}, "rms_norm_eps='1e-6'.*positive number"),
        ("llama", {"rope_parameters": {"rope_theta": "ten"}}, "rope_theta='ten'"),
        ("llama", {"tie_word_embeddings": "false"}, "tie_word_embeddings='false'.*true or false"),
        ("llama", {"mlp_bias": 1}, "mlp_bias=1"),
        ("llama", {"model_type": ["llama"]}, "model_type="),
        ("llama", {"hidden_act": 3}, "hidden_act=3"),
        ("gemma2", {"hidden_activation": 3}, "hidden_activation=3"),
        ("qwen3, windows", {"layer_types": None, "max_window_layers": "2"}, "max_window_layers='2'.*from 0 up"),
        ("mistral, window", {"sliding_window": "5"}, "sliding_window='5'"),
        ("gemma2", {"layer_types": ["full_attention"]}, "layer_types=.*1 entries, but num_hidden_layers=4"),
        ("gemma2", {"layer_types": "full_attention"}, "layer_types='full_attention'"),
        ("gemma2", {"final_logit_softcapping": 0.0}, "final_logit_softcapping=0.0.*positive"),
        ("gemma2", {"attn_logit_softcapping": "50"}, "attn_logit_softcapping='50'"),
        ("gemma2", {"query_pre_attn_scalar": None}, "query_pre_attn_scalar=None"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("gpt2", {"n_head": 5}, "the weights do not fit"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
    ],
)
def test_what_stands_in_the_way_is_named(name, changes, message, tmp_path):
    theirs(name).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=message):
        from_hf(tmp_path)


def test_settings_left_out_are_those_of_transformers(tmp_path):
    model = theirs("gemma2, as published")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    needed = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_", "max_position_embeddings")
    config = {name: value for name, value in config.items() if name.startswith(needed)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = from_hf(tmp_path)
    assert difference(model, loaded) <= 1e-5
    assert (loaded.cfg.logit_cap, loaded.cfg.head_dim, loaded.cfg.tied_head) == (30.0, 256, True)
    assert loaded.cfg.recipe == SANDWICH.replace("Attn", "SoftCapAttn(cap=50.0)")  # 4096 positions hold all 32


def test_stretched_rope_is_found_where_older_configs_have_it(tmp_path):
    for scaling, name in ((LLAMA3, "llama 3.1"), (LINEAR, "llama, linear RoPE")):
        model = theirs(name)
        model.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        rope = {key: value for key, value in scaling.items() if key not in ("rope_type", "rope_theta")}
        config |= {"rope_theta": 500.0, "rope_scaling": rope | {"type": scaling["rope_type"]}, "rope_parameters": None}
        (tmp_path / "config.json").write_text(json.dumps(config))
        loaded = from_hf(tmp_path)
        assert difference(model, loaded) <= 1e-5
        assert (loaded.cfg.rope_factor, loaded.cfg.rope_theta) == (scaling["factor"], 500.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value, tmp_path):
    model = theirs("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[1, :2] = value
    model.save_pretrained(tmp_path)
    for source in (tmp_path, model):
        with pytest.raises(ValueError, match=r"2 of the 960 numbers of model\.layers\.2\.mlp\.up_proj\.weight are NaN"):
            from_hf(source)


def test_rounded_weights_are_refused(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    theirs("llama").save_pretrained(tmp_path)
    weights = safetensors.load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.int8)
    safetensors.save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.norm\.weight holds torch\.int8.*unquantized"):
        from_hf(tmp_path)


def test_a_missing_file_of_several_is_named(tmp_path):
    theirs("llama").save_pretrained(tmp_path, max_shard_size="10KB")
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=f"holds no {lost.name}"):
        from_hf(tmp_path)


def test_too_long_a_context_and_no_model_at_all(tmp_path):
    with pytest.raises(ValueError, match="max_seq_len=33 exceeds"):
        from_hf(theirs("llama"), max_seq_len=33)
    with pytest.raises(TypeError, match="source=Linear"):
        from_hf(torch.nn.Linear(2, 2))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        from_hf(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        from_hf(tmp_path)


def test_damaged_folders_are_refused_and_no_code_or_pickle_is_opened(tmp_path):
    model = theirs("llama")
    model.save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    (tmp_path / "modeling_mine.py").write_text("raise SystemExit('run')")
    code = {"auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"}}
    config.write_text(json.dumps(json.loads(config.read_text()) | code))
    assert difference(model, from_hf(tmp_path)) <= 1e-5
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="cut short"):
        from_hf(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
        from_hf(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(ValueError, match="pickle"):
        from_hf(tmp_path)
    for wrong in ({"weight_map": {"lm_head.weight": "../outside.safetensors"}}, {"weights": {}}):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="weight_map"):
            from_hf(tmp_path)
    config.write_text("{")
    with pytest.raises(ValueError, match="torn"):
        from_hf(tmp_path)


# ---------------------------------------------------------------- to Hugging Face

GPT2_STYLE = dict(
    norm_type="LayerNorm", positions="learned", mlp_gated=False, mlp_nonlinearity="gelu_tanh", num_kv_heads=4
)
HELD = {
    "llama": (512, {}, "LlamaForCausalLM"),
    "llama, untied, biases": (
        "byte",
        dict(
            tied_head=False, mlp_bias=True, recipe=PRE_NORM.replace("Attn", "Attn(bias=true)"), mlp_nonlinearity="gelu"
        ),
        "LlamaForCausalLM",
    ),
    "llama, written as a recipe": (128, dict(recipe=PRE_NORM, rope_theta=300.0, norm_eps=1e-3), "LlamaForCausalLM"),
    "scaled embeddings, norms without scale": (
        "characters",
        dict(scale_first_residual=True, norm_affine=False, mlp_nonlinearity="relu2", dropout_rate=0.1),
        "LlamaForCausalLM",
    ),
    "qwen3": (2048, dict(qk_norm=True, head_dim=10), "Qwen3ForCausalLM"),
    "qwen3, interleaved": ("byte", dict(qk_norm=True, positions="rope_interleaved", rope_dim=6), "Qwen3ForCausalLM"),
    "odd heads": ("byte", dict(num_q_heads=5, num_kv_heads=1, head_dim=6), "MistralForCausalLM"),
    "window": ("byte", dict(recipe=PRE_NORM.replace("Attn", "Attn(window=5)")), "MistralForCausalLM"),
    "stretched RoPE": ("byte", dict(rope_factor=4, positions="rope_interleaved"), "LlamaForCausalLM"),
    "llama 3.1": ("byte", dict(rope_factor=8.0, rope_original_len=16, head_dim=12), "LlamaForCausalLM"),
    "factorised embedding": (128, dict(embed_dim=10), "LlamaForCausalLM"),
    "factorised and scaled, head of its own": (
        128,
        dict(embed_dim=10, scale_first_residual=True, tied_head=False),
        "LlamaForCausalLM",
    ),
    "a window that holds the context": (
        "byte",
        dict(recipe=PRE_NORM.replace("Attn", "MQA(32,false)").replace("Norm", "RMSNorm")),
        "LlamaForCausalLM",
    ),
    "qwen3, windows, biases": (
        "byte",
        dict(qk_norm=True, num_layers=4, recipe=PRE_NORM.replace("Attn", "Attn(cyc(4,none,none),bias=true)")),
        "Qwen3ForCausalLM",
    ),
    "post-norm": ("byte", dict(post_norm=True), "Gemma2ForCausalLM"),
    "post-norm, scaled, untied": (
        512,
        dict(post_norm=True, scale_first_residual=True, tied_head=False, norm_affine=False),
        "Gemma2ForCausalLM",
    ),
    "sandwich": (128, dict(recipe=SANDWICH, embed_dim=10, mlp_nonlinearity="relu2"), "Gemma2ForCausalLM"),
    "gemma2": (
        "byte",
        dict(
            recipe=SANDWICH.replace("Attn", "SoftCapAttn(cap=2.5,window=cyc(5,none))"),
            scale_first_residual=True,
            logit_cap=3.0,
            mlp_nonlinearity="gelu_tanh",
            num_kv_heads=1,
            head_dim=8,
        ),
        "Gemma2ForCausalLM",
    ),
    "soft cap by attn_block": ("byte", dict(attn_block="SoftCapAttn", post_norm=True), "Gemma2ForCausalLM"),
    "olmo2": (
        "byte",
        dict(recipe="FlatNormAttn(bias=true)->Norm->+->MLP->Norm->+", head_dim=10, rope_factor=2.0),
        "Olmo2ForCausalLM",
    ),
    "olmo2 by attn_block": (
        128,
        dict(recipe="Attn->Norm->+->MLP->Norm->+(drop=0.1)", attn_block="FlatNormAttn", qk_norm=True, num_q_heads=6),
        "Olmo2ForCausalLM",
    ),
    "gpt2": (512, GPT2_STYLE | dict(mlp_bias=True, norm_bias=True, recipe=PRE_NORM.replace("Attn", "Attn(bias=true)")),
             "GPT2LMHeadModel"),
    "gpt2 without biases, shared key/value heads": (
        "byte",
        GPT2_STYLE | dict(num_kv_heads=2, norm_affine=False, mlp_nonlinearity="relu2", scale_first_residual=True),
        "GPT2LMHeadModel",
    ),
    "gpt2, sinusoids": ("byte", GPT2_STYLE | dict(positions="sinusoidal", tied_head=False), "GPT2LMHeadModel"),
    "gpt2, no positions": ("characters", GPT2_STYLE | dict(positions="none", rope_theta=5.0), "GPT2LMHeadModel"),
}  # fmt: skip


@pytest.mark.parametrize("name", HELD)
def test_transformers_loads_what_is_written(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    tok_name, settings, kind = HELD[name]
    tok = get_tokenizer(tok_name)
    model = ours(tok, **settings)
    folder = to_hf(model, tok, tmp_path / "new" / "folder")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(loaded).__name__ == kind
    assert difference(model, loaded, tok.vocab_size) <= 1e-5
    again = from_hf(folder)
    assert difference(model, again, tok.vocab_size) <= 1e-5
    config, back = (path / "config.json" for path in (folder, to_hf(again, tok, tmp_path / "again")))
    assert config.read_text() == back.read_text()
    assert (loaded.config.bos_token_id, loaded.config.eos_token_id) == (tok.bos_id, tok.eos_id)
    assert sorted(path.suffix for path in folder.iterdir()) == [".json"] * 4 + [".safetensors"]


def test_writing_needs_no_transformers(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    tok = ByteTokenizer()
    model = ours(tok)
    assert difference(model, from_hf(to_hf(model, tok, tmp_path / "a")), tok.vocab_size) <= 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(norm_type="LayerNorm"), r"would be llama but for norm_type='LayerNorm' \(it has 'RMSNorm'\)"),
        (dict(norm_bias=True), "llama but for norm_bias=True"),
        (dict(norm_type="none"), "norm_type='none'"),
        (dict(recipe="Norm->[Attn|MLP]->+"), r"recipe='Norm->\[Attn"),
        (dict(recipe="Norm->Attn->+->Norm->MLP#one->+"), "recipe='Norm->Attn->.*MLP#one"),
        (dict(recipe="Norm->Attn->+(scale=0.5)->Norm->MLP->+"), "recipe="),
        (dict(recipe=PRE_NORM.replace("Attn", "Attn(window=cyc(5,none))")), r"cyc\(5,none\).*it has 'Norm->Attn->"),
        (dict(recipe="Norm->Attn(cyc(5,6))->+->Norm->MLP->+", qk_norm=True), r"qwen3 but for recipe=.*cyc\(5,6"),
        (dict(recipe=PRE_NORM.replace("Attn", "Attn(bias=cyc(true,false))")), "recipe="),
        (dict(recipe=PRE_NORM.replace("Attn", "SoftCapAttn")), r"recipe=.*SoftCapAttn\(cap=50\.0\)"),
        (dict(logit_cap=30.0), "llama but for logit_cap=30.0"),
        (dict(positions="learned"), "positions='learned'"),
        (dict(positions="alibi"), "positions='alibi'"),
        (dict(rope_dim=2), "rope_dim=2"),
        (dict(mlp_gated=False), "llama but for mlp_gated=False"),
        (dict(qk_norm=True, mlp_bias=True), "llama but for qk_norm=True.*; or qwen3 but for mlp_bias=True"),
        (dict(post_norm=True, num_q_heads=5, num_kv_heads=1, head_dim=6), "gemma2 but for num_q_heads=5"),
        (GPT2_STYLE | dict(mlp_gated=True), "gpt2 but for mlp_gated=True"),
        (GPT2_STYLE | dict(head_dim=8), "gpt2 but for head_dim=8"),
        (GPT2_STYLE | dict(qk_norm=True), "gpt2 but for qk_norm=True"),
        (GPT2_STYLE | dict(positions="rope"), "gpt2 but for positions='rope'"),
        (GPT2_STYLE | dict(num_q_heads=5, num_kv_heads=5, head_dim=4), "gpt2 but for num_q_heads=5"),
        (dict(norm_type="LayerNorm", norm_affine=False), "norm_type='LayerNorm'"),
        (dict(attn_block="GatedAttn"), "attn_block='GatedAttn'"),
        (dict(mlp_block="MoE"), "mlp_block='MoE'"),
    ],
)
def test_what_no_stock_architecture_holds_is_named(settings, message, tmp_path):
    tok = ByteTokenizer()
    with pytest.raises(ValueError, match=message):
        to_hf(ours(tok, **settings), tok, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_other_vocabularies_exchanged_blocks_and_other_peoples_folders_are_refused(tmp_path):
    tok = ByteTokenizer()
    model = ours(tok)
    with pytest.raises(ValueError, match="vocab_size=260 of the model differs from the tokenizer's 512"):
        to_hf(model, get_tokenizer(512), tmp_path / "a")
    folder = to_hf(model, tok, tmp_path / "a")
    other = ours(tok)
    assert difference(other, from_hf(to_hf(other, tok, folder)), tok.vocab_size) <= 1e-5  # its own may be replaced
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        to_hf(model, tok, folder)
    assert (folder / "notes.txt").read_text() == "mine"
    model.layers[0].mlp.Wup = torch.nn.Linear(24, 41)
    with pytest.raises(ValueError, match="exchanged by hand"):
        to_hf(model, tok, tmp_path / "b")
    model = ours(tok)
    model.layers[1].mlp_norm = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"layers\.1\.mlp_norm is a Identity \(exchanged by hand"):
        to_hf(model, tok, tmp_path / "b")


def test_what_was_read_is_written_as_what_it_was(tmp_path):
    """from_hf, then to_hf: the same architecture again, with its biases, windows, caps and stretched RoPE."""
    transformers = pytest.importorskip("transformers")
    tok = ByteTokenizer()
    for name in ARCHITECTURES:
        model = theirs(name, vocab_size=tok.vocab_size)
        folder = to_hf(from_hf(model), tok, tmp_path / "written")
        loaded = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        assert difference(model, loaded, tok.vocab_size) <= 1e-5, name
        kind = "llama" if name == "mistral" else model.config.model_type  # without a window it is a Llama
        assert loaded.config.model_type == kind, name


# ---------------------------------------------------------------- tokenizers for Hugging Face

TRICKY = ["", " ", "  a", "Once upon a time, there was a dog.\n\nIt said: <s>é\u2581\u2585</s>\n", "<0x41><pad><unk>"]
PARTS = [
    "a",
    "aa",
    " ",
    " " * 7,
    "\n",
    "the",
    "he",
    "é",
    "\U0001f600",
    "\u2581",
    "\ufffd",
    "\u2585",
    "<s>",
    "<unk>",
    "<0x0A>",
]
TEXTS = st.one_of(st.text(max_size=30), st.lists(st.sampled_from(PARTS), max_size=12).map("".join))


def byte_level_tokenizer():
    """A byte-level BPE such as GPT-2's."""
    hf = pytest.importorskip("tokenizers")
    backend = hf.Tokenizer(hf.models.BPE())
    backend.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = hf.decoders.ByteLevel()
    alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
    trainer = hf.trainers.BpeTrainer(vocab_size=270, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    backend.train_from_iterator(["the cat and the dog"] * 3, trainer)
    return HuggingFaceTokenizer(backend, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}, "mine")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """name -> (our tokenizer, what AutoTokenizer makes of it, what get_tokenizer makes of the same folder)."""
    transformers = pytest.importorskip("transformers")
    toks = {str(name): get_tokenizer(name) for name in (128, 512, 2048, "characters", "byte")}
    toks["byte-level"] = byte_level_tokenizer()
    path = tmp_path_factory.mktemp("llama2c")
    write_llama2c(path, version=0)
    toks["llama2.c"] = from_llama2c(path / "model.bin", path / "tokenizer.bin")[1]
    found = {}
    for name, tok in toks.items():
        folder = to_hf(ours(tok, dim=8, mlp_hidden=8, max_seq_len=2**20), tok, path / name)
        found[name] = (tok, transformers.AutoTokenizer.from_pretrained(folder), get_tokenizer(folder))
    return found


@pytest.mark.parametrize("name", ["128", "512", "2048", "characters", "byte", "byte-level", "llama2.c"])
def test_auto_tokenizer_gives_the_same_ids_and_text(name, pairs):
    tok, auto, again = pairs[name]

    @given(TEXTS)
    def same(text):
        ids = tok.encode(text)
        assert auto(text).input_ids == ids == again.encode(text)
        assert auto.decode(ids, skip_special_tokens=True) == tok.decode(ids) == again.decode(ids)

    for text in TRICKY:
        same.hypothesis.inner_test(text)
    same()
    assert (auto.bos_token_id, auto.eos_token_id, auto.pad_token_id) == (tok.bos_id, tok.eos_id, tok.pad_id)
    assert len(auto) == tok.vocab_size


def test_real_stories_are_cut_alike(pairs, shared_data):
    text = shared_data("tinystories_valid.txt").read_text()[:100_000]
    tok, auto, _ = pairs["2048"]
    assert auto(text).input_ids == tok.encode(text)


# ---------------------------------------------------------------- llama2.c

SIZES_C = dict(D=12, F=20, N=2, H=3, G=1, T=16)  # head size 4
RUNS = ["  ", "    ", "   ", "        ", "     "]  # of equal scores, as in Llama's vocabulary
PIECES = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{b:02X}>" for b in range(256))]
PIECES += [" ", "a", "b", "c", " a", "ab", " ab", "bc", "c a", "abc", *RUNS]
SCORES = [0.0] * 259 + [-float(i) for i in range(10)] + [-1e9] * len(RUNS)


def write_llama2c(folder, version: int, shared: bool = True) -> dict:
    """Random weights in llama2.c's format, written by its description; returns them by llama2.c's names."""
    D, F, N, H, G, T = SIZES_C.values()
    V = len(PIECES)
    draw, kv = np.random.default_rng(0), D // H * G
    layers = dict(
        attention_norm=(D,),
        wq=(D, D),
        wk=(kv, D),
        wv=(kv, D),
        wo=(D, D),
        ffn_norm=(D,),
        w1=(F, D),
        w2=(D, F),
        w3=(F, D),
    )
    w = {name: [draw.normal(size=s).astype("<f4") * 0.5 for _ in range(N)] for name, s in layers.items()}
    w |= {"tok": draw.normal(size=(V, D)).astype("<f4"), "norm": draw.normal(size=D).astype("<f4")}
    w["output"] = w["tok"] if shared else draw.normal(size=(V, D)).astype("<f4")
    tables = np.zeros((2, T, D // H // 2), "<f4")
    if version == 0:
        header = struct.pack("7i", D, F, N, H, G, V if shared else -V, T)
        order = ["attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3"]
        body = [w["tok"], *(x for name in order for x in w[name]), w["norm"], tables]
    else:
        header = (struct.pack("Ii7iB", 0x616B3432, 1, D, F, N, H, G, V, T, shared)).ljust(256, b"\0")
        norms = [*w["attention_norm"], *w["ffn_norm"], w["norm"], w["tok"]]
        body = [*norms, *(x for name in ("wq", "wk", "wv", "wo", "w1", "w2", "w3") for x in w[name])]
    body += [] if shared else [w["output"]]
    (folder / "model.bin").write_bytes(header + b"".join(x.tobytes() for x in body))
    entries = b"".join(struct.pack("fi", s, len(p)) + p.encode() for p, s in zip(PIECES, SCORES, strict=True))
    (folder / "tokenizer.bin").write_bytes(struct.pack("i", 8) + entries)
    return w


def read_llama2c(path) -> tuple[dict, dict]:
    """The independent reader: (sizes, weights by llama2.c's names) of a model file of version 0 or 1."""
    content = path.read_bytes()
    if struct.unpack_from("I", content)[0] == 0x616B3432:
        assert struct.unpack_from("i", content, 4) == (1,)
        D, F, N, H, G, V, T, shared = struct.unpack_from("7iB", content, 8)
        numbers, version = np.frombuffer(content[256:], "<f4"), 1
    else:
        D, F, N, H, G, V, T = struct.unpack_from("7i", content)
        numbers, version, shared, V = np.frombuffer(content[28:], "<f4"), 0, V > 0, abs(V)
    K, taken = D // H, 0

    def take(*shape):
        nonlocal taken
        taken += int(np.prod(shape))
        return numbers[taken - int(np.prod(shape)) : taken].reshape(shape)

    def stack(*shape):
        return [take(*shape) for _ in range(N)]

    w = {"tok": take(V, D)} if version == 0 else {}
    w["attention_norm"] = stack(D)
    if version == 1:
        w["ffn_norm"], w["norm"], w["tok"] = stack(D), take(D), take(V, D)
    w |= {"wq": stack(D, D), "wk": stack(G * K, D), "wv": stack(G * K, D), "wo": stack(D, D)}
    if version == 0:
        w["ffn_norm"] = stack(D)
    w |= {"w1": stack(F, D), "w2": stack(D, F), "w3": stack(F, D)}
    if version == 0:
        w["norm"], w["cos"], w["sin"] = take(D), take(T, K // 2), take(T, K // 2)
    w["output"] = w["tok"] if shared else take(V, D)
    assert taken == len(numbers)
    return dict(D=D, F=F, N=N, H=H, G=G, T=T), w


def run_llama2c(sizes: dict, w: dict, tokens: list[int]) -> np.ndarray:
    """llama2.c's forward pass in numpy, (T,) ids to (T, V): RoPE turns neighbouring channels, as complex numbers."""
    H, G, K = sizes["H"], sizes["G"], sizes["D"] // sizes["H"]

    def norm(x, weight):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight

    def rope(x):
        pairs = x.astype("float64").view("complex128")  # (T, heads, K/2)
        angles = np.arange(len(x))[:, None] * 10_000.0 ** (-np.arange(0, K, 2) / K)
        return (pairs * np.exp(1j * angles)[:, None]).view("float64")

    x = w["tok"][tokens]
    for i in range(sizes["N"]):
        h = norm(x, w["attention_norm"][i])
        q = rope((h @ w["wq"][i].T).reshape(-1, H, K))
        k = rope((h @ w["wk"][i].T).reshape(-1, G, K)).repeat(H // G, axis=1)
        v = (h @ w["wv"][i].T).reshape(-1, G, K).repeat(H // G, axis=1)
        scores = np.einsum("thk,shk->hts", q, k) / np.sqrt(K)
        scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out = np.einsum("hts,shk->thk", weights / weights.sum(-1, keepdims=True), v).reshape(len(x), -1)
        x = x + out @ w["wo"][i].T
        h = norm(x, w["ffn_norm"][i])
        gate = h @ w["w1"][i].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["w3"][i].T)) @ w["w2"][i].T
    return norm(x, w["norm"]) @ w["output"].T


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("shared", [True, False])
def test_llama2c_files_are_read(version, shared, tmp_path):
    w = write_llama2c(tmp_path, version, shared)
    model, tok = from_llama2c(tmp_path / "model.bin", tmp_path / "tokenizer.bin")
    tokens = np.random.default_rng(1).integers(0, len(w["tok"]), 13).tolist()
    expected = run_llama2c(SIZES_C, w, tokens)
    with torch.no_grad():
        assert np.allclose(model(torch.tensor([tokens]))[0].numpy(), expected, atol=1e-4)
    assert (model.cfg.tied_head, tok.vocab_size, model.training) == (shared, len(w["tok"]), False)


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(tied_head=False),
        dict(scale_first_residual=True, norm_affine=False),
        dict(positions="rope_interleaved"),
        dict(embed_dim=10, recipe="RMSNorm->MQA->+->Norm->MLP->+"),
    ],
)
def test_llama2c_files_are_written_and_read_back(version, settings, tmp_path):
    tok = get_tokenizer(512)
    model = ours(tok, num_kv_heads=2, **settings)
    to_llama2c(model, tok, tmp_path / "m.bin", tmp_path / "t.bin", version=version)
    sizes, w = read_llama2c(tmp_path / "m.bin")
    tokens = torch.randint(0, tok.vocab_size, (1, 13))
    with torch.no_grad():
        logits = model(tokens)[0].numpy()
    assert np.allclose(run_llama2c(sizes, w, tokens[0].tolist()), logits, atol=1e-4)
    if version == 0:
        angles = np.arange(32)[:, None] * 10_000.0 ** (-np.arange(0, 6, 2) / 6)
        assert np.allclose(w["cos"], np.cos(angles), atol=1e-5)
        assert np.allclose(w["sin"], np.sin(angles), atol=1e-5)
    again, _ = from_llama2c(tmp_path / "m.bin", tmp_path / "t.bin")
    assert difference(model, again, tok.vocab_size) <= 1e-5


def encode_llama2c(text: str) -> list[int]:
    """llama2.c's own encoding: a space in front, characters or bytes, then the best merge until there is none."""
    ids, tokens = {piece: i for i, piece in enumerate(PIECES)}, [1]
    for character in (" " + text) if text else "":
        tokens += [ids[character]] if character in ids else [byte + 3 for byte in character.encode()]
    while True:
        joined = [ids.get(PIECES[a] + PIECES[b]) for a, b in zip(tokens, tokens[1:], strict=False)]
        found = [(-SCORES[i], at) for at, i in enumerate(joined) if i is not None]
        if not found:
            return tokens
        at = min(found)[1]
        tokens[at : at + 2] = [joined[at]]


def test_llama2c_tokenizer_cuts_as_llama2c_does(tmp_path):
    write_llama2c(tmp_path, version=0)
    tok = from_llama2c(tmp_path / "model.bin", tmp_path / "tokenizer.bin")[1]

    @given(st.text(alphabet="abc  \né", max_size=20))
    def same(text):
        assert tok.encode(text) == encode_llama2c(text)
        assert tok.decode(tok.encode(text)) == text

    same()


@pytest.mark.parametrize("name", [128, 512, 2048, "characters", "byte"])
def test_our_tokenizers_come_back_from_llama2c(name, tmp_path):
    tok = get_tokenizer(name)
    to_llama2c(ours(tok), tok, tmp_path / "m.bin", tmp_path / "t.bin")
    again = from_llama2c(tmp_path / "m.bin", tmp_path / "t.bin")[1]

    @given(TEXTS)
    def same(text):
        ids = tok.encode(text)
        assert again.encode(text) == ids
        assert again.decode(ids) == tok.decode(ids)

    for text in TRICKY:
        same.hypothesis.inner_test(text)
    same()
    content = (tmp_path / "t.bin").read_bytes()
    longest, at, found = struct.unpack_from("I", content)[0], 4, []
    while at < len(content):
        length = struct.unpack_from("I", content, at + 4)[0]
        found.append(content[at + 8 : at + 8 + length])
        at += 8 + length
    assert (len(found), max(map(len, found))) == (tok.vocab_size, longest)
    ordinary = [i for i in range(4, tok.vocab_size) if not found[i].startswith(b"<0x")]
    assert [found[i] for i in ordinary] == [tok.token_bytes(i) for i in ordinary]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(qk_norm=True), "qk_norm=True"),
        (dict(rope_theta=500_000.0), "rope_theta=500000.0"),
        (dict(norm_eps=1e-6), "norm_eps=1e-06"),
        (dict(head_dim=8), "head_dim=8"),
        (dict(mlp_nonlinearity="gelu"), "mlp_nonlinearity='gelu'"),
        (dict(recipe=SANDWICH), "recipe="),
        (dict(logit_cap=30.0), r"logit_cap=30\.0"),
        (dict(rope_factor=2.0), r"rope_factor=2\.0"),
    ],
)
def test_what_llama2c_cannot_hold_is_named(settings, message, tmp_path):
    tok = ByteTokenizer()
    with pytest.raises(ValueError, match=message):
        to_llama2c(ours(tok, **settings), tok, tmp_path / "m.bin", tmp_path / "t.bin")
    assert list(tmp_path.iterdir()) == []


def test_versions_and_tokenizers_that_llama2c_does_not_have(tmp_path):
    tok = ByteTokenizer()
    with pytest.raises(ValueError, match="version=2"):
        to_llama2c(ours(tok), tok, tmp_path / "m.bin", tmp_path / "t.bin", version=2)
    tok = byte_level_tokenizer()
    with pytest.raises(ValueError, match="needs scores"):
        to_llama2c(ours(tok), tok, tmp_path / "m.bin", tmp_path / "t.bin")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model.bin", lambda content: content[:-4], "cut short"),
        ("model.bin", lambda content: content + b"\0\0\0\0", "its header asks for"),
        ("model.bin", lambda content: content[:20], "only 20 bytes"),
        ("model.bin", lambda content: b"PK\3\4" * 100, "no model file of llama2.c"),
        ("model.bin", lambda content: struct.pack("7i", 12, 20, 2, 0, 1, 9, 16) + content[28:], "num_q_heads=0"),
        ("model.bin", lambda content: struct.pack("Ii", 0x616B3432, 2) + content, "version=2"),
        ("model.bin", lambda content: struct.pack("7i", *[2**31 - 1] * 7), "no model file of llama2.c"),
        ("tokenizer.bin", lambda content: content[:-1], "does not hold the 274 pieces"),
        ("tokenizer.bin", lambda content: content + b"\0", "does not hold the 274 pieces"),
        ("tokenizer.bin", lambda content: b"", "does not hold the 274 pieces"),
        ("tokenizer.bin", lambda content: content.replace(b"<unk>", b"<xyz>"), "does not begin with <unk>"),
        ("tokenizer.bin", lambda content: content.replace(b" ab", b" \xff\xff"), "its pieces form no tokenizer"),
        ("tokenizer.bin", lambda content: content.replace(b"<0x07>", b"<0x08>"), "its pieces form no tokenizer"),
        ("model.bin", lambda content: struct.pack("7i", 2**30, 20, 2**30, 2, 1, 9, 16) + content[28:], "layers can't"),
    ],
)
def test_damaged_llama2c_files_are_refused(file, change, message, tmp_path):
    write_llama2c(tmp_path, version=0)
    path = tmp_path / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        from_llama2c(tmp_path / "model.bin", tmp_path / "tokenizer.bin")
