"""Weight sharing: by tags and loops, with ALBERT's parameter counts, with low-rank differences; narrow embeddings."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from config import ModelConfig
from lab.checks import check_block, randomised
from model import GPT, MLP, make_context
from tokenizer import get_tokenizer
from tools import load_model, save_model

SMALL = ModelConfig(dim=16, num_layers=3, vocab_size=50, max_seq_len=24, num_q_heads=4, num_kv_heads=2, head_dim=6)
SHARED = "Norm->LowRank(rank=2){Attn#attn}->+->Norm->LowRank(rank=3){MLP#ffn}->+"


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())  # a shared one is met once


def some_tokens(rows: int = 3, length: int = 11) -> torch.Tensor:
    return torch.randint(0, SMALL.vocab_size, (rows, length))


# ---------------------------------------------------------------- low-rank differences


def test_low_rank_is_the_inner_block_with_other_matrices():
    model = randomised(GPT(SMALL.replace(recipe="LowRank(rank=3){MLP#ffn}")))
    x = torch.randn(2, 5, SMALL.dim)
    outputs = []
    for layer in model.layers:
        wrapper, plain = layer.lowrank, MLP(SMALL)
        with torch.no_grad():
            for name, up, down in zip(("Wgate", "Wup", "Wdown"), wrapper.up, wrapper.down, strict=True):
                getattr(plain, name).weight.copy_(getattr(wrapper.inner.mlp, name).weight + up @ down)
        outputs.append(wrapper(x))
        torch.testing.assert_close(outputs[-1], plain(x))
    assert not torch.allclose(outputs[0], outputs[1])


def test_the_difference_has_the_rank():
    wrapper = randomised(GPT(SMALL.replace(recipe="LowRank(rank=3){MLP#ffn}"))).layers[1].lowrank
    for name, matrix in wrapper.matrices().items():
        difference = matrix - wrapper.inner.get_parameter(name)
        assert torch.linalg.matrix_rank(difference.detach()) == 3


def test_what_is_shared_is_one_and_what_differs_is_each_layers_own():
    layers = GPT(SMALL.replace(recipe=SHARED)).layers
    assert layers[0].lowrank.inner.attn is layers[2].lowrank.inner.attn
    assert layers[0].lowrank_2.inner.mlp is layers[2].lowrank_2.inner.mlp
    assert layers[0].lowrank.up[0] is not layers[2].lowrank.up[0]


def test_with_up_at_zero_where_it_starts_it_is_what_is_shared():
    model = randomised(GPT(SMALL.replace(recipe=SHARED)))
    fresh = GPT(SMALL.replace(recipe=SHARED))
    with torch.no_grad():
        for (name, p), start in zip(model.named_parameters(), fresh.parameters(), strict=True):
            if ".up." in name or ".down." in name:
                p.copy_(start)
                assert start.any() == (".down." in name)
    plain = GPT(SMALL.replace(recipe="Norm->Attn#attn->+->Norm->MLP#ffn->+"))
    kept = {name: p for name, p in model.state_dict().items() if not re.search(r"\.(up|down)\.", name)}
    plain.load_state_dict({re.sub(r"lowrank(_2)?\.inner\.", "", name): p for name, p in kept.items()})
    tokens = some_tokens()
    torch.testing.assert_close(model(tokens), plain(tokens))


def test_low_rank_costs_rank_times_inputs_and_outputs():
    D, F = SMALL.dim, SMALL.mlp_hidden
    Q, KV = SMALL.num_q_heads * SMALL.head_dim, SMALL.num_kv_heads * SMALL.head_dim
    shared = SHARED.replace("LowRank(rank=2)", "").replace("LowRank(rank=3)", "")
    more = count(GPT(SMALL.replace(recipe=SHARED))) - count(GPT(SMALL.replace(recipe=shared)))
    each = 2 * ((D + Q) + 2 * (D + KV) + (Q + D)) + 3 * (3 * (D + F))
    assert more == SMALL.num_layers * each


@pytest.mark.parametrize("recipe", [SHARED, "LowRank(rank=1){{Norm->Attn->+->Norm->MLP->+}#all}"])
def test_low_rank_passes_every_check(recipe):
    report = check_block(recipe)
    assert report.ok, report


@pytest.mark.parametrize("recipe, message", [
    ("LowRank(rank=0){MLP}", "rank=0 must be a whole number, at least 1"),
    ("LowRank(rank=1.5){MLP}", "rank=1.5 must be"),
    ("LowRank{Norm}", "no nn.Linear"),
    ("LowRank(rank=2)", "needs an inner recipe"),
])  # fmt: skip
def test_what_low_rank_refuses(recipe, message):
    with pytest.raises(ValueError, match=message):
        GPT(SMALL.replace(recipe=recipe))


def test_shared_attention_keeps_a_state_for_each_layer():
    model, tokens = randomised(GPT(SMALL.replace(recipe=SHARED))), some_tokens()
    ctx = model.context(tokens, decode=True)
    parts = [model(tokens[:, t : t + 1], ctx) for t in range(tokens.shape[1])]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens))
    assert len(ctx.cache) == SMALL.num_layers


# ---------------------------------------------------------------- ALBERT

ALBERT = SMALL.replace(
    num_layers=1, num_kv_heads=4, head_dim=4, norm_type="LayerNorm", norm_bias=True, mlp_gated=False, mlp_bias=True,
    mlp_nonlinearity="gelu", mlp_hidden=48,
)  # fmt: skip
LAYER = "Attn->+->Norm->=->MLP->+->Norm->="


def test_a_looped_layer_has_the_parameters_of_albert():
    from transformers import AlbertConfig, AlbertModel

    counts = []
    for loops in (1, 12):
        theirs = AlbertModel(AlbertConfig(
            hidden_size=16, intermediate_size=48, num_attention_heads=4, embedding_size=8, vocab_size=50,
            num_hidden_layers=loops, num_hidden_groups=1,
        ))  # fmt: skip
        ours = GPT(ALBERT.replace(recipe="{" + LAYER + "}^" + str(loops)))
        assert count(ours.layers) == count(theirs.encoder.albert_layer_groups) - 4 * 16  # our attention has no biases
        counts.append(count(ours))
    assert counts[0] == counts[1], "running a layer again costs no parameters"


@pytest.mark.parametrize("recipe, shared", [
    ("Norm->Attn->+->Norm->MLP#ffn->+", ("mlp",)),
    ("Norm->Attn#attn->+->Norm->MLP->+", ("attn",)),
    ("Norm->Attn#attn->+->Norm->MLP#ffn->+", ("attn", "mlp")),
])  # fmt: skip
def test_what_albert_shares_across_layers_is_counted_once(recipe, shared):
    """What ALBERT compares in its table 4: sharing the FFN, attention, or both; norms stay each layer's own here."""
    free = GPT(SMALL.replace(recipe="Norm->Attn->+->Norm->MLP->+"))
    tied = GPT(SMALL.replace(recipe=recipe))
    saved = (SMALL.num_layers - 1) * sum(count(getattr(free.layers[0], name)) for name in shared)
    assert count(tied) == count(free) - saved


def test_a_loop_is_the_same_layer_again():
    cfg = SMALL.replace(num_layers=1)
    model = randomised(GPT(cfg.replace(recipe="{Norm->Attn->+->Norm->MLP->+}^3")))
    single = GPT(cfg.replace(recipe="{Norm->Attn->+->Norm->MLP->+}"))
    single.load_state_dict(model.state_dict())
    x = torch.randn(2, 7, cfg.dim)
    expected = x
    for _ in range(3):
        expected = single.layers[0](expected, make_context(cfg, x))
    torch.testing.assert_close(model.layers[0](x, make_context(cfg, x)), expected)


# ---------------------------------------------------------------- factorised embedding


def test_the_factorised_embedding_is_alberts():
    from transformers import AlbertConfig, AlbertModel

    theirs = AlbertModel(AlbertConfig(
        hidden_size=16, intermediate_size=48, num_attention_heads=4, embedding_size=5, vocab_size=50,
        num_hidden_layers=1, pad_token_id=None,
    ))  # fmt: skip
    ours, tokens = GPT(SMALL.replace(embed_dim=5)), some_tokens()
    words, up = theirs.embeddings.word_embeddings, theirs.encoder.embedding_hidden_mapping_in
    with torch.no_grad():
        ours.embed.weight.copy_(words.weight)
        ours.embed_up.weight.copy_(up.weight)
        up.bias.zero_()  # ours has none
    torch.testing.assert_close(ours.embed_tokens(tokens, ours.context(tokens)), up(words(tokens)))


def test_a_tied_head_goes_back_through_the_narrow_embedding():
    V, D, E = SMALL.vocab_size, SMALL.dim, 5
    model = randomised(GPT(SMALL.replace(embed_dim=E)))
    assert model.head[1].weight is model.embed.weight
    assert count(model) - count(GPT(SMALL)) == (V * E + E * D + D * E) - V * D
    tokens = some_tokens()
    expected = model.features(tokens) @ model.head[0].weight.T @ model.embed.weight.T
    torch.testing.assert_close(model(tokens), expected)


def test_a_free_head_stays_one_matrix():
    model = GPT(SMALL.replace(embed_dim=5, tied_head=False))
    assert model.head.weight.shape == (SMALL.vocab_size, SMALL.dim)
    assert model.embed.weight.shape == (SMALL.vocab_size, 5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_factorised_model_starts_at_ln_v_and_trains_all_of_it(tied):
    model, tokens = GPT(SMALL.replace(embed_dim=5, tied_head=tied)), some_tokens(rows=8)
    loss = F.cross_entropy(model(tokens).flatten(0, 1), torch.randint(0, 50, (8 * 11,)))
    assert loss.item() == pytest.approx(math.log(50), rel=0.02)
    randomised(model)(tokens).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_factorised_model_is_saved_and_loaded(tmp_path):
    tok = get_tokenizer("byte")
    model = randomised(GPT(SMALL.replace(embed_dim=5, vocab_size=tok.vocab_size, recipe=SHARED)))
    back, _, cfg = load_model(save_model(model, tok, tmp_path / "narrow"))
    assert cfg.embed_dim == 5
    assert back.head[1].weight is back.embed.weight
    tokens = some_tokens()
    torch.testing.assert_close(back(tokens), model.eval()(tokens), rtol=0, atol=0)


@pytest.mark.parametrize("width", [0, 16, 17])
def test_an_embedding_must_be_narrower_than_the_model(width):
    with pytest.raises(ValueError, match=f"embed_dim={width} must be from 1 to dim - 1 = 15"):
        SMALL.replace(embed_dim=width)
