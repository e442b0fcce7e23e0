"""Norms, positions and attention's variants against the models they come from, and against themselves while decoding.

The models are transformers' classes, tiny and random, built in memory; ours get the same weights and give the same
numbers in fp32. What every block has to keep (causality, gradients, bf16, ...) is in lab/checks.py; here those checks
run on the options that a block alone does not show.
"""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import model as model_file
from blocks.attention import CrossAttn, SinkAttn, ValueResidualAttn
from config import ModelConfig
from lab.checks import SMALL, check_block
from model import GPT, MQA, alibi_slopes, attend, attend_in_chunks, make_context, make_norm, rotate
from recipe import RecipeError

transformers = pytest.importorskip("transformers")

V, D, F_ = 61, 32, 44
SIZES = dict(vocab_size=V, hidden_size=D, intermediate_size=F_, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, head_dim=6, max_position_embeddings=320, rms_norm_eps=1e-5, pad_token_id=None,
             bos_token_id=None, eos_token_id=None, tie_word_embeddings=False, attn_implementation="eager")  # fmt: skip
OURS = ModelConfig(dim=D, num_layers=3, vocab_size=V, max_seq_len=320, num_q_heads=4, num_kv_heads=2, head_dim=6,
                   mlp_hidden=F_, tied_head=False, recipe="Norm->Attn->+->Norm->MLP->+")  # fmt: skip
LLAMA_NAMES = {
    "embed_tokens": "embed", "model.norm": "final_norm", "lm_head": "head", "model.": "", "self_attn": "attn",
    "q_proj": "Wq", "k_proj": "Wk", "v_proj": "Wv", "o_proj": "Wo", "gate_proj": "Wgate", "up_proj": "Wup",
    "down_proj": "Wdown", "input_layernorm": "norm", "post_attention_layernorm": "norm_2",
}  # fmt: skip


def theirs(kind: str, **changes) -> nn.Module:
    """A random causal model of transformers: theirs("Llama") is a LlamaForCausalLM."""
    config = getattr(transformers, f"{kind}Config")(**SIZES | changes)
    return randomised(getattr(transformers, f"{kind}ForCausalLM")(config))


def randomised(module: nn.Module, std: float = 0.15) -> nn.Module:
    for name, p in module.named_parameters():
        nn.init.normal_(p, mean=float(p.ndim == 1 and "norm" in name), std=std)
    return module.eval()


def renamed(module: nn.Module, names: dict[str, str]) -> dict[str, torch.Tensor]:
    """Their weights under our names; longer names are replaced first."""
    pattern = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))
    return {pattern.sub(lambda m: names[m[0]], name): p for name, p in module.state_dict().items()}


def expect_same_logits(model: GPT, other: nn.Module, length: int = 24) -> None:
    tokens = torch.randint(0, V, (2, length))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), other(tokens).logits, atol=1e-5, rtol=1e-5)


def llama_like(cfg: ModelConfig, other: nn.Module, **names: str) -> GPT:
    """Our model with the weights of one that is named like Llama."""
    model = GPT(cfg).eval()
    model.load_state_dict(renamed(other, LLAMA_NAMES | names))
    return model


# ---------------------------------------------------------------- norms


def test_dyt_closed_form_and_learned_number():
    norm = randomised(make_norm(OURS.replace(norm_type="DyT", norm_bias=True)).double())
    x = torch.randn(2, 3, D, dtype=torch.float64)
    torch.testing.assert_close(norm(x), norm.weight * torch.tanh(norm.alpha * x) + norm.bias)
    assert make_norm(OURS.replace(norm_type="DyT")).alpha.item() == 0.5
    assert not [p for p in make_norm(OURS.replace(norm_type="DyT", norm_affine=False)).parameters() if p.ndim]


def test_no_norm_is_the_identity_and_a_model_learns_nothing_for_it():
    x = torch.randn(2, 3, D)
    assert make_norm(OURS.replace(norm_type="none"))(x) is x
    assert not [name for name, _ in GPT(OURS.replace(norm_type="none")).named_parameters() if "norm" in name]


def test_norms_in_a_recipe_by_their_own_names():
    model = GPT(OURS.replace(recipe="DyT(bias=true)->Attn->+->none->MLP->+"))
    assert model.layers[0].dyt.bias is not None and isinstance(model.layers[0].none, model_file.NoNorm)


# ---------------------------------------------------------------- positions


def test_rope_in_halves_equals_llama():
    other = theirs("Llama")
    expect_same_logits(llama_like(OURS, other), other)
    expect_same_logits(llama_like(OURS, other), other, length=300)


def test_interleaved_partial_rope_equals_gptj():
    config = transformers.GPTJConfig(
        vocab_size=V, n_embd=D, n_layer=3, n_head=4, n_inner=F_, rotary_dim=4, n_positions=40, bos_token_id=None,
        eos_token_id=None, activation_function="gelu", tie_word_embeddings=False,
        attn_implementation="eager")  # fmt: skip
    other = randomised(transformers.GPTJForCausalLM(config))
    other.lm_head.bias.data.zero_()
    cfg = OURS.replace(positions="rope_interleaved", rope_dim=4, num_kv_heads=4, head_dim=8, mlp_bias=True,
                       mlp_gated=False, mlp_nonlinearity="gelu", norm_type="LayerNorm", norm_bias=True,
                       recipe="Norm->[Attn|MLP]->+")  # fmt: skip
    names = {"transformer.wte": "embed", "transformer.ln_f": "final_norm", "transformer.h": "layers", "ln_1": "norm",
             "out_proj": "Wo", "mlp.fc_in": "mlp.Wup", "mlp.fc_out": "mlp.Wdown"}  # fmt: skip
    model = GPT(cfg).eval()
    weights = renamed(other, LLAMA_NAMES | names)
    model.load_state_dict({name: p for name, p in weights.items() if name != "head.bias"})
    expect_same_logits(model, other)


def fused_by_head(matrix: torch.Tensor, heads: int) -> list[torch.Tensor]:
    """Wq, Wk, Wv (or their biases) from one matrix whose rows stand head by head."""
    parts = matrix.unflatten(0, (heads, 3, -1))
    return [parts[:, i].flatten(0, 1) for i in range(3)]


def test_partial_rope_and_two_norms_side_by_side_equal_gpt_neox():
    config = transformers.GPTNeoXConfig(
        vocab_size=V, hidden_size=D, intermediate_size=F_, num_hidden_layers=3, num_attention_heads=4, rotary_pct=0.5,
        max_position_embeddings=40, attn_implementation="eager", tie_word_embeddings=False)  # fmt: skip
    other = randomised(transformers.GPTNeoXForCausalLM(config))
    cfg = OURS.replace(rope_dim=4, num_kv_heads=4, head_dim=8, mlp_bias=True, mlp_gated=False, mlp_nonlinearity="gelu",
                       norm_type="LayerNorm", norm_bias=True,
                       recipe="Norm->Attn(bias=true)->+||Norm->MLP->+")  # fmt: skip
    names = {"gpt_neox.embed_in": "embed", "gpt_neox.final_layer_norm": "final_norm", "embed_out": "head",
             "gpt_neox.layers": "layers", "attention.dense": "attn.Wo", "post_attention_layernorm": "norm_2",
             "dense_h_to_4h": "Wup", "dense_4h_to_h": "Wdown"}  # fmt: skip
    weights = renamed(other, LLAMA_NAMES | names)
    for name in [name for name in weights if "query_key_value" in name]:
        for ours, part in zip(("Wq", "Wk", "Wv"), fused_by_head(weights.pop(name), 4), strict=True):
            weights[name.replace("attention.query_key_value", f"attn.{ours}")] = part
    model = GPT(cfg).eval()
    model.load_state_dict(weights)
    expect_same_logits(model, other)


def test_learned_positions_and_biases_equal_gpt2():
    config = transformers.GPT2Config(
        vocab_size=V, n_embd=D, n_layer=3, n_head=4, n_inner=F_, n_positions=40, activation_function="gelu",
        attn_implementation="eager", bos_token_id=None, eos_token_id=None)  # fmt: skip
    other = randomised(transformers.GPT2LMHeadModel(config))
    cfg = OURS.replace(positions="learned", max_seq_len=40, num_kv_heads=4, head_dim=8, mlp_bias=True, mlp_gated=False,
                       mlp_nonlinearity="gelu", norm_type="LayerNorm", norm_bias=True, tied_head=True,
                       recipe="Norm->Attn(bias=true)->+->Norm->MLP->+")  # fmt: skip
    names = {"transformer.wte": "embed", "transformer.wpe": "position_embed", "transformer.ln_f": "final_norm",
             "transformer.h": "layers", "ln_1": "norm", "ln_2": "norm_2", "attn.c_proj": "attn.Wo",
             "mlp.c_fc": "mlp.Wup", "mlp.c_proj": "mlp.Wdown", "lm_head": "head"}  # fmt: skip
    weights = renamed(other, names)
    weights = {n: p.T if p.ndim == 2 and (".W" in n or "c_attn" in n) else p for n, p in weights.items()}
    for name in [name for name in weights if "c_attn" in name]:
        for ours, part in zip(("Wq", "Wk", "Wv"), weights.pop(name).chunk(3), strict=True):
            weights[name.replace("c_attn", ours)] = part
    model = GPT(cfg).eval()
    model.load_state_dict(weights)
    expect_same_logits(model, other)


def causal_bias(length: int, window: int | None = None) -> torch.Tensor:
    """(1, 1, T, T): 0 where a query may look, else -inf."""
    distance = torch.arange(length)[:, None] - torch.arange(length)
    allowed = (distance >= 0) & (distance < (window or length))
    return torch.zeros(1, 1, length, length).masked_fill(~allowed, -math.inf)


@pytest.mark.parametrize("length", [20, 200])
def test_alibi_equals_bloom_with_a_number_of_heads_that_is_no_power_of_two(length):
    from transformers.models.bloom.modeling_bloom import BloomAttention, build_alibi_tensor

    config = transformers.BloomConfig(hidden_size=30, n_head=6, hidden_dropout=0.0, attention_dropout=0.0)
    other = randomised(BloomAttention(config, layer_idx=0))
    cfg = OURS.replace(dim=30, num_q_heads=6, num_kv_heads=6, head_dim=5, positions="alibi")
    ours = MQA(cfg, bias=True)
    for kind in ("weight", "bias"):
        for mine, part in zip("qkv", fused_by_head(getattr(other.query_key_value, kind), 6), strict=True):
            getattr(getattr(ours, f"W{mine}"), kind).data = part
    ours.Wo.load_state_dict(other.dense.state_dict())
    x = torch.randn(2, length, 30)
    alibi = build_alibi_tensor(torch.ones(2, length), 6, torch.float32)
    expected = other(x, torch.zeros_like(x), alibi, causal_bias(length))[0]
    torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)


def test_alibi_slopes_closed_form():
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(1).tolist() == [2.0**-8]


def test_rope_turns_only_its_channels_and_interleaving_is_a_permutation():
    cfg = OURS.replace(rope_dim=4)
    x = torch.randn(1, 7, 3, 6)
    rope = make_context(cfg, x[:, :, 0]).rope
    turned = rotate(x, rope)
    assert torch.equal(turned[..., 4:], x[..., 4:]) and (turned[:, 1:, :, :4] != x[:, 1:, :, :4]).all()
    halves = [0, 2, 1, 3, 4, 5]  # neighbours (0, 1), (2, 3) become the pairs (0, 2), (1, 3)
    torch.testing.assert_close(rotate(x, rope, interleaved=True)[..., halves], rotate(x[..., halves], rope))


@pytest.mark.parametrize("rope_dim", [3, 8, 0])
def test_wrong_rope_dims_are_refused(rope_dim):
    with pytest.raises(ValueError, match=f"rope_dim={rope_dim} must be even, from 2 to head_dim=6"):
        OURS.replace(rope_dim=rope_dim)


# ---------------------------------------------------------------- heads, norms, windows


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("length", [9, 200])
def test_heads_equal_sdpa(groups, length):
    q, (k, v) = torch.randn(2, 4, length, 6), torch.randn(2, 2, groups, length, 6)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    ctx = make_context(OURS, torch.zeros(2, length))
    torch.testing.assert_close(attend(q, k, v, ctx), expected, atol=1e-5, rtol=0)


def test_norm_per_head_equals_qwen3():
    other = theirs("Qwen3")
    expect_same_logits(llama_like(OURS.replace(qk_norm=True), other), other)


def test_norm_over_all_heads_equals_olmo2():
    other = theirs("Olmo2", head_dim=8)
    cfg = OURS.replace(head_dim=8, attn_block="FlatNormAttn", recipe="Attn->Norm->+->MLP->Norm->+")
    names = {"post_attention_layernorm": "norm", "post_feedforward_layernorm": "norm_2"}
    expect_same_logits(llama_like(cfg, other, **names), other)


@pytest.mark.parametrize(("window", "length"), [(1, 9), (5, 24), (100, 300), (130, 300), (400, 300)])
def test_window_equals_mistral(window, length):
    other = theirs("Mistral", sliding_window=window)
    cfg = OURS.replace(recipe=f"Norm->Attn(window={window})->+->Norm->MLP->+")
    expect_same_logits(llama_like(cfg, other), other, length)


@pytest.mark.parametrize("length", [24, 200])
def test_soft_cap_and_alternating_windows_equal_gemma2(length):
    other = theirs("Gemma2", sliding_window=7, query_pre_attn_scalar=6, attn_logit_softcapping=2.0,
                   final_logit_softcapping=None, hidden_activation="gelu", tie_word_embeddings=True)  # fmt: skip
    cfg = OURS.replace(attn_block="SoftCapAttn", scale_first_residual=True, mlp_nonlinearity="gelu", tied_head=True,
                       recipe="Norm->Attn(cap=2,window=cyc(7,none))->Norm->+->Norm->MLP->Norm->+")  # fmt: skip
    names = {"pre_feedforward_layernorm": "norm_3", "post_feedforward_layernorm": "norm_4"}
    weights = renamed(other, LLAMA_NAMES | names)
    model = GPT(cfg).eval()
    model.load_state_dict({name: p + 1 if "norm" in name else p for name, p in weights.items()})  # Gemma's is 1 + w
    expect_same_logits(model, other, length)


def rope_of(config, kind: str, x: torch.Tensor):
    """Their cosines and sines for x (B, T, D)."""
    module = getattr(transformers.models, kind[0])
    rotary = getattr(getattr(module, f"modeling_{kind[0]}"), f"{kind[1]}RotaryEmbedding")(config)
    return rotary(x, torch.arange(x.shape[1])[None])


@pytest.mark.parametrize("length", [20, 200])
@pytest.mark.parametrize("layer", [0, 1])
def test_sinks_equal_gpt_oss(length, layer):
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention

    config = transformers.GptOssConfig(**SIZES | dict(
        sliding_window=8, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}))  # fmt: skip
    other = randomised(GptOssAttention(config, layer))
    window = 8 if other.sliding_window else None
    ours = SinkAttn(OURS, window=window, bias=True)
    ours.load_state_dict(renamed(other, LLAMA_NAMES))
    x = torch.randn(2, length, D)
    expected = other(x, rope_of(config, ("gpt_oss", "GptOss"), x), causal_bias(length, window))[0]
    torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)
    assert {0: 8, 1: None}[layer] == window


def test_output_gate_equals_qwen3_next():
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextAttention

    config = transformers.Qwen3NextConfig(**SIZES | dict(head_dim=8, rope_parameters={
        "rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}))  # fmt: skip
    other = randomised(Qwen3NextAttention(config, 0))
    ours = model_file.find_block("GatedAttn")(OURS.replace(head_dim=8, rope_dim=4, qk_norm=True))
    weights = renamed(other, LLAMA_NAMES)
    both = weights.pop("Wq.weight").unflatten(0, (4, 2, 8))  # a head's queries, then its gate
    weights |= {"Wq.weight": both[:, 0].flatten(0, 1), "Wgate.weight": both[:, 1].flatten(0, 1)}
    ours.load_state_dict({name: p + 1 if "norm" in name else p for name, p in weights.items()})  # theirs is 1 + w
    x = torch.randn(2, 20, D)
    expected = other(x, rope_of(config, ("qwen3_next", "Qwen3Next"), x), causal_bias(20))[0]
    torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)


def test_differential_attention_equals_diffllama():
    other = theirs("DiffLlama")
    starts = ",".join(str(0.8 - 0.6 * math.exp(-0.3 * layer)) for layer in range(3))
    cfg = OURS.replace(attn_block="DiffAttn", recipe=f"Norm->Attn(start=cyc({starts}))->+->Norm->MLP->+")
    weights = renamed(other, LLAMA_NAMES)
    for i in range(3):
        parts = [weights.pop(f"layers.{i}.attn.lambda_{name}") for name in ("q1", "k1", "q2", "k2")]
        weights[f"layers.{i}.attn.lambdas"] = torch.stack(parts).view(2, 2, 6)
    model = GPT(cfg).eval()
    model.load_state_dict(weights)
    expect_same_logits(model, other)
    expect_same_logits(model, other, length=200)


@pytest.mark.parametrize("kind", ["DeepseekV2", "DeepseekV3"])
@pytest.mark.parametrize("q_latent", [None, 14])
def test_latent_attention_equals_deepseek(kind, q_latent):
    other = theirs(kind, head_dim=4, kv_lora_rank=10, q_lora_rank=q_latent, qk_rope_head_dim=4, qk_nope_head_dim=6,
                   v_head_dim=6, num_key_value_heads=4, first_k_dense_replace=3, rms_norm_eps=1e-6)  # fmt: skip
    own = f"latent=10,q_latent={q_latent or 'none'}"
    cfg = OURS.replace(attn_block="MLA", positions="rope_interleaved", rope_dim=4, norm_eps=1e-6,
                       recipe=f"Norm->Attn({own})->+->Norm->MLP->+")  # fmt: skip
    names = {"q_a_proj": "Wq_down", "q_a_layernorm": "q_norm", "q_b_proj": "Wq", "kv_a_proj_with_mqa": "Wdown",
             "kv_a_layernorm": "norm"}  # fmt: skip
    weights = renamed(other, LLAMA_NAMES | names)
    for name in [name for name in weights if "kv_b_proj" in name]:
        both = weights.pop(name).unflatten(0, (4, 12))  # a head's keys, then its values
        weights[name.replace("kv_b_proj", "Wkey")] = both[:, :6].flatten(0, 1)
        weights[name.replace("kv_b_proj", "Wvalue")] = both[:, 6:].flatten(0, 1)
    model = GPT(cfg).eval()
    model.load_state_dict(weights)
    expect_same_logits(model, other)
    expect_same_logits(model, other, length=200)


def test_the_latent_is_all_that_latent_attention_keeps():
    cfg = OURS.replace(attn_block="MLA", rope_dim=4, recipe="Norm->Attn(latent=10)->+")
    model, tokens = GPT(cfg), torch.randint(0, V, (2, 5))
    ctx = model.context(tokens, decode=True)
    model(tokens, ctx)
    assert {tuple(state.shape) for state in ctx.cache.values()} == {(2, cfg.max_seq_len, 10 + 4)}


# ---------------------------------------------------------------- cross-attention, value residual


def looking_at(memory: torch.Tensor, tokens: torch.Tensor):
    ctx = make_context(OURS, tokens)
    ctx.memory = memory
    return ctx


@pytest.mark.parametrize("bias", [True, False])
def test_cross_attention_equals_pytorch(bias):
    other = randomised(nn.MultiheadAttention(24, 4, bias=bias, batch_first=True))
    ours = CrossAttn(OURS.replace(dim=24, num_kv_heads=4), bias=bias)
    for kind in ("weight", "bias")[: 1 + bias]:
        for mine, part in zip("qkv", getattr(other, f"in_proj_{kind}").chunk(3), strict=True):
            getattr(getattr(ours, f"W{mine}"), kind).data = part
    ours.Wo.load_state_dict(other.out_proj.state_dict())
    x, memory = torch.randn(2, 5, 24), torch.randn(2, 9, 24)
    torch.testing.assert_close(ours(x, looking_at(memory, x)), other(x, memory, memory)[0], atol=1e-5, rtol=1e-5)


def test_cross_attention_equals_t5():
    from transformers.models.t5.modeling_t5 import T5Attention

    config = transformers.T5Config(d_model=D, d_kv=6, num_heads=4, dropout_rate=0.0, is_decoder=True,
                                   attn_implementation="eager")  # fmt: skip
    other = randomised(T5Attention(config, has_relative_attention_bias=False, layer_idx=0))
    ours = CrossAttn(OURS.replace(num_kv_heads=4))
    ours.load_state_dict({f"W{name}": p for name, p in other.state_dict().items()})
    ours.Wq.weight.data = ours.Wq.weight * 6**0.5  # T5 does not divide its scores by sqrt(K)
    x, memory = torch.randn(2, 5, D), torch.randn(2, 9, D)
    expected = other(x, key_value_states=memory)[0]
    torch.testing.assert_close(ours(x, looking_at(memory, x)), expected, atol=1e-5, rtol=1e-5)


def test_cross_attention_says_what_it_needs():
    with pytest.raises(ValueError, match=r"ctx\.memory=None: CrossAttn looks at a memory"):
        CrossAttn(OURS)(torch.randn(2, 5, D))


def test_value_residual_closed_form():
    """Each layer's values are a * its own + b * the first layer's; the rest is MQA."""
    cfg = OURS.replace(recipe="ValueResidualAttn->+")
    model, tokens = randomised(GPT(cfg)), torch.randint(0, V, (2, 20))
    x, first = model.embed(tokens), None
    for block in (layer.valueresidualattn for layer in model.layers):
        values = block.Wv(x)
        first = values if first is None else first
        plain = MQA(cfg)
        plain.load_state_dict({name: p for name, p in block.state_dict().items() if name != "mix"})
        plain.Wv = nn.Identity()
        mixed = (block.mix[0] * values + block.mix[1] * first).unflatten(-1, (2, 6)).transpose(1, 2)
        ctx = make_context(cfg, x)
        q, k, _ = MQA.project(block, x, ctx)
        x = x + block.Wo(attend(q, k, mixed, ctx).transpose(1, 2).flatten(2))
    torch.testing.assert_close(model(tokens), model.head(model.final_norm(x)), atol=1e-5, rtol=1e-5)


def test_value_residual_starts_as_plain_attention_in_the_first_layer():
    torch.manual_seed(0)
    block, plain = ValueResidualAttn(OURS), MQA(OURS)
    plain.load_state_dict({name: p for name, p in block.state_dict().items() if name != "mix"})
    x = torch.randn(2, 9, D)
    torch.testing.assert_close(block(x), plain(x))


# ---------------------------------------------------------------- all masks meet in attend


def written_out(q, k, v, ctx, weigh):
    """softmax over what each query may see, from the definition alone."""
    distance = ctx.positions[:, None] - torch.arange(k.shape[2])
    seen = (distance >= 0) & (distance < (ctx.window or k.shape[2]))
    if ctx.segments is not None:
        seen = seen & (ctx.segments[:, None, :, None] == ctx.segments[:, None, None, :])
    k, v = (y.repeat_interleave(q.shape[1] // y.shape[1], dim=1) for y in (k, v))
    scores = weigh(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5)
    if ctx.slopes is not None:
        scores = scores - ctx.slopes[:, None, None] * distance
    return scores.masked_fill(~seen, -math.inf).softmax(-1) @ v


@pytest.mark.parametrize("window", [None, 1, 40, 128, 150])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("positions", ["none", "alibi"])
@pytest.mark.parametrize("capped", [False, True])
def test_every_mix_of_masks_equals_the_definition_forward_and_backward(window, packed, positions, capped):
    length = 300
    q = torch.randn(2, 4, length, 4, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, 2, length, 4, dtype=torch.float64, requires_grad=True) for _ in "kv")
    segments = (torch.arange(length) // 70).expand(2, -1) if packed else None
    ctx = make_context(OURS.replace(positions=positions), torch.zeros(2, length), segments=segments)
    ctx.window = window
    cap = (lambda scores: 2 * torch.tanh(scores / 2)) if capped else (lambda scores: scores)
    ctx.weigh = (lambda scores, bias: (cap(scores) + bias).softmax(-1)) if capped else None
    expected = written_out(q, k, v, ctx, cap)
    weight = torch.randn_like(q)
    gradients = torch.autograd.grad((expected * weight).sum(), (q, k, v))
    for way in (attend_in_chunks, attend, whole):
        out = way(q, k, v, ctx)
        torch.testing.assert_close(out, expected)
        for mine, other in zip(torch.autograd.grad((out * weight).sum(), (q, k, v)), gradients, strict=True):
            torch.testing.assert_close(mine, other)


def whole(q, k, v, ctx):
    """`attend` by its fused kernel, as on a GPU."""
    before, model_file.CHUNK = model_file.CHUNK, 10_000
    try:
        return attend(q, k, v, ctx)
    finally:
        model_file.CHUNK = before


def test_a_window_skips_the_keys_outside():
    ctx = make_context(OURS, torch.zeros(2, 300))
    ctx.window = 40
    assert [ctx.reach(start, start + 100, 300) for start in (0, 100, 200)] == [(0, 100), (61, 200), (161, 300)]
    far = torch.randn(3, 2, 4, 300, 4)
    far[1:, :, :, :50] = math.nan  # keys and values that nobody from position 128 on may touch
    assert attend(*far, ctx)[:, :, 256:].isfinite().all()


VARIANTS = ["MQA", "SoftCapAttn", "SinkAttn", "GatedAttn", "FlatNormAttn", "ValueResidualAttn", "DiffAttn"]


@pytest.mark.parametrize("positions", ["rope", "alibi"])
@pytest.mark.parametrize("name", [*VARIANTS, "CrossAttn", "MLA"])
def test_decoding_in_pieces_equals_the_full_forward_in_chunks(name, positions):
    own = "(window=cyc(20,none))" if name in VARIANTS else ""
    cfg = OURS.replace(attn_block=name, positions=positions, recipe=f"Norm->Attn{own}->+->Norm->MLP->+")
    model, tokens = randomised(GPT(cfg), 0.3).double(), torch.randint(0, V, (2, 200))
    memory = torch.randn(2, 7, D, dtype=torch.float64)
    full, ctx = model.context(tokens), model.context(tokens, decode=True)
    full.memory = ctx.memory = memory
    cuts = [0, 1, 8, 150, 151, 153, 200]  # 142 tokens at once are more than one chunk
    with torch.no_grad():
        parts = [model(tokens[:, a:b], ctx) for a, b in zip(cuts, cuts[1:], strict=False)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens, full))


@pytest.mark.parametrize("name", VARIANTS)
def test_generic_checks_with_a_window_and_biases(name):
    cfg = SMALL.replace(positions="alibi") if name == "MQA" else SMALL.replace(positions="rope_interleaved")
    report = check_block(f"Norm->{name}(window=9,bias=true)->+", cfg)
    assert report.ok, str(report)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("Norm->Attn(window=0)->+", "window=0 must be at least 1"),
        ("Norm->Attn(window=2.5)->+", "window=2.5 must be of type int or none"),
        ("Norm->SoftCapAttn(cap=0)->+", "cap=0 must be positive"),
        ("Norm->DiffAttn(start=1)->+", "start=1 must be in"),
        ("Norm->MLA(latent=-3)->+", "latent=-3 must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused_with_their_column(recipe, words):
    with pytest.raises(RecipeError, match=f"{words}.* at column 7"):
        GPT(OURS.replace(recipe=recipe))


def test_differential_attention_needs_pairs_of_heads():
    with pytest.raises(ValueError, match="num_kv_heads=1 must be even"):
        GPT(OURS.replace(num_kv_heads=1, recipe="Norm->DiffAttn->+"))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_variants_compile_without_a_break(name):
    model = randomised(GPT(OURS.replace(recipe=f"Norm->{name}(window=5)->+"))).double()
    tokens = torch.randint(0, V, (2, 20))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(tokens), model(tokens))
    torch._dynamo.reset()
