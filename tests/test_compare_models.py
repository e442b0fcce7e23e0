"""lab/compare_models.py: differences by hand, intervals that hold the truth as often as they say, rankings."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from config import ModelConfig
from lab import compare_models, files
from lab.compare_models import (
    compare,
    find_runs,
    notes,
    paired_difference,
    ranking,
    sentence,
)  # fmt: skip
from lab.evaluation import evaluate, read_results
from lab.intervals import draw_documents, t_quantile
from lab.kept import kept, read_section
from lab.saving import load_model, save_model
from model import GPT
from tokenizer import ByteTokenizer

STORIES = ["the cat sat on the mat", "a dog ran", "the sun was hot and the day was long", "hello", "red ball, blue car"]


# ---------------------------------------------------------------- one difference


def test_difference_is_total_nats_over_total_bytes():
    a, b, sizes = np.array([2.0, 3.0, 10.0]), np.array([1.0, 5.0, 4.0]), np.array([2, 4, 4])
    found = paired_difference(a, b, sizes)
    assert found["difference"] == pytest.approx((15 - 10) / math.log(2) / 10)
    assert (found["method"], found["seeds"]) == ("documents", [1, 1])
    assert found["high"] - found["difference"] == pytest.approx(found["half_width"])


def test_bootstrap_of_two_documents_by_hand():
    """Two equal documents with differences 0 and 2 bits per byte: drawn means are 0, 1, 2 with 1/4, 1/2, 1/4."""
    sizes = np.array([1.0, 1.0])
    found = paired_difference(np.array([0.0, 2 * math.log(2)]), np.zeros(2), sizes, resamples=4000)
    assert found["difference"] == pytest.approx(1)
    by_t = t_quantile(0.95, 1) / 1.959964  # two documents tell little of their spread
    assert found["half_width"] == pytest.approx(1 * math.sqrt(2) * by_t)  # |deviation| is 1 in half the draws; widened


def test_draws_are_of_the_same_documents_for_both():
    """Stories differ wildly in difficulty; where one model is better by the same amount on each, nothing is unsure."""
    hard = np.array([1.0, 50.0, 200.0, 7.0])
    sizes = np.array([10.0, 20.0, 40.0, 30.0])
    found = paired_difference(hard, hard + 0.1 * sizes, sizes)
    assert found["difference"] == pytest.approx(-0.1 / math.log(2))
    assert found["half_width"] < 1e-6
    assert found["told_apart"]


def test_same_seed_same_numbers():
    a, b, sizes = np.random.default_rng(0).random((3, 20)) + 1
    one, two, other = (paired_difference(a, b, sizes, seed=seed, resamples=300) for seed in (1, 1, 2))
    assert one == two
    assert one["half_width"] != other["half_width"]


def test_few_seeds_by_hand():
    """Documents all alike, so that only the seeds' means vary: Welch's t on (1, 3) against (6, 6, 9)."""
    ones = np.ones(4)
    a = np.array([1.0, 3.0])[:, None] * ones * math.log(2)
    b = np.array([6.0, 6.0, 9.0])[:, None] * ones * math.log(2)
    found = paired_difference(a, b, ones)
    spread_a, spread_b = 2.0 / 2, 3.0 / 3  # variance of the values over their number
    freedom = (spread_a + spread_b) ** 2 / (spread_a**2 / 1 + spread_b**2 / 2)
    assert found["method"] == "t"
    assert found["difference"] == pytest.approx(-5)
    assert found["half_width"] == pytest.approx(t_quantile(0.95, freedom) * math.sqrt(2))


def test_a_single_run_is_taken_to_vary_like_the_others():
    ones = np.ones(4)
    a, b = np.array([1.0, 2.0, 3.0])[:, None] * ones * math.log(2), 5 * ones * math.log(2)
    found = paired_difference(a, b, ones)
    assert found["half_width"] == pytest.approx(t_quantile(0.95, 2) * math.sqrt(1 / 3 + 1))
    assert paired_difference(b, a, ones)["half_width"] == pytest.approx(found["half_width"])


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042), (1e5, 1.960)]
)
def test_students_t_equals_the_printed_table(freedom, expected):
    assert t_quantile(0.95, freedom) == pytest.approx(expected, abs=6e-4)


def test_what_stands_in_one_document_alone_is_never_told_apart():
    """Drawn anew, it is that document or nothing: a spread of 0 would pass for certainty."""
    sizes = np.array([0.0, 10.0, 0.0])
    found = paired_difference(sizes, 2 * sizes, sizes)
    assert found["difference"] == pytest.approx(-1 / math.log(2))
    assert found["half_width"] == math.inf
    assert not found["told_apart"]


@pytest.mark.parametrize("change", ["documents", "one", "level"])
def test_unfit_arrays_are_refused(change):
    a, b, sizes, options = np.ones(3), np.ones(3), np.ones(3), {}
    if change == "documents":
        b = np.ones(4)
    elif change == "one":
        a, b, sizes = a[:1], b[:1], sizes[:1]
    else:
        options = {"level": 95}
    with pytest.raises(ValueError, match={"documents": "documents", "one": "at least 2", "level": "level=95"}[change]):
        paired_difference(a, b, sizes, **options)


# ---------------------------------------------------------------- intervals hold the truth


def coverage(runs_a, runs_b, seed_spread, *, documents=60, trials=300):
    """How often the interval holds the true difference, 0, of simulated models."""
    generator, hits = np.random.default_rng(5), 0
    for trial in range(trials):
        sizes = generator.integers(50, 400, documents).astype(float)
        story = generator.gamma(2.0, 1.0, documents)  # what both models find hard
        a, b = (
            sizes
            * (story + 0.3 * generator.standard_normal(documents) + seed_spread * generator.standard_normal((n, 1)))
            for n in (runs_a, runs_b)
        )
        found = paired_difference(a, b, sizes, resamples=400, seed=trial)
        hits += found["low"] <= 0 <= found["high"]
    return hits / trials


def test_interval_over_documents_covers_at_its_rate():
    assert 0.91 <= coverage(1, 1, 0.0) <= 0.985


@pytest.mark.parametrize("holding", [2, 3, 5])
def test_interval_covers_at_its_rate_where_few_of_many_documents_hold_such_words(holding):
    """Without Student's t, that of two of forty documents held the truth in one trial of two."""
    generator, hits, trials = np.random.default_rng(5), 0, 300
    drawn = draw_documents(40, 300, 0)
    for _ in range(trials):
        sizes = np.where(np.arange(40) < holding, 100.0, 0.0)
        a, b = (sizes * generator.normal(1, 0.2, 40) * math.log(2) for _ in range(2))
        hits += not paired_difference(a, b, sizes, weights=drawn)["told_apart"]  # the true difference is 0
    assert hits / trials >= 0.91


@pytest.mark.parametrize("runs", [(3, 3), (2, 4), (1, 3), (12, 12)])
def test_interval_over_seeds_covers_at_its_rate(runs):
    """Documents alone would hold the truth in a minority of the trials: the seeds' spread is the larger one."""
    assert coverage(*runs, 0.3) >= 0.91
    assert coverage(1, 1, 0.3, trials=100) < 0.6


def test_hierarchical_bootstrap_agrees_with_the_closed_form():
    """Twelve runs each: two ways to the same width, up to the t quantile's surplus over the normal one."""
    generator = np.random.default_rng(1)
    sizes = generator.integers(50, 400, 80).astype(float)
    a, b = (sizes * (generator.random(80) + 0.2 * generator.standard_normal((12, 1))) for _ in range(2))
    drawn = draw_documents(80, 4000, 0)
    by_bootstrap, by_t = (
        half(a, b, sizes, drawn, 0.95, 0) for half in (compare_models.half_by_bootstrap, compare_models.half_by_t)
    )
    assert paired_difference(a, b, sizes)["method"] == "bootstrap"
    assert by_bootstrap == pytest.approx(by_t, rel=0.1)


# ---------------------------------------------------------------- words and rankings


def test_sentences():
    found = {"difference": -0.01234, "half_width": 0.004, "told_apart": True, "method": "t", "seeds": [3, 3]}
    assert sentence("a", "b", found) == "a is better than b by 0.0123 ± 0.0040 bits per byte (95 %, 3 seeds each)"
    assert sentence("a", "b", found | {"difference": 0.01234}).startswith("b is better than a by 0.0123")
    assert sentence("a", "b", found | {"told_apart": False}).startswith("no difference beyond noise between a and b: ")
    assert "1 and 3 seeds, the single run taken to vary" in sentence("a", "b", found | {"seeds": [1, 3]})
    assert "one run each" in sentence("a", "b", found | {"seeds": [1, 1], "method": "documents"})


def ranked(order, apart):
    """Ranks and letters of models in this order, of which these pairs are told apart."""
    models = {name: {} for name in order}
    pairs = [
        {"a": a, "b": b, "difference": -1.0, "told_apart": (a, b) in apart} for a, b in itertools.combinations(order, 2)
    ]
    compare_models.rank_models(models, pairs)
    return {name: (*model["rank"], model["group"]) for name, model in models.items()}


def test_nothing_is_ranked_inside_the_noise():
    assert ranked("abc", set()) == {"a": (1, 3, "a"), "b": (1, 3, "a"), "c": (1, 3, "a")}


def test_a_chain_shares_letters_where_noise_does():
    """a and c are told apart, b from neither: two groups, b in both."""
    assert ranked("abc", {("a", "c")}) == {"a": (1, 2, "a"), "b": (1, 3, "ab"), "c": (2, 3, "b")}


def test_clear_order():
    pairs = {("a", "b"), ("a", "c"), ("b", "c")}
    assert ranked("abc", pairs) == {"a": (1, 1, "a"), "b": (2, 2, "b"), "c": (3, 3, "c")}


# ---------------------------------------------------------------- saved models


def make(name, *, seed, folder, vocab=260, spread=0.3, text="f1"):
    """A model that all seeds nearly share, so that seeds differ little."""
    torch.manual_seed(0)
    model = GPT(ModelConfig(dim=16, num_layers=1, vocab_size=vocab, max_seq_len=12, num_q_heads=2, num_kv_heads=1))
    for p in model.parameters():
        nn.init.normal_(p, std=spread)
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += 1e-3 * torch.randn_like(p)
    save_model(model, ByteTokenizer(), folder / name)
    (folder / name / "run.json").write_text(json.dumps({"text": {"name": "stories", "fingerprint": text}}))


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Three runs of `plain`, two of `loud` (much worse), and one trained on other text; and a file of stories."""
    monkeypatch.setattr(files, "TRAINED_MODELS", tmp_path)
    for i, name in enumerate(["plain", "plain-seed2", "plain-seed3"]):
        make(name, seed=i, folder=tmp_path, spread=0.05)
    for i, name in enumerate(["loud", "loud-seed2"]):
        make(name, seed=i, folder=tmp_path, spread=0.8)
    make("else", seed=9, folder=tmp_path, spread=0.05, text="f2")
    path = tmp_path / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(STORIES), encoding="utf-8")
    return str(path)


def test_compare_saved_models(saved):
    result = compare(["plain", "loud", "else"], saved, resamples=200)
    assert result["models"]["plain"]["runs"] == ["plain", "plain-seed2", "plain-seed3"]
    means = [evaluate(*load_model(name)[:2], STORIES)["bits_per_byte"] for name in result["models"]["plain"]["runs"]]
    assert result["models"]["plain"]["each_run"] == pytest.approx(means, abs=1e-5)
    assert result["models"]["plain"]["bits_per_byte"] == pytest.approx(np.mean(means), abs=1e-5)
    assert list(result["models"])[-1] == "loud"
    assert result["models"]["else"]["marks"] == ["trained on other text (stories)"]
    assert result["bytes"] == sum(len(story) for story in STORIES)
    assert json.loads(json.dumps(result)) == result
    pair = next(p for p in result["pairs"] if {p["a"], p["b"]} == {"plain", "loud"})
    assert pair["sentence"].startswith("plain is better than loud by ")
    assert "3 and 2 seeds" in pair["sentence"]


def test_table_and_notes(saved):
    result = compare(["plain", "loud", "else"], saved, resamples=200)
    table = ranking(result)
    assert table.loc["loud", "rank"] == "3"
    assert table["rank"].iloc[0] == table["rank"].iloc[1] == "1–2"
    assert table["group"].iloc[0] == table["group"].iloc[1] != table.loc["loud", "group"]
    said = " ".join(notes(result))
    assert "3 pairs" in said
    assert "One run only, so that its seed's luck is not known: else." in said
    assert "else: trained on other text" in said
    for model in result["models"].values():
        model["marks"] = ["other tokenizer (x)"]
    assert notes(result)[-1] == f"{', '.join(result['models'])}: other tokenizer (x)."
    folder = files.TRAINED_MODELS / "loud"
    files.write_json(folder / "run.json", files.read_json(folder / "run.json") | {"tokens_seen": 2_500_000})
    folder = files.TRAINED_MODELS / "plain"
    files.write_json(folder / "run.json", files.read_json(folder / "run.json") | {"tokens_seen": 1_000_000})
    marks = compare(["plain", "loud"], saved, resamples=100)["models"]["loud"]["marks"]
    assert marks == ["saw 2.5 M tokens in training, not 1.0 M"]


def test_named_seeds_are_taken_alone(saved):
    assert [run.name for run in find_runs(["plain-seed2"])["plain"]] == ["plain-seed2"]
    assert [run.name for run in find_runs(["plain"], with_seeds=False)["plain"]] == ["plain"]
    with pytest.raises(ValueError, match="must be a list"):
        find_runs("plain")


def test_two_folders_of_one_name_are_refused(saved, tmp_path):
    make("plain", seed=1, folder=tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="plain have the same name: rename"):
        find_runs(["plain", tmp_path / "elsewhere" / "plain"])
    assert [run.name for run in find_runs(["else", tmp_path / "else"])["else"]] == ["else"]


def test_a_damaged_folder_of_another_model_is_not_read(saved):
    (files.TRAINED_MODELS / "loud" / "run.json").write_text('{"torn')
    assert len(find_runs(["plain"])["plain"]) == 3


def test_runs_that_differ_in_more_than_the_seed_are_marked(saved):
    path = files.TRAINED_MODELS / "plain-seed3" / "run.json"
    path.write_text(json.dumps({"text": {"name": "stories", "fingerprint": "f3"}}))
    models = compare(["plain", "loud"], saved, resamples=50)["models"]
    assert models["plain"]["marks"] == ["its runs differ in more than the seed: training text"]
    assert models["loud"]["marks"] == []


def test_a_model_whose_loss_is_not_a_number_is_named(saved):
    model, tok, _ = load_model("else")
    with torch.no_grad():
        model.final_norm.weight[:] = math.nan
    save_model(model, tok, "else")
    with pytest.raises(ValueError, match="else: its loss is not finite at 90 of 90 tokens"):
        compare(["plain", "else"], saved)


def test_what_was_kept_is_not_computed_again(saved, monkeypatch):
    first = compare(["plain", "loud"], saved, save=True, resamples=100)
    assert read_results("plain") == []  # the file's other key is still well-formed
    monkeypatch.setattr(compare_models, "predictions_of", lambda *a, **k: pytest.fail("computed again"))
    assert compare(["plain", "loud"], saved, resamples=100) == first


def test_other_weights_are_scored_anew(saved):
    first = compare(["plain", "loud"], saved, save=True, resamples=100)
    make("loud", seed=77, folder=files.TRAINED_MODELS, spread=0.7)
    second = compare(["plain", "loud"], saved, resamples=100)
    assert first["models"]["loud"]["each_run"][0] != second["models"]["loud"]["each_run"][0]
    assert first["models"]["loud"]["each_run"][1] == second["models"]["loud"]["each_run"][1]


def test_a_section_keeps_what_else_the_file_holds(saved):
    key = {"protocol": 1, "fingerprint": "x", "weights": "w"}
    (files.TRAINED_MODELS / "plain" / "evaluation.json").write_text(
        '{"protocol": 1, "results": [], "other": [{"x": 5}]}'
    )
    assert kept("plain", "cards", key, lambda: {"figure": 1}, save=False) == key | {"figure": 1}
    assert read_section("plain", "cards") == []
    kept("plain", "cards", key, lambda: {"figure": 2}, save=True)
    kept("plain", "cards", key | {"fingerprint": "y"}, lambda: {"figure": 3}, save=True)
    assert kept("plain", "cards", key, lambda: pytest.fail("computed again"), save=True)["figure"] == 2
    kept("plain", "cards", key | {"weights": "new"}, lambda: {"figure": 4}, save=True)
    assert [r["figure"] for r in read_section("plain", "cards")] == [3, 4]
    assert read_section("plain", "other") == [{"x": 5}]
