"""lab/calibration.py: every figure by brute force on four letters, n-gram baselines against lab/ngram.py."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from toy_models import Bigram, Letters

from config import ModelConfig
from lab import files, ngram
from lab.calibration import NGramModel, _labels, calibrate, calibration, distributions, fit_baselines, predict, table
from lab.evaluation import evaluate
from lab.plots import Run
from lab.saving import save_model
from model import GPT
from tokenizer import ByteTokenizer

DOCUMENTS = ["abcda", "dd", "cab", "abacabad"]
PAIRS = [(a, b) for text in DOCUMENTS for a, b in zip([1, *("abcd".find(c) + 2 for c in text)],
                                                     ["abcd".find(c) + 2 for c in text])]  # fmt: skip


@pytest.fixture
def bigram():
    return Bigram(torch.randn(6, 6, generator=torch.Generator().manual_seed(3)))


# ---------------------------------------------------------------- golden values


def test_all_figures_by_brute_force(bigram):
    p = bigram.table.detach().double().softmax(-1).tolist()
    rows = [(p[a], b) for a, b in PAIRS]
    n = len(rows)
    found = calibration(bigram, Letters(), DOCUMENTS, bins=4, resamples=50)
    assert found["tokens"] == n
    assert found["nats_per_token"]["value"] == pytest.approx(-sum(math.log(q[b]) for q, b in rows) / n, abs=1e-6)
    assert found["entropy"]["value"] == pytest.approx(-sum(x * math.log(x) for q, _ in rows for x in q) / n, abs=1e-6)
    for k in (1, 3, 5):
        hits = sum(b in sorted(range(6), key=lambda i: -q[i])[:k] for q, b in rows)
        assert found[f"top{k}"]["value"] == pytest.approx(hits / n)
    error = 0.0
    for i in range(4):
        inside = [(q, b) for q, b in rows if i / 4 <= max(q) < (i + 1) / 4]
        if inside:
            right = sum(q[b] == max(q) for q, b in inside)
            error += abs(right - sum(max(q) for q, _ in inside)) / n
    assert found["calibration_error"]["value"] == pytest.approx(error, abs=1e-6)
    assert sum(row["share"] for row in found["bins"]) == pytest.approx(1)
    assert json.loads(json.dumps(found)) == found


def test_agrees_with_evaluate(bigram):
    scores, found = evaluate(bigram, Letters(), DOCUMENTS), calibration(bigram, Letters(), DOCUMENTS, resamples=50)
    for key in ("top1", "top3", "top5", "top10", "nats_per_token", "bits_per_byte"):
        assert found[key]["value"] == pytest.approx(scores[key], abs=1e-6)


def test_an_untrained_model_lands_at_chance():
    """As it is drawn, a GPT knows nothing: top-k near k / V, entropy and loss near ln V, and it does not pretend."""
    model, V = GPT(ModelConfig(dim=32, num_layers=2, vocab_size=260, max_seq_len=64)), 260
    generator = np.random.default_rng(0)
    documents = ["".join(map(chr, generator.integers(32, 127, 400))) for _ in range(20)]
    found = calibration(model, ByteTokenizer(), documents, resamples=100)
    for k in (1, 3, 5, 10):
        assert found[f"top{k}"]["value"] == pytest.approx(k / V, abs=0.012)
    assert found["entropy"]["value"] == pytest.approx(math.log(V), rel=0.02)
    assert found["nats_per_token"]["value"] == pytest.approx(math.log(V), rel=0.02)
    assert found["calibration_error"]["value"] < 0.02


def test_a_uniform_model_is_exactly_at_chance():
    found = calibration(Bigram(torch.zeros(6, 6)), Letters(), DOCUMENTS, resamples=50)
    assert found["top1"] == {"value": pytest.approx(1 / 6), "half_width": pytest.approx(0, abs=1e-7)}
    assert found["entropy"]["value"] == pytest.approx(math.log(6), abs=1e-6)
    assert found["calibration_error"]["value"] == pytest.approx(0, abs=1e-6)


def test_a_model_too_sure_of_itself_is_caught():
    """It gives "a" 99.99 % after everything, and "a" comes half of the time."""
    table = torch.zeros(6, 6)
    table[:, 2] = 11.0
    found = calibration(Bigram(table), Letters(), ["abab", "baba"], resamples=50)
    assert found["calibration_error"]["value"] == pytest.approx(0.5, abs=1e-3)
    assert found["entropy"]["value"] < 0.01


def test_impossible_tokens_leave_the_entropy_finite():
    table = torch.zeros(6, 6)
    table[:, 5] = -math.inf
    assert predict(Bigram(table), Letters(), ["abc"]).entropy == pytest.approx(math.log(5), abs=1e-6)


def test_batch_size_and_padding_change_no_figure():
    torch.manual_seed(1)
    model = GPT(ModelConfig(dim=16, num_layers=2, vocab_size=260, max_seq_len=12, num_q_heads=4, num_kv_heads=2))
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    documents = ["hello world, this is long", "x", "the cat", "ab" * 9]
    one, many = (predict(model, ByteTokenizer(), documents, batch_size=n) for n in (1, 16))
    for name in ("nats", "confidence", "entropy"):
        assert np.abs(getattr(one, name) - getattr(many, name)).max() < 2e-6
    assert (one.above == many.above).all()


def test_one_document_is_not_enough(bigram):
    with pytest.raises(ValueError, match="documents=1"):
        calibration(bigram, Letters(), ["abc"])


# ---------------------------------------------------------------- n-grams


@pytest.fixture
def text():
    generator = np.random.default_rng(2)
    return ["".join(generator.choice(list("abcd"), size=generator.integers(1, 20), p=[0.5, 0.3, 0.15, 0.05]))
            for _ in range(40)]  # fmt: skip


@pytest.mark.parametrize("order", [1, 2, 5])
def test_distributions_equal_the_probabilities_one_by_one(text, order):
    fitted = ngram.fit(Letters().encode_batch(text, eos=True), order, 6)
    contexts = np.random.default_rng(0).integers(1, 6, (30, order - 1))
    found = distributions(fitted, contexts)
    assert found.sum(1) == pytest.approx(1)
    for token in range(6):
        windows = np.concatenate([contexts, np.full((30, 1), token)], axis=1)
        assert found[:, token] == pytest.approx(fitted.probabilities(windows))


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_scored_as_a_model_it_costs_the_same(text, order):
    tok = Letters()
    fitted = ngram.fit(tok.encode_batch(text, eos=True), order, 6)
    scores = evaluate(NGramModel(fitted), tok, DOCUMENTS)
    nats = fitted.nats(tok.encode_batch(DOCUMENTS, eos=True), skip=[tok.eos_id])
    assert scores["nats_per_token"] * scores["tokens"] == pytest.approx(nats, rel=1e-6)


def test_baselines_by_name(text):
    found = fit_baselines(Letters(), text, (1, 2))
    assert list(found) == ["unigram", "bigram"]
    assert found["bigram"].fitted.order == 2
    with pytest.raises(ValueError, match="none to count"):
        fit_baselines(Letters(), [])
    fewer = fit_baselines(Letters(), text, (1,), max_bytes=10)["unigram"].fitted.levels[0].counts.sum()
    assert fewer < 40


def test_baselines_of_other_texts_have_other_names():
    def run(text, text_fingerprint, tokenizer="bpe", fingerprint="t1"):
        return Run("x", Path("x"), tokenizer, fingerprint, text, text_fingerprint)

    def labels(*runs):
        return _labels({(run.tokenizer_fingerprint, run.text_fingerprint): [run] for run in runs})

    assert labels(run("a.txt", "f1"), run("a.txt", "f1", "byte", "t2")) == ["bpe", "byte"]
    assert labels(run("a.txt", "f1"), run("b.txt", "f2")) == ["bpe, a.txt", "bpe, b.txt"]
    assert labels(run("a.txt", "f1"), run("a.txt", "f2")) == ["bpe, a.txt, t1, f1", "bpe, a.txt, t1, f2"]
    assert labels(run("a.txt", "f1"), run("a.txt", "f1", "bpe", "t2")) == ["bpe, t1, f1", "bpe, t2, f1"]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A saved model whose training text is here; the path of a held-out text."""
    monkeypatch.setattr(files, "TRAINED_MODELS", tmp_path)
    training, held_out = tmp_path / "train.txt", tmp_path / "valid.txt"
    training.write_text("\n<|endoftext|>\n".join(["the cat sat", "the dog sat", "the cat ran"] * 20))
    held_out.write_text("\n<|endoftext|>\n".join(["the dog ran", "the cat sat"]))
    model = GPT(ModelConfig(dim=16, num_layers=1, vocab_size=260, max_seq_len=16, num_q_heads=2, num_kv_heads=1))
    save_model(model, ByteTokenizer(), tmp_path / "mine")
    (tmp_path / "mine" / "train_config.json").write_text(json.dumps({"dataset": str(training)}))
    return str(held_out)


def test_all_baselines_that_are_not_kept_come_from_one_pass_over_the_text(mine, monkeypatch):
    """An order that does not fit the vocabulary takes none of the others with it."""
    passes = []

    def counted(tok, documents, orders):
        passes.append(list(orders))
        return fit_baselines(tok, documents, orders)

    monkeypatch.setattr("lab.calibration.fit_baselines", counted)
    bigram = calibrate(["mine"], mine, orders=(2,), resamples=50, save=True)
    with pytest.warns(UserWarning, match="the 9-gram baseline is left out: order=9") as said:
        results = calibrate(["mine"], mine, orders=(1, 9, 2, 5), resamples=50)
    assert len(said) == 1 and said[0].filename == __file__
    assert [name.split(" ")[0] for name in results] == ["mine", "unigram", "bigram", "5-gram"]
    assert passes == [[2], [1, 5]]
    assert bigram.items() <= results.items()


def test_saved_models_beside_baselines(mine, monkeypatch):
    results = calibrate(["mine"], mine, resamples=50, save=True)
    with monkeypatch.context() as patch:
        patch.setattr("lab.calibration.calibration_of", lambda *args, **options: pytest.fail("computed again"))
        assert calibrate(["mine"], mine, resamples=50) == results
    with pytest.warns(UserWarning, match="the 9-gram baseline is left out: order=9"):
        assert list(calibrate(["mine"], mine, orders=(9,), resamples=50)) == ["mine"]
    names = list(results)
    assert names[0] == "mine"
    assert [name.split(" ")[0] for name in names[1:]] == ["unigram", "bigram", "5-gram"]
    bits = [results[name]["bits_per_byte"]["value"] for name in names]
    assert bits == sorted(bits, reverse=True)  # nothing, then letters, pairs, phrases
    frame = table(results)
    assert list(frame.index) == names
    score = results["mine"]["beyond_expected"]
    assert score["value"] == pytest.approx(
        results["mine"]["nats_per_token"]["value"] - results["mine"]["entropy"]["value"]
    )
    assert frame.loc["mine", "nats - entropy"] == f"{score['value']:+.3f} ± {score['half_width']:.3f}"
