"""lab/costs.py and lab/attention_maps.py: counts against closed forms, weights against what the blocks compute."""

import json
import math

import pytest
import torch
from torch import nn

from config import ModelConfig
from lab import files
from lab.attention_maps import attention_maps, next_tokens, weights_of
from lab.costs import costs, decode_state, flops_per_token, table, unbeaten
from lab.runs import larger, most_memory
from lab.saving import save_model
from model import GPT, LAYERS, find_block, make_context
from tokenizer import ByteTokenizer

SIZES = {"dim": 24, "num_layers": 3, "vocab_size": 260, "max_seq_len": 20, "num_q_heads": 4, "num_kv_heads": 2}
TEXT = "Tom has a red hat"


def randomised(**changes):
    model = GPT(ModelConfig(**SIZES | {"head_dim": 6, "mlp_hidden": 40} | changes))
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model.eval()


# ---------------------------------------------------------------- costs


def test_flops_equal_the_closed_form():
    """Two for each weight of each matrix, and 4 H K S for attention's two products."""
    D, L, V, T, H, G, K, F = 24, 3, 260, 20, 4, 2, 6, 40
    matrices = L * (2 * D * H * K + 2 * D * G * K + 3 * D * F) + V * D
    assert flops_per_token(randomised()) == 2 * matrices + L * 4 * H * K * T
    assert flops_per_token(randomised(), context=10) == 2 * matrices + L * 4 * H * K * 10


def test_decode_state_of_attention_and_of_a_recurrence():
    assert decode_state(randomised()) == 3 * 2 * 2 * 6 * 20  # layers, keys and values, G, K, tokens
    recurrent = "Norm->RGLRU->+->Norm->MLP->+"
    short, long = (decode_state(randomised(recipe=recurrent, max_seq_len=T)) for T in (10, 40))
    assert 0 < short == long


def test_costs_of_saved_models(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "TRAINED_MODELS", tmp_path)
    for name in ("one", "two"):
        save_model(randomised(), ByteTokenizer(), tmp_path / name)
    record = {"seconds": 50.0, "tokens_seen": 3000, "init_from": {"name": "x", "tokens_seen": 1000, "seconds": 7.0}}
    (tmp_path / "one" / "run.json").write_text(json.dumps(record))
    found = costs(["one", "two"])
    assert found["one"]["train_seconds"] == 57
    assert found["one"]["tokens_per_second"] == 40
    assert found["one"]["decode_state"] == 3 * 2 * 2 * 6
    assert found["one"]["embedding"] + found["one"]["other"] == found["one"]["parameters"]
    assert math.isnan(found["two"]["train_seconds"])
    frame = table(found, {"one": 1.2, "two": 1.1})
    assert list(frame.index) == ["two", "one"]
    assert "peak MB" not in frame  # nobody recorded it
    assert list(table(found, {"three": 1.2}).index) == ["one", "two"]  # scores of other models
    with pytest.raises(ValueError, match="one have the same name"):
        costs(["one", tmp_path / "else" / "one"])
    (tmp_path / "one" / "run.json").write_text(json.dumps(record | {"peak_memory_mb": 512.5}))
    (tmp_path / "two" / "run.json").write_text(json.dumps(record | {"peak_memory_mb": None}))  # Windows
    frame = table(costs(["one", "two"]))
    assert frame.loc["one", "peak MB"] == 512.5
    assert math.isnan(frame.loc["two", "peak MB"])


def test_peak_memory_is_this_processs_and_a_resumed_run_keeps_the_larger():
    found = most_memory(torch.device("cpu"))
    assert list(found) == ["peak_memory_mb"]
    assert 50 < found["peak_memory_mb"] < 100_000
    held = torch.ones(40_000_000)  # 160 MB
    assert most_memory(torch.device("cpu"))["peak_memory_mb"] >= found["peak_memory_mb"] + held.nbytes / 4e6 or (
        found["peak_memory_mb"] > 700  # what the tests before this one held leaves room for it
    )
    assert larger({}, {"peak_memory_mb": 3.0}) == larger({"peak_memory_mb": 2.0}, {"peak_memory_mb": 3.0})
    assert larger({"peak_memory_mb": None}, {"peak_memory_mb": None}) == {"peak_memory_mb": None}
    assert larger({"peak_memory_mb": None}, {"peak_memory_mb": 4.0}) == {"peak_memory_mb": 4.0}


def test_beaten_only_beyond_noise_and_at_no_higher_price():
    pair = {"a": "good", "b": "bad", "difference": -0.1, "told_apart": True}
    result = {"pairs": [pair]}
    assert unbeaten({"good": 1.0, "bad": 1.0}, result) == {"good"}
    assert unbeaten({"good": 2.0, "bad": 1.0}, result) == {"good", "bad"}
    assert unbeaten({"good": 1.0, "bad": 1.0}, {"pairs": [pair | {"told_apart": False}]}) == {"good", "bad"}
    assert unbeaten({"good": math.nan, "bad": 1.0}, result) == {"bad"}


# ---------------------------------------------------------------- attention maps

ATTENTIONS = ["MQA", "SoftCapAttn", "SinkAttn", "GatedAttn", "FlatNormAttn", "ValueResidualAttn"]


@pytest.mark.parametrize("positions", ["rope", "alibi"])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_the_weights_give_the_blocks_own_output(name, positions):
    """weights times values, then `finish` and Wo, must be what forward returned."""
    cfg = ModelConfig(**SIZES | {"positions": positions, "qk_norm": True})
    find_block(name)
    for window in (None, 3):
        block = LAYERS[name](cfg, window=window)
        for p in block.parameters():
            nn.init.normal_(p, std=0.5)
        x = torch.randn(2, 7, 24)
        weights = weights_of(block, x, make_context(cfg, x))
        _, _, v = block.project(x, make_context(cfg, x))
        out = block.finish(weights @ v.repeat_interleave(2, dim=1), x)
        assert torch.allclose(block.Wo(out.transpose(1, 2).flatten(2)), block(x, make_context(cfg, x)), atol=1e-5)


def test_maps_of_chosen_layers_and_heads():
    model, tok = randomised(), ByteTokenizer()
    found = attention_maps(model, tok, TEXT, layers=[0, -1], heads=[1, 3])
    T = len(TEXT) + 1
    assert found["tokens"][:4] == ["<s>", "T", "o", "m"]
    assert [m["layer"] for m in found["maps"]] == [0, 2]
    for m in found["maps"]:
        assert m["weights"].shape == (2, T, T)
        assert torch.allclose(m["weights"].sum(-1), torch.ones(2, T), atol=1e-5)
        assert (m["weights"].triu(1) == 0).all()
    whole = attention_maps(model, tok, TEXT)
    assert len(whole["maps"]) == 3
    assert torch.equal(whole["maps"][2]["weights"][[1, 3]], found["maps"][1]["weights"])


def test_recipes_and_layers_without_attention():
    tok = ByteTokenizer()
    mixed = randomised(recipe="Norm->[Attn|RGLRU]->+->Norm->MLP->+")
    assert len(attention_maps(mixed, tok, "abc")["maps"]) == 3
    with pytest.raises(ValueError, match="no block there attends"):
        attention_maps(randomised(recipe="Norm->RGLRU->+->Norm->MLP->+"), tok, "abc")


def test_the_model_is_left_as_it_was():
    model, tok = randomised().train(), ByteTokenizer()
    attention_maps(model, tok, TEXT)
    next_tokens(model, tok, TEXT)
    assert model.training
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"layers": [3]}, r"layers=\[3\]"), ({"heads": [4]}, r"heads=\[4\]"), ({"layers": []}, r"layers=\[\]"),
     ({"text": "x" * 20}, "exceed max_seq_len=20")],
)  # fmt: skip
def test_wrong_choices(options, message):
    with pytest.raises(ValueError, match=message):
        attention_maps(randomised(), ByteTokenizer(), **{"text": TEXT} | options)


# ---------------------------------------------------------------- next tokens


def test_the_last_layer_says_what_the_model_says():
    model, tok = randomised(), ByteTokenizer()
    found = next_tokens(model, tok, TEXT, k=4)
    log_p = model(torch.tensor([tok.encode(TEXT)]))[0].log_softmax(-1)
    best, places = log_p.exp().topk(4)
    assert [layer["layer"] for layer in found["layers"]] == [0, 1, 2]
    assert torch.allclose(found["layers"][-1]["probabilities"], best, atol=1e-6)
    assert found["layers"][-1]["pieces"] == [[tok.piece(i) for i in row] for row in places.tolist()]
    entropy = -(log_p.exp() * log_p).sum(-1)
    assert torch.allclose(found["layers"][-1]["entropy"], entropy, atol=1e-5)
    assert not torch.allclose(found["layers"][0]["probabilities"], best, atol=1e-3)


def test_a_k_beyond_the_vocabulary():
    with pytest.raises(ValueError, match="k=261"):
        next_tokens(randomised(), ByteTokenizer(), TEXT, k=261)
