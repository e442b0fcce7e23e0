"""lab/breakdown.py: words cover the text, no nat is lost or made, words are sorted as a reader would sort them."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_models import Bigram, Letters

from config import ModelConfig
from lab import breakdown as module
from lab.breakdown import sort_difference, sortings, split_words, token_sizes, word_counts, word_nats
from lab.evaluation import token_losses
from tokenizer import ByteTokenizer, get_tokenizer

LABELS = {"recall": ["pair", "word", "new", "punctuation"], "names": ["first", "again", "other", "punctuation"]}


# ---------------------------------------------------------------- words


def test_words_with_the_space_before_them():
    words = split_words(["\nTom's  red ball!\nYes. \n", "hé"])
    assert words.texts == ["Tom's", "red", "ball", "!", "Yes", ".", "hé"]
    assert words.sizes.tolist() == [5, 5, 5, 1, 4, 2, 3]  # two spaces before red, one at the end of the last
    assert words.starts.tolist() == [0, 5, 10, 15, 16, 20, 22]
    assert words.places.tolist() == [0, 5, 10, 15, 16, 20, 0]
    assert words.new_lines.tolist() == [False, False, False, False, True, False, False]
    assert words.lengths.tolist() == [22, 3]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1, max_size=4))
def test_every_byte_belongs_to_one_word(documents):
    stripped = [text.strip("\r\n") for text in documents]
    if not any(stripped):
        with pytest.raises(ValueError, match="holds a word"):
            split_words(documents)
        return
    words = split_words(documents)
    assert words.sizes.sum() == sum(len(text.encode()) for text in stripped)
    assert (words.sizes > 0).all()
    assert words.per_document(words.sizes).tolist() == words.lengths.tolist()


def test_counts():
    assert word_counts(["the cat. The", "the"]) == Counter({"the": 2, "cat": 1, ".": 1, "The": 1})


# ---------------------------------------------------------------- nats


def test_nats_of_words_by_hand():
    """On a vocabulary of five: each word costs what its letters and the space before it cost."""
    table = torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    log_p, documents = table.log_softmax(-1), ["ab b", "a"]
    words = split_words(documents)
    found = word_nats(Bigram(table), Letters("ab "), documents, words)
    expected = [log_p[1, 2] + log_p[2, 3], log_p[3, 4] + log_p[4, 3], log_p[1, 2]]
    assert found == pytest.approx([-x.item() for x in expected], abs=1e-6)


@pytest.mark.parametrize("name", ["byte", "512", "2048"])
def test_no_nat_is_lost(name):
    tok = get_tokenizer(name)
    documents = ["Once upon a time, Tom's dog 🙂 ran.\nHe was happy!", "", "The\u2581end  "]
    model = Bigram(torch.randn(tok.vocab_size, tok.vocab_size, generator=torch.Generator().manual_seed(0)))
    words = split_words(documents)
    found = words.per_document(word_nats(model, tok, documents, words))
    assert found == pytest.approx([x.double().sum().item() for x in token_losses(model, tok, documents)], abs=1e-6)


def test_batch_size_changes_no_figure():
    tok, generator = ByteTokenizer(), random.Random(0)
    documents = ["".join(generator.choices("ab c", k=n)) + "x" for n in (3, 17, 1, 9, 30)]
    model, words = Bigram(torch.randn(260, 260)), split_words(documents)
    one, many = (word_nats(model, tok, documents, words, batch_size=n) for n in (1, 7))
    assert np.abs(one - many).max() < 1e-6


def test_unknown_tokens_take_what_lies_between():
    tok, text = Letters("ab "), "aé b"
    assert token_sizes(tok, tok.encode_batch([text], bos=False)[0], text.encode()).tolist() == [1, 2, 1, 1]
    two = "éaxyb"
    assert token_sizes(tok, tok.encode_batch([two], bos=False)[0], two.encode()).tolist() == [2, 1, 1, 1, 1]


def test_tokens_of_another_text_are_refused():
    with pytest.raises(ValueError, match="do not spell the text from byte 0 on"):
        token_sizes(Letters("ab "), [2, 2], b"ab")


# ---------------------------------------------------------------- sorting


def kinds(text, sorting, counts=()):
    words = split_words([text])
    labels, codes = sortings(words, Counter(counts))[sorting]
    return dict(zip(words.texts, [LABELS.get(sorting, labels)[code] for code in codes])), codes


def test_recall():
    words = split_words(["the red ball . the red car . red", "the"])
    _, codes = sortings(words, Counter())["recall"]
    names = [LABELS["recall"][code] for code in codes]
    new, seen, pair, dot = "new", "word", "pair", "punctuation"
    assert names == [new, new, new, dot, seen, pair, new, dot, seen, new]  # the second story starts afresh


def test_names():
    text = 'Tom met Sue. She is nice. I like her. "Hi," said Tom.\nThe Tom and I\'m'
    words = split_words([text])
    codes = sortings(words, Counter())["names"][1]
    found = [(word, LABELS["names"][code]) for word, code in zip(words.texts, codes) if code < 2]
    assert found == [("Tom", "first"), ("Sue", "first"), ("Tom", "again"), ("Tom", "again")]


def test_frequency_ranges():
    labels, _ = sortings(split_words(["x"]), Counter())["frequency"]
    counts = {"one": 1, "nine": 9, "ten": 10, "many": 123456}
    found, _ = kinds("zero one nine ten many", "frequency", counts)
    assert found == {"zero": labels[0], "one": labels[1], "nine": labels[1], "ten": labels[2], "many": labels[5]}
    assert labels[:3] == ["never", "1–9 times", "10–99 times"]


def test_position_and_quarters():
    _, codes = kinds("ab " * 40, "quarter")
    assert np.bincount(codes).tolist() == [11, 10, 10, 9]  # words at 0, 2, 5, 8, ...
    _, codes = kinds("ab " * 40, "position")
    assert np.bincount(codes).tolist() == [17, 17, 6]  # below 50, below 100, the rest


# ---------------------------------------------------------------- differences


def test_contributions_add_up_and_rows_are_right():
    generator = np.random.default_rng(0)
    words = split_words(["Tom has a red ball. Tom likes it.", "Sue saw Tom. She ran to Tom.", "A cat and a dog."])
    a, b = generator.random((2, len(words.texts))), generator.random((3, len(words.texts)))
    whole = (a.mean(0).sum() - b.mean(0).sum()) / math.log(2) / words.lengths.sum()
    for labels, codes in sortings(words, Counter({"a": 12})).values():
        rows = sort_difference(a, b, words, labels, codes, resamples=50)
        assert sum(row["contribution"] for row in rows) == pytest.approx(whole)
        assert sum(row["share"] for row in rows) == pytest.approx(1)
        for row in rows:
            mask = codes == labels.index(row["label"])
            bits = a.mean(0)[mask].sum() / math.log(2) / words.sizes[mask].sum()
            assert row["a"] == pytest.approx(bits)
            assert row["difference"] == pytest.approx(row["a"] - row["b"])


def test_a_difference_on_names_alone_is_found_there():
    words = split_words([f"One day {name} saw a big cat. Then {name} ran." for name in ("Tom", "Sue", "Ann", "Ben")])
    labels, codes = sortings(words, Counter())["names"]
    b = np.full((1, len(words.texts)), 2.0)
    rows = sort_difference(b - 0.5 * (codes < 2), b, words, labels, codes, resamples=100)
    told = {row["label"]: row["told_apart"] for row in rows}
    assert told == {"name, first mention": True, "name, again": True, "other word": False, "punctuation": False}


def test_findings_name_the_largest_difference_beyond_noise():
    def row(label, difference, half_width):
        told = abs(difference) > half_width
        return {"label": label, "difference": difference, "half_width": half_width, "told_apart": told, "share": 0.04}

    by = {
        "position": [row("0–49 bytes", -9.0, 0.1)],
        "frequency": [row("never", 3.0, 4.0), row("1–9 times", 0.1, 0.02), row("10–99 times", 0.2, 0.03)],
        "names": [row("name, again", -0.2, 0.1)],
    }
    assert module.findings({"a": "x", "b": "y", "by": by}) == [
        "x is better by 0.2000 ± 0.1000 bits per byte on “name, again”: 4.0% of the text",
        "y is better by 0.2000 ± 0.0300 bits per byte on words found 10–99 times in the training text: "
        "4.0% of the text",
    ]
    (line,) = module.findings({"a": "x", "b": "y", "by": {"names": [row("name, again", 0.1, 0.2)]}})
    assert line == "on no kind of words is either better beyond noise"


def test_two_saved_models(tmp_path, monkeypatch):
    """One scored on the same text through two tokenizers of its own: bytes and pieces."""
    from lab.saving import save_model
    from model import GPT

    for name, tok in (("bytes", ByteTokenizer()), ("pieces", get_tokenizer(512))):
        sizes = {"dim": 16, "num_layers": 1, "max_seq_len": 64, "num_q_heads": 2, "num_kv_heads": 1}
        save_model(GPT(ModelConfig(vocab_size=tok.vocab_size, **sizes)), tok, tmp_path / name)
    stories = ["Tom has a red ball.", "Sue saw Tom. She ran to Tom."]
    (tmp_path / "s.txt").write_text("\n<|endoftext|>\n".join(stories))
    a, b = str(tmp_path / "bytes"), str(tmp_path / "pieces")
    found = module.breakdown(a, b, str(tmp_path / "s.txt"), counts=word_counts(stories), resamples=50)
    assert found["whole"]["difference"] > 3  # ln 260 for each byte against ln 512 for each piece
    assert found["by"]["names"][0]["a"] == pytest.approx(math.log2(260), rel=0.05)
    frame = module.table(found)
    assert frame.loc[("quarter", "first quarter"), "bytes"] > frame.loc[("quarter", "first quarter"), "pieces"]
    monkeypatch.setattr(module, "training_counts", lambda name: word_counts(stories))
    first = module.breakdown(a, b, str(tmp_path / "s.txt"), save=True, resamples=50)
    assert {k: first[k] for k in ("whole", "by")} == {k: found[k] for k in ("whole", "by")}
    monkeypatch.setattr(module, "predictions_of", lambda *args: pytest.fail("computed again"))
    assert module.breakdown(a, b, str(tmp_path / "s.txt"), resamples=50) == first
    monkeypatch.undo()
    with pytest.raises(ValueError, match="bytes would stand on both sides"):
        module.breakdown(a, a, str(tmp_path / "s.txt"))
    story = module.story_difference(a, b, stories[1])
    assert "".join(story["pieces"]) == stories[1]
    assert len(story["bits_a"]) == len(story["bits_b"]) == len(story["pieces"])
