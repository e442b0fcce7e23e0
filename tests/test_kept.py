"""lab/kept.py, lab/positions.py, lab/report.py: what is kept suffices to show everything where the text is not."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from toy_models import Bigram, Letters

from config import ModelConfig
from lab import data, evaluation, files, scoring
from lab.breakdown import breakdown
from lab.calibration import calibrate
from lab.compare_models import compare
from lab.intervals import draw_documents
from lab.kept import choose_text, compact_json, find_records, kept_sets, training_documents, write_sections
from lab.minimal_pairs import minimal_pairs_of
from lab.minimal_pairs import table as table_of_pairs
from lab.multiple_choice import multiple_choice_of
from lab.positions import loss_by_position, position_rows
from lab.saving import save_model
from lab.scoring import predict
from model import GPT
from tokenizer import ByteTokenizer

STORIES = ["the cat sat on the mat", "a dog ran. Tom saw a dog", "the sun was hot and the day was long", "red, blue"]
PAIR = {"sentence_good": "the cat sat", "sentence_bad": "the tac sat", "field": "syntax", "UID": "x"}
QUESTION = {"goal": "sit down", "sol1": "take a chair", "sol2": "take a lake"}

# ---------------------------------------------------------------- the file


def test_lists_of_numbers_stand_in_one_line():
    value = {"protocol": 1, "documents": [{"text": "x", "nats": [i / 7 for i in range(200)], "rows": [{"a": 1}] * 20}]}
    text = compact_json(value)
    assert json.loads(text) == value
    assert len(text.splitlines()) < 40
    assert all(len(line) <= 120 for line in text.splitlines() if "nats" not in line)


@pytest.mark.parametrize("value", [{}, [], {"a": []}, {"a": {}}, {"ü": ["é", None, True, 1.5]}])
def test_small_values_survive(value):
    assert json.loads(compact_json(value)) == value


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two models trained on one file, and a file of held-out stories, of pairs and of questions beside it."""
    monkeypatch.setattr(files, "TRAINED_MODELS", tmp_path / "models")
    monkeypatch.setenv("SANDBOX_CACHE", str(tmp_path / "cache"))
    text, held_out = tmp_path / "train.txt", tmp_path / "valid.txt"
    text.write_text("\n<|endoftext|>\n".join(STORIES * 60) + "\n", encoding="utf-8")
    held_out.write_text("\n<|endoftext|>\n".join(STORIES) + "\n", encoding="utf-8")
    (tmp_path / "pairs.jsonl").write_text(json.dumps(PAIR) + "\n")
    (tmp_path / "piqa.jsonl").write_text(json.dumps(QUESTION) + "\n")
    (tmp_path / "piqa-labels.lst").write_text("0\n")
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        model = GPT(ModelConfig(dim=16, num_layers=1, vocab_size=260, max_seq_len=16, num_q_heads=2, num_kv_heads=1))
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.1 + 0.1 * seed)
        save_model(model, ByteTokenizer(), name, train_config={"dataset": str(text), "valid_dataset": ""})
        fingerprint = training_documents(name)[0]
        record = {"text": {"name": "train.txt", "fingerprint": fingerprint}}
        files.write_json(files.TRAINED_MODELS / name / "run.json", record)
    return tmp_path


def test_stale_records_are_named_and_not_shown(folder):
    good = {"protocol": 1, "weights": evaluation.weights_of("one"), "name": "set", "count": 3, "fingerprint": "f"}
    old, other = good | {"protocol": 0, "name": "old"}, good | {"weights": "w", "name": "new"}
    write_sections("one", {"cards": [good, old, other]})
    with pytest.warns(UserWarning) as said:
        assert find_records("one", "cards", {"protocol": 1}) == [good]
    messages = [str(warning.message) for warning in said]
    assert any("cards of old left out: measured with protocol 0, not 1" in message for message in messages)
    assert any("cards of new left out: measured with other weights" in message for message in messages)


def test_a_setting_changed_by_hand_makes_another_model(folder):
    """Rotary angles of another base give other losses with the same weights file."""
    before = evaluation.weights_of("one")
    path = files.TRAINED_MODELS / "one" / "model_config.json"
    content = json.loads(path.read_text())
    files.write_json(path, json.loads(path.read_text()))  # as it was
    assert evaluation.weights_of("one") == before != evaluation.weights_of("two")
    content["model"]["rope_theta"] = 3.0
    files.write_json(path, content)
    assert evaluation.weights_of("one") != before


def test_sets_of_one_name_are_told_apart(folder):
    record = {"protocol": 1, "weights": evaluation.weights_of("one"), "name": "set", "count": 3, "fingerprint": "f"}
    others = [record | {"count": 4, "fingerprint": "g"}, record | {"name": "else", "fingerprint": "h"}]
    write_sections("one", {"cards": [record, *others]})
    assert list(kept_sets(["one"], "cards", 1)) == ["set (3)", "set (4)", "else"]


# ---------------------------------------------------------------- with the text, and without it


def everything(names, text="auto"):
    """All that the notebook shows of a text."""
    return {
        "compare": compare(names, text, resamples=100),
        "breakdown": breakdown(*names, text, resamples=100),
        "calibrate": calibrate(names, text),
        "positions": loss_by_position(names, text),
    }


def report(folder, *options):
    arguments = ["one", "two", "--text", str(folder / "valid.txt"), "--save", "--compare"]
    sets = ["--pairs", str(folder / "pairs.jsonl"), "--questions", str(folder / "piqa.jsonl")]
    evaluation.main([*arguments, *sets, *options])


def test_everything_is_shown_where_the_texts_are_not(folder, capsys):
    names = ["one", "two"]
    with_text = everything(names, str(folder / "valid.txt"))
    report(folder)
    out = capsys.readouterr().out
    for found in ("| one", "behind the first", "bits per byte (95 %, one run each", "pairs of pairs.jsonl", "PIQA"):
        assert found in out
    for path in [*folder.glob("*.txt"), *folder.glob("*.jsonl")]:
        path.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        without = everything(names)
        scores = evaluation.results_of(names)
        pairs, choices = minimal_pairs_of(names), multiple_choice_of(names)
    assert without == with_text
    assert "frequency" in without["breakdown"]["by"]
    assert [name.split(" ")[0] for name in without["calibrate"]] == ["one", "two", "unigram", "bigram", "5-gram"]
    for name in names:
        exact = scores[name]["bits_per_byte"]
        assert without["compare"]["models"][name]["bits_per_byte"] == pytest.approx(exact, abs=1e-4)
    assert {name: results["one"]["count"] for name, results in pairs.items()} == {"pairs.jsonl": 1}
    assert "all pairs" in table_of_pairs(pairs["pairs.jsonl"], by=None)
    assert [result["format"] for result in choices["two"]] == ["PIQA"]


def test_what_is_kept_is_not_measured_again(folder, monkeypatch, capsys):
    report(folder)
    before = (files.TRAINED_MODELS / "one" / "evaluation.json").read_bytes()
    monkeypatch.setattr(scoring, "score_columns", lambda *args: pytest.fail("measured again"))
    scoring.last_predictions.clear()
    report(folder)
    assert (files.TRAINED_MODELS / "one" / "evaluation.json").read_bytes() == before


def test_one_pass_serves_all_that_is_measured_of_a_text(folder, monkeypatch, capsys):
    passes, score = [], scoring.score_columns

    def counted(model, *rest):
        passes.append(type(model).__name__)
        return score(model, *rest)

    monkeypatch.setattr(scoring, "score_columns", counted)
    evaluation.main(["one", "--text", str(folder / "valid.txt"), "--save"])
    assert passes.count("GPT") == 2  # one for the scores, one for all the rest


def test_nothing_kept_and_no_text_is_one_clear_message(folder):
    (folder / "train.txt").unlink()
    for call in (compare, calibrate, loss_by_position):
        with pytest.raises(FileNotFoundError, match=r"missing: one, two.*not here.*pass text=PATH, or run `python -m"):
            call(["one", "two"])
    with pytest.raises(FileNotFoundError, match=r"one has no result in its evaluation\.json.*pass text=PATH"):
        evaluation.results_of(["one"])


def test_a_model_without_a_record_is_named(folder):
    compare(["one"], str(folder / "valid.txt"), save=True)
    with pytest.warns(UserWarning, match=r"missing: two\): all of them are scored on train.txt, validation instead"):
        assert compare(["one", "two"])["text"] == "train.txt, validation"
    chosen = choose_text(["one"], "auto", 5, "documents", {})
    assert chosen.documents is None
    with pytest.raises(FileNotFoundError, match=r"text='valid\.txt' is not here"):
        chosen.read()


def test_only_models_without_a_record_are_called_missing(folder):
    compare(["two"], str(folder / "valid.txt"), save=True)
    with pytest.warns(UserWarning, match=r"\(missing: one\)"):
        compare(["one", "two"])


def test_sections_of_another_form_are_one_clear_message(folder):
    write_sections("one", {"documents": {"text": "x"}})
    with pytest.raises(ValueError, match=r"one/evaluation\.json: documents must be a list of objects"):
        compare(["one"], str(folder / "valid.txt"))


def test_one_document_is_one_clear_message(folder):
    (folder / "valid.txt").write_text(STORIES[0])
    with pytest.raises(ValueError, match="documents=1 must be at least 2"):
        loss_by_position(["one"], str(folder / "valid.txt"))
    with pytest.raises(SystemExit, match="documents=1 must be at least 2"):
        evaluation.main(["one", "--text", str(folder / "valid.txt"), "--save"])


@pytest.mark.parametrize("trouble", ["offline", "not said"])
def test_where_the_training_text_cannot_be_read_there_is_no_frequency(folder, monkeypatch, trouble):
    config = {"dataset": "tinystories"} if trouble == "offline" else {}
    files.write_json(files.TRAINED_MODELS / "one" / "train_config.json", config)

    def unreachable(name, cache, *rest):
        raise ConnectionError("the hub cannot be reached")

    monkeypatch.setitem(data.NAMES, "tinystories", unreachable)
    with pytest.warns(UserWarning, match="not sorted by their frequency.*(cannot be reached|does not say)"):
        found = breakdown("one", "two", str(folder / "valid.txt"), resamples=50)
    assert "frequency" not in found["by"]


def test_without_the_training_text_there_is_no_frequency(folder):
    (folder / "train.txt").unlink()
    with pytest.warns(UserWarning, match="not sorted by their frequency"):
        found = breakdown("one", "two", str(folder / "valid.txt"), resamples=50)
    assert list(found["by"]) == ["position", "quarter", "recall", "names"]


def test_frequencies_counted_in_several_texts_are_left_out_and_the_rest_is_shown(folder, capsys):
    """Each model was kept beside frequencies in its own training text, and now all texts are gone."""
    other = {"text": {"name": "other.txt", "fingerprint": None}}
    files.write_json(files.TRAINED_MODELS / "two" / "run.json", other)
    report(folder)
    for path in folder.glob("*.txt"):
        path.unlink()
    with pytest.warns(UserWarning, match="not sorted by their frequency"):
        assert list(breakdown("one", "two", resamples=50)["by"]) == ["position", "quarter", "recall", "names"]


def test_without_the_training_text_there_is_no_baseline(folder):
    (folder / "train.txt").unlink()
    with pytest.warns(UserWarning, match="5-gram baseline is left out"):
        assert list(calibrate(["one", "two"], str(folder / "valid.txt"))) == ["one", "two"]


def test_a_training_text_that_changed_is_not_taken_for_the_old_one(folder):
    (folder / "train.txt").write_text("something else\n<|endoftext|>\nand more\n")
    with pytest.raises(FileNotFoundError, match=r"train\.txt is another text now than the one that one read"):
        training_documents("one")
    with pytest.raises(FileNotFoundError, match=r"train\.txt is another text now"):  # nor its validation split
        evaluation.results_of(["one"])


# ---------------------------------------------------------------- by position


def test_positions_by_brute_force():
    """A bigram model of four letters whose context is 3, so that positions start again within a document."""
    model = Bigram(torch.randn(6, 6, generator=torch.Generator().manual_seed(3)), context=3)
    log_p, documents = model.table.detach().log_softmax(-1), ["abcda", "dd", "cab"]
    nats = {1: [], 2: [], 3: []}
    for text in documents:
        ids = [1, *("abcd".find(letter) + 2 for letter in text)]
        for i, (a, b) in enumerate(zip(ids, ids[1:])):
            nats[i % 3 + 1].append(-log_p[a, b].item())
    found = predict(model, Letters(), documents)
    rows = position_rows(found.nats, Letters(), documents, 3, draw_documents(3, 50, 0))
    assert [(row["low"], row["high"], row["tokens"]) for row in rows] == [(1, 1, 4), (2, 2, 4), (3, 3, 2)]
    for row in rows:
        mean = np.mean(nats[row["low"]])
        assert row["nats_per_token"]["value"] == pytest.approx(mean, abs=1e-6)
        assert row["bits_per_byte"]["value"] == pytest.approx(mean / math.log(2), abs=1e-6)


def test_ranges_double_up_to_the_context():
    documents, tok = ["x" * 200, "y" * 13], ByteTokenizer()
    rows = position_rows(np.ones(213), tok, documents, 100, draw_documents(2, 50, 0))
    assert [(row["low"], row["high"]) for row in rows][-3:] == [(17, 32), (33, 64), (65, 100)]
    assert sum(row["tokens"] for row in rows) == 213
    assert all(row["nats_per_token"]["value"] == pytest.approx(1) for row in rows)


def test_an_untrained_model_costs_ln_v_everywhere():
    torch.manual_seed(0)
    model = GPT(ModelConfig(dim=32, num_layers=1, vocab_size=260, max_seq_len=64))
    generator = np.random.default_rng(0)
    documents = ["".join(map(chr, generator.integers(32, 127, 300))) for _ in range(8)]
    found = predict(model, ByteTokenizer(), documents)
    rows = position_rows(found.nats, ByteTokenizer(), documents, 64, draw_documents(8, 50, 0))
    assert all(row["nats_per_token"]["value"] == pytest.approx(math.log(260), rel=0.06) for row in rows[3:])
