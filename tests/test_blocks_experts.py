"""Mixture of experts: against transformers' blocks, its losses, its bias, and the training loop that serves them."""

import math

import pytest
import torch
import torch.nn.functional as F

from blocks.experts import MoE, balance_loss
from config import ModelConfig, TrainConfig
from lab.saving import load_model, save_model
from model import GPT, MLP, make_context, make_layers
from recipe import RecipeError
from tokenizer import get_tokenizer
from tools import trace
from train import Step, make_optimizers

B, T, D, F_, E = 3, 5, 32, 12, 7
CFG = ModelConfig(dim=D, num_layers=2, vocab_size=260, max_seq_len=16, num_q_heads=4, num_kv_heads=2, mlp_hidden=F_)
SPARSE = CFG.replace(recipe="Norm->Attn->+->Norm->MoE(experts=7)->+")
ALL = dict(experts=E, shared=2, shared_gate=True, router="sigmoid", bias=True, z=0.1, balance=0.1)
KINDS = {
    "default": {},
    "switch": {"top_k": 1},
    "shared": {"experts": 5, "top_k": 3, "shared": 2, "shared_gate": True, "norm_topk": False},
    "deepseek": {"experts": E, "router": "sigmoid", "bias": True, "shared": 1, "scale": 2.5},
}


def randomised(module, std=0.3):
    """The module with all its parameters random: zeros would hide errors."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=std)
    return module.eval()


def tokens(rows=B, length=T):
    return torch.randint(0, CFG.vocab_size, (rows, length))


@pytest.fixture(params=KINDS)
def moe(request):
    return randomised(MoE(CFG, **KINDS[request.param]))


# ---------------------------------------------------------------- oracles


def take_mlp(mine, gate, up, down):
    mine.Wgate.weight.copy_(gate), mine.Wup.weight.copy_(up), mine.Wdown.weight.copy_(down)


@torch.no_grad()
def take_weights(mine, other):
    """Copies the weights of a block of transformers, which keeps all experts in one tensor."""
    mine.router.weight.copy_(other.gate.weight)
    for i, expert in enumerate(mine.experts):
        take_mlp(expert, *other.experts.gate_up_proj[i].chunk(2), other.experts.down_proj[i])
    shared = getattr(other, "shared_expert", None) or getattr(other, "shared_experts", None)
    if shared is not None:
        take_mlp(mine.shared, shared.gate_proj.weight, shared.up_proj.weight, shared.down_proj.weight)
    if mine.shared_gate is not None:
        mine.shared_gate.weight.copy_(other.shared_expert_gate.weight)
    if mine.bias is not None:
        mine.bias.copy_(other.gate.e_score_correction_bias)


def check_against(other, **own):
    randomised(other)
    mine = MoE(CFG, **own).eval()
    take_weights(mine, other)
    x = torch.randn(B, T, D)
    with torch.no_grad():
        expected, got = other(x), mine(x)
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("top_k", [2, 3])
def test_mixtral(top_k):
    from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralSparseMoeBlock

    config = MixtralConfig(hidden_size=D, intermediate_size=F_, num_local_experts=E, num_experts_per_tok=top_k)
    check_against(MixtralSparseMoeBlock(config), experts=E, top_k=top_k)


@pytest.mark.parametrize("norm_topk", [False, True])
def test_olmoe(norm_topk):
    from transformers.models.olmoe.modeling_olmoe import OlmoeConfig, OlmoeSparseMoeBlock

    sizes = dict(hidden_size=D, intermediate_size=F_, num_experts=E, num_experts_per_tok=3)
    check_against(
        OlmoeSparseMoeBlock(OlmoeConfig(**sizes, norm_topk_prob=norm_topk)), experts=E, top_k=3, norm_topk=norm_topk
    )


def test_qwen2_moe_with_gated_shared_experts():
    from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeConfig, Qwen2MoeSparseMoeBlock

    config = Qwen2MoeConfig(
        hidden_size=D, moe_intermediate_size=F_, shared_expert_intermediate_size=4 * F_, num_experts=E,
        num_experts_per_tok=4, norm_topk_prob=False,
    )  # fmt: skip
    check_against(Qwen2MoeSparseMoeBlock(config), experts=E, top_k=4, norm_topk=False, shared=4, shared_gate=True)


@pytest.mark.parametrize("norm_topk", [False, True])
def test_deepseek_v3(norm_topk):
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Config, DeepseekV3MoE

    config = DeepseekV3Config(
        hidden_size=D, moe_intermediate_size=F_, n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=2,
        n_group=1, topk_group=1, norm_topk_prob=norm_topk, routed_scaling_factor=2.5,
    )  # fmt: skip
    other = DeepseekV3MoE(config)
    other.gate.e_score_correction_bias.normal_()  # large enough to change who is chosen
    own = dict(experts=8, top_k=3, shared=2, router="sigmoid", norm_topk=norm_topk, scale=2.5, bias=True)
    check_against(other, **own)


def test_arctic_is_a_llama_layer_with_experts_beside_it():
    from transformers.models.llama.modeling_llama import (
        LlamaConfig,
        LlamaDecoderLayer,
        LlamaRMSNorm,
        LlamaRotaryEmbedding,
    )  # fmt: skip
    from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralSparseMoeBlock

    llama = LlamaConfig(
        hidden_size=D, intermediate_size=F_, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=CFG.norm_eps,
        attn_implementation="sdpa",
    )  # fmt: skip
    dense = randomised(LlamaDecoderLayer(llama, 0))
    norm = randomised(LlamaRMSNorm(D, eps=CFG.norm_eps))
    sparse = randomised(MixtralSparseMoeBlock(
        MixtralConfig(hidden_size=D, intermediate_size=F_, num_local_experts=E, num_experts_per_tok=2)
    ))  # fmt: skip
    arctic = f"Norm->Attn->+->Norm->MLP->+ || Norm->MoE(experts={E})->+"
    mine = make_layers(CFG.replace(recipe=arctic, num_layers=1))[0].eval()
    x = torch.randn(B, T, D)
    with torch.no_grad():
        mine.norm.weight.copy_(dense.input_layernorm.weight)
        mine.norm_2.weight.copy_(dense.post_attention_layernorm.weight)
        mine.norm_3.weight.copy_(norm.weight)
        for name in "qkvo":
            getattr(mine.attn, f"W{name}").weight.copy_(getattr(dense.self_attn, f"{name}_proj").weight)
        take_mlp(mine.mlp, dense.mlp.gate_proj.weight, dense.mlp.up_proj.weight, dense.mlp.down_proj.weight)
        take_weights(mine.moe, sparse)
        rope = LlamaRotaryEmbedding(llama)(x, torch.arange(T)[None])
        layer = dense(x, position_embeddings=rope)
        expected = (layer[0] if isinstance(layer, tuple) else layer) + sparse(norm(x))
        torch.testing.assert_close(mine(x), expected, atol=1e-5, rtol=1e-5)


def test_balance_loss_is_mixtrals():
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = (torch.randn(B, T, E) * 3).requires_grad_()
    scores = logits.softmax(-1)
    counts = F.one_hot(scores.topk(2).indices, E).sum((0, 1, 2))
    got, expected = balance_loss(scores, counts), load_balancing_loss_func((logits.flatten(0, 1),), E, top_k=2)
    torch.testing.assert_close(got, expected)
    slopes = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (got, expected)]
    torch.testing.assert_close(*slopes)


def test_balance_loss_of_even_and_of_worst_use():
    even = torch.full((B, T, E), 1 / E)
    assert balance_loss(even, torch.full((E,), B * T)).item() == pytest.approx(
        E
    )  # top_k = E: every expert, every token
    worst = F.one_hot(torch.zeros(B, T, dtype=torch.int64), E).double()
    assert balance_loss(worst, torch.tensor([B * T] + [0] * (E - 1))).item() == pytest.approx(E)  # top_k = 1


def test_balance_loss_of_scores_that_do_not_sum_to_one():
    """As from sigmoids: only how they are shared out counts."""
    scores, counts = torch.rand(B, T, E), torch.arange(E)
    torch.testing.assert_close(balance_loss(0.1 * scores, counts), balance_loss(scores, counts))


# ---------------------------------------------------------------- what every block must do


def plain(moe, x):
    """The same by the definition: each token by itself, each expert asked in turn."""
    out = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            scores = moe.score(moe.router(x[b, t]))
            chosen = (scores + (0 if moe.bias is None else moe.bias)).argsort(descending=True)[: moe.top_k]
            total = scores[chosen].sum() if moe.norm_topk else 1
            out[b, t] = moe.scale * sum(scores[i] / total * moe.experts[i](x[b, t]) for i in chosen.tolist())
            if moe.shared is not None:
                gate = 1 if moe.shared_gate is None else moe.shared_gate(x[b, t]).sigmoid()
                out[b, t] += gate * moe.shared(x[b, t])
    return out


@torch.no_grad()
def test_same_as_the_definition(moe):
    if moe.bias is not None:
        moe.bias.normal_()
    x = torch.randn(B, T, D)
    torch.testing.assert_close(moe(x), plain(moe, x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_each_token_is_worked_on_by_itself(moe):
    """Hence neither batch rows nor later tokens can be seen, and decoding is the same as the full forward."""
    x = torch.randn(B, T, D)
    alone = torch.stack([moe(x[:, t : t + 1])[:, 0] for t in range(T)], dim=1)
    torch.testing.assert_close(moe(x), alone)
    torch.testing.assert_close(moe(x)[1:2], moe(x[1:2]))


@pytest.mark.parametrize("step", [1, 3])
@torch.no_grad()
def test_decoding_equals_the_full_forward(step):
    model, row = randomised(GPT(SPARSE)), tokens(length=12)
    ctx = model.context(row, decode=True)
    parts = [model(row[:, i : i + step], ctx) for i in range(0, 12, step)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(row), atol=1e-4, rtol=1e-4)
    assert ctx.aux == {}


def test_gradcheck():
    cfg = ModelConfig(dim=4, num_layers=1, vocab_size=4, num_q_heads=1, num_kv_heads=1, mlp_hidden=3)
    for own in ({"experts": 3}, {"experts": 4, "router": "sigmoid", "shared": 1, "shared_gate": True, "bias": True}):
        moe = randomised(MoE(cfg, **own).double(), std=1.0)
        inputs = [torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True), *moe.parameters()]
        assert torch.autograd.gradcheck(lambda x, *_, moe=moe: moe(x), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dtypes(moe, dtype):
    x = torch.randn(B, T, D, dtype=dtype)
    y = moe.to(dtype).train()(x)
    assert y.dtype == dtype and y.isfinite().all()


def test_mixed_precision(moe):
    x = torch.randn(B, T, D)
    with torch.autocast("cpu", torch.bfloat16):
        y = moe.train()(x)
    torch.testing.assert_close(y, moe(x), atol=0.1, rtol=0.1)


def test_every_parameter_gets_a_gradient():
    moe = randomised(MoE(CFG, **ALL, top_k=E))
    moe(torch.randn(B, T, D)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in moe.parameters())


def test_experts_without_tokens_get_zero_gradients():
    moe = randomised(MoE(CFG, experts=E))
    moe(torch.randn(1, 1, D)).sum().backward()
    largest = [max(p.grad.abs().max().item() for p in expert.parameters()) for expert in moe.experts]
    assert sum(size > 0 for size in largest) == 2 and largest.count(0) == E - 2


def test_trace_names_all_dimensions_but_the_number_of_experts_and_their_shares():
    with trace(GPT(SPARSE), names=SPARSE) as tr:
        tr.model(tokens())
    lines = [line for line in str(tr).splitlines() if "send()" in line or "choose()" in line or "moe  MoE" in line]
    assert any("x (B,T,D)" in line and "→ (B,T,D)" in line for line in lines)
    assert any("choose()" in line and "(B,T,7) → " in line and "(B,T,2)" in line for line in lines)
    assert "(2·B·T,D)" in str(tr) and "took another path" not in str(tr)
    assert not tr.lints


def test_compiled_is_the_same():
    moe = randomised(MoE(CFG, **ALL))
    x = torch.randn(B, T, D)
    torch.testing.assert_close(torch.compile(moe, backend="eager")(x), moe(x))


def test_active_parameters():
    moe = MoE(CFG, experts=8, top_k=2, shared=1, hidden=10)
    one = 3 * D * 10
    assert sum(p.numel() for p in moe.parameters()) == 9 * one + 8 * D
    assert moe.active_parameters == 3 * one + 8 * D


def test_starts_like_an_mlp():
    """As in a plain model, all experts start by adding nothing, but not in front of a norm; Muon takes them all."""
    model = GPT(SPARSE)
    assert all(expert.Wdown.weight.abs().max() == 0 for expert in model.layers[0].moe.experts)
    logits = model(tokens())
    assert F.cross_entropy(logits.flatten(0, 1), tokens().flatten()).item() == pytest.approx(math.log(260), rel=0.02)
    normed = GPT(CFG.replace(recipe="Norm->Attn->+->Norm->MoE(shared=1)->Norm->+")).layers[1].moe
    assert all(part.Wdown.weight.abs().max() > 0 for part in [*normed.experts, normed.shared])
    chosen_in_config = GPT(CFG.replace(mlp_block="MoE")).layers[0].mlp
    assert isinstance(chosen_in_config, MoE) and chosen_in_config.experts[0].Wdown.weight.abs().max() == 0
    muon = {id(p) for p in make_optimizers(model, TrainConfig())[1].param_groups[0]["params"]}
    assert muon >= {id(p) for p in model.layers[0].moe.parameters()}


def test_a_single_expert_is_an_mlp():
    moe, mlp = randomised(MoE(CFG, experts=1, top_k=1, norm_topk=False)), MLP(CFG)
    mlp.load_state_dict(moe.experts[0].state_dict())
    x = torch.randn(B, T, D)
    torch.testing.assert_close(moe(x), mlp(x))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("experts=0", "experts=0 must be at least 1"),
        ("top_k=9", "top_k=9 must be from 1 to experts=8"),
        ('router="sofmax"', "router='sofmax' is unknown; choose from softmax, sigmoid"),
        ("top_k=1, norm_topk=true", "router could not learn"),
        ("shared_gate=true", "needs shared=1"),
        ("hidden=0", "hidden=0 must be"),
    ],
)
def test_settings_that_cannot_be(arguments, message):
    with pytest.raises(RecipeError, match=message):
        GPT(CFG.replace(recipe=f"Norm->MoE({arguments})->+"))


# ---------------------------------------------------------------- training


def losses_of(moe, x):
    ctx = make_context(CFG, x).at("here")
    moe(x, ctx)
    return ctx.aux


def test_auxiliary_losses_only_while_training():
    moe = randomised(MoE(CFG, experts=E, balance=0.5, z=0.25))
    x = torch.randn(B, T, D)
    assert losses_of(moe, x) == {}
    aux, logits = losses_of(moe.train(), x), moe.router(x)
    assert aux.keys() == {("here", "balance"), ("here", "router_z")}
    counts = F.one_hot(logits.topk(2).indices, E).sum((0, 1, 2))
    assert aux["here", "balance"].item() == pytest.approx(0.5 * balance_loss(logits.softmax(-1), counts).item())
    assert aux["here", "router_z"].item() == pytest.approx(0.25 * logits.logsumexp(-1).square().mean().item())
    assert losses_of(MoE(CFG, bias=True), x) == {}, "the bias takes the loss's place"


def test_bias_moves_towards_the_experts_with_fewer_tokens():
    moe = MoE(CFG, experts=4, top_k=1, bias=True, bias_rate=0.125).train()
    moe.load += torch.tensor([9, 1, 4, 2])  # 4 on average
    moe.after_step()
    assert moe.bias.tolist() == [-0.125, 0.125, 0.0, 0.125] and moe.load.tolist() == [0, 0, 0, 0]


@torch.no_grad()
def test_bias_evens_out_the_use_and_never_enters_the_weights():
    moe = MoE(CFG, experts=E, router="sigmoid", bias=True, bias_rate=0.005, norm_topk=False).train()
    moe.router.weight.copy_(torch.randn(E, D) * 0.3)
    x = torch.randn(64, 8, D) + 1
    uses = []
    for _ in range(200):
        moe(x)
        uses.append(moe.load / moe.load.double().mean())
        moe.after_step()
    assert uses[0].max() > 2 and uses[-1].max() < 1.2, "the busiest expert's tokens over the average"
    scores = moe.router(x).sigmoid()
    weights, chosen = moe.choose(scores)
    assert torch.equal(weights, scores.gather(-1, chosen))
    assert not torch.equal(chosen, scores.topk(2).indices)


def test_counts_only_what_is_trained_on():
    moe = MoE(CFG, bias=True).eval()
    moe(torch.randn(B, T, D))
    assert moe.load.sum() == 0
    moe.train()(torch.randn(B, T, D))
    assert moe.load.sum() == B * T * 2
    assert {"bias"} == moe.state_dict().keys() - dict(moe.named_parameters()), "counts of half a step are not kept"


def make_step(recipe, parts=1):
    model = randomised(GPT(CFG.replace(recipe=recipe)), std=0.1)
    return Step(model, TrainConfig(precision="fp32", grad_accum_steps=parts))


def test_the_step_adds_auxiliary_losses_to_the_gradient_but_not_to_the_report():
    step, x, y = make_step("Norm->MoE(balance=5.0, z=1.0)->+"), tokens(), tokens()
    reported, weight = step.backward(x, y), step.model.layers[0].moe.router.weight
    ctx = step.model.context(x)
    pure = F.cross_entropy(step.model(x, ctx).flatten(0, 1), y.flatten())
    assert reported == pytest.approx(pure.item()) and len(ctx.aux) == 2 * CFG.num_layers
    expected = torch.autograd.grad(pure + sum(ctx.aux.values()), weight, retain_graph=True)[0]
    torch.testing.assert_close(weight.grad, expected)
    assert (weight.grad - torch.autograd.grad(pure, weight)[0]).abs().max() > 0.1 * expected.abs().max()


def test_micro_batches_share_the_auxiliary_losses():
    """With equal micro-batches, the gradient is that of one of them."""
    x, y, grads = tokens(2), tokens(2), []
    for parts in (1, 2):
        torch.manual_seed(0)
        step = make_step("Norm->MoE(balance=5.0)->+", parts)
        step.backward(x.repeat(parts, 1), y.repeat(parts, 1))
        grads.append(step.model.layers[0].moe.router.weight.grad)
    torch.testing.assert_close(*grads)


def test_the_step_moves_the_bias_and_a_saved_model_keeps_it(tmp_path):
    cfg = CFG.replace(recipe="Norm->Attn->+->Norm->MoE(bias=true)->+")
    step = Step(GPT(cfg), TrainConfig(max_iters=10, precision="fp32", grad_accum_steps=2))
    for _ in range(3):
        step(tokens(4), tokens(4))
    bias = step.model.layers[0].moe.bias
    assert 0 < bias.abs().max() <= 0.003 + 1e-6 and step.model.layers[0].moe.load.sum() == 0
    save_model(step.model, get_tokenizer("byte"), tmp_path / "sparse")
    loaded, _, _ = load_model(tmp_path / "sparse")
    assert torch.equal(loaded.layers[0].moe.bias, bias)


def test_learns_one_batch():
    cfg = CFG.replace(recipe="Norm->Attn->+->Norm->MoE(shared=1, z=0.001)->+")
    step = Step(GPT(cfg), TrainConfig(max_iters=60, warmup_iters=2, precision="fp32"))
    x, y = tokens(2, 8), tokens(2, 8)
    losses = [step(x, y) for _ in range(60)]
    assert losses[0] > 5 and losses[-1] < 0.5
