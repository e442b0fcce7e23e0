"""lab/evaluation.py: every figure against a slow loop or a closed form, on vocabularies small enough to see through."""

import json
import math
import time
import warnings

import pytest
import torch
from torch import nn
from toy_models import Bigram, Letters

from config import ModelConfig
from lab import evaluation, files, scoring
from lab.evaluation import evaluate, evaluate_saved, read_results, results_of, text_documents, token_losses
from lab.files import ROOT
from lab.saving import load_model, save_model
from model import GPT
from tokenizer import ByteTokenizer


@pytest.fixture
def bigram():
    return Bigram(torch.randn(6, 6, generator=torch.Generator().manual_seed(3)))


@pytest.fixture
def gpt():
    """A small GPT with nothing left at zero, so that every position matters."""
    torch.manual_seed(0)
    model = GPT(ModelConfig(dim=16, num_layers=2, vocab_size=260, max_seq_len=12, num_q_heads=4, num_kv_heads=2))
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model


# ---------------------------------------------------------------- golden values


def test_uniform_model_has_ln_v_and_chance():
    scores = evaluate(Bigram(torch.zeros(6, 6)), Letters(), ["abcd", "da"])
    assert scores["nats_per_token"] == pytest.approx(math.log(6), abs=1e-6)
    assert scores["perplexity"] == pytest.approx(6, abs=1e-5)
    assert scores["bits_per_byte"] == pytest.approx(math.log2(6), abs=1e-6)  # one byte per token here
    assert scores["top1"] == pytest.approx(1 / 6)
    assert scores["top3"] == pytest.approx(3 / 6)
    assert scores["top10"] == 1
    assert (scores["tokens"], scores["bytes"], scores["documents"], scores["unknown_tokens"]) == (6, 6, 2, 0)


def test_bigram_by_hand(bigram):
    documents, log_p = ["abca", "dd"], bigram.table.detach().log_softmax(-1)
    pairs = [(1, 2), (2, 3), (3, 4), (4, 2), (1, 5), (5, 5)]
    nats = -sum(log_p[a, b].item() for a, b in pairs)
    scores = evaluate(bigram, Letters(), documents)
    assert scores["nats_per_token"] == pytest.approx(nats / 6, abs=1e-6)
    assert scores["bits_per_byte"] == pytest.approx(nats / math.log(2) / 6, abs=1e-6)
    assert scores["perplexity"] == pytest.approx(math.exp(nats / 6), abs=1e-5)
    first, second = token_losses(bigram, Letters(), documents)
    assert torch.allclose(first, -torch.stack([log_p[a, b] for a, b in pairs[:4]]), atol=1e-6)
    assert torch.allclose(second, -torch.stack([log_p[a, b] for a, b in pairs[4:]]), atol=1e-6)


def test_top_k_equals_brute_force(gpt):
    documents, tok = ["hello world", "the cat", "x"], ByteTokenizer()
    hits, total = dict.fromkeys((1, 3, 5, 10), 0), 0
    for text in documents:
        ids = tok.encode(text)
        logits = gpt(torch.tensor([ids[:-1]]))[0]
        for row, target in zip(logits, ids[1:]):
            total += 1
            for k in hits:
                hits[k] += target in row.topk(k).indices
    scores = evaluate(gpt, tok, documents)
    assert [scores[f"top{k}"] for k in hits] == [pytest.approx(n / total) for n in hits.values()]
    assert 0 < scores["top10"] < 1


def test_equal_logits_share_the_places():
    """After "a": the target and one other lead together, so that the target is first in half of all orders."""
    table = torch.zeros(6, 6)
    table[2, 3] = table[2, 4] = 1.0
    table[1, 2] = 5.0
    scores = evaluate(Bigram(table), Letters(), ["ab"])
    assert scores["top1"] == pytest.approx((1 + 0.5) / 2)
    assert scores["top3"] == 1


def test_nan_is_never_a_hit():
    scores = evaluate(Bigram(torch.full((6, 6), math.nan)), Letters(), ["abcd"])
    assert math.isnan(scores["bits_per_byte"])
    assert scores["top1"] == scores["top5"] == 0


def test_perplexity_of_an_impossible_token_is_infinite():
    table = torch.zeros(6, 6)
    table[:, 2] = -math.inf
    scores = evaluate(Bigram(table), Letters(), ["ba"])
    assert scores["perplexity"] == scores["nats_per_token"] == math.inf


# ---------------------------------------------------------------- what counts


def test_bytes_are_those_of_the_source_text():
    documents = ["héllo 🙂", "\n\nab\r\n", "a\nb"]
    scores = evaluate(Bigram(torch.zeros(260, 260)), ByteTokenizer(), documents)
    assert scores["bytes"] == scores["tokens"] == len("héllo 🙂".encode()) + 2 + 3
    assert scores["bits_per_byte"] == pytest.approx(math.log2(260), abs=1e-6)


def test_eos_and_bos_are_not_scored(bigram):
    """The first loss is that of the first letter; a model certain that no text ever ends loses nothing by it."""
    with torch.no_grad():
        bigram.table[:, 1] = -1e4  # BOS and EOS
    (losses,) = token_losses(bigram, Letters(), ["abc"])
    assert losses.shape == (3,)
    assert losses.max() < 100


def test_unknown_tokens_are_counted(bigram):
    assert evaluate(bigram, Letters(), ["abXc", "Y"])["unknown_tokens"] == 2


def test_documents_without_text_add_nothing(bigram):
    with_text = evaluate(bigram, Letters(), ["abc"])
    both = evaluate(bigram, Letters(), ["", "abc", "\n"])
    assert both == {**with_text, "documents": 3}
    assert [len(losses) for losses in token_losses(bigram, Letters(), ["", "abc", "\n"])] == [0, 3, 0]


def test_max_documents_takes_the_first(bigram):
    documents = ["abc", "dd", "ca"]
    assert evaluate(bigram, Letters(), iter(documents), max_documents=2) == evaluate(bigram, Letters(), documents[:2])


@pytest.mark.parametrize("documents", [[], [""], ["\n", "\r\n"]])
def test_no_text_is_refused(bigram, documents):
    with pytest.raises(ValueError, match="nothing to score"):
        evaluate(bigram, Letters(), documents)


def test_a_single_string_is_refused(bigram):
    with pytest.raises(TypeError, match="list"):
        evaluate(bigram, Letters(), "abc")
    with pytest.raises(TypeError, match=r"documents\[1\] is a bytes; each document must be a str"):
        evaluate(bigram, Letters(), ["abc", b"abc"])
    with pytest.raises(ValueError, match="batch_size=0"):
        evaluate(bigram, Letters(), ["abc"], batch_size=0)


# ---------------------------------------------------------------- batches, padding, windows


def slow_losses(model, tok, text):
    """One document, one window and one target at a time, each from its own forward pass."""
    ids, context = tok.encode(text), model.cfg.max_seq_len
    losses = []
    for t in range(1, len(ids)):
        start = (t - 1) // context * context
        logits = model(torch.tensor([ids[start:t]]))[0, -1]
        losses.append(-logits.double().log_softmax(-1)[ids[t]].item())
    return losses


def test_windows_of_long_documents_equal_a_slow_loop(gpt):
    """Lengths below, at, just over and far over the context of 12."""
    tok = ByteTokenizer()
    documents = ["The quick brown fox jumps over the lazy dog."[:n] for n in (1, 11, 12, 13, 24, 25, 40)]
    found = token_losses(gpt, tok, documents, batch_size=3)
    for text, losses in zip(documents, found):
        assert losses.tolist() == pytest.approx(slow_losses(gpt, tok, text), abs=2e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_batch_size_and_padding_change_nothing(gpt, batch_size):
    documents = ["The quick brown fox jumps over the lazy dog."[i : i + 3 * i + 1] for i in range(12)]
    tok = ByteTokenizer()
    wanted, found = evaluate(gpt, tok, documents), evaluate(gpt, tok, documents, batch_size=batch_size)
    assert found == {key: pytest.approx(value, rel=1e-6, abs=1e-6) for key, value in wanted.items()}


def test_order_of_documents_is_kept(gpt):
    tok, documents = ByteTokenizer(), ["zebra crossing", "a", "over the hills and far away"]
    there, back = token_losses(gpt, tok, documents), token_losses(gpt, tok, documents[::-1])[::-1]
    for a, b in zip(there, back):
        assert torch.allclose(a, b, atol=1e-5)


def test_head_in_pieces_changes_nothing(gpt, monkeypatch):
    documents = ["The quick brown fox", "jumps over the lazy dog"]
    whole = evaluate(gpt, ByteTokenizer(), documents)
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", {"cpu": 1, "other": 1})  # one row at a time
    pieces = evaluate(gpt, ByteTokenizer(), documents)
    assert pieces == {key: pytest.approx(value, rel=1e-6) for key, value in whole.items()}


def test_mode_is_restored_and_dropout_is_off(gpt):
    gpt.dropout.p = 0.5
    gpt.train()
    gpt.layers[0].eval()
    first, second = (evaluate(gpt, ByteTokenizer(), ["hello"])["bits_per_byte"] for _ in range(2))
    assert first == second
    assert gpt.training and gpt.layers[1].training and not gpt.layers[0].training
    assert all(p.grad is None for p in gpt.parameters())


def test_random_state_is_left_alone(gpt):
    before = torch.get_rng_state()
    evaluate(gpt.train(), ByteTokenizer(), ["hello"])
    assert torch.equal(before, torch.get_rng_state())


def test_caller_chooses_the_precision(gpt):
    plain = evaluate(gpt, ByteTokenizer(), ["hello world"])["bits_per_byte"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = evaluate(gpt, ByteTokenizer(), ["hello world"])["bits_per_byte"]
    assert plain != rough
    assert plain == pytest.approx(rough, rel=0.05)


# ---------------------------------------------------------------- saved models


@pytest.fixture
def saved(gpt, tmp_path, monkeypatch):
    """trained_models/ in a temporary folder, with two models that were trained on a file beside it."""
    monkeypatch.setattr(files, "TRAINED_MODELS", tmp_path / "trained_models")
    monkeypatch.setenv("SANDBOX_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "stories.txt"
    text.write_text("\n<|endoftext|>\n".join(f"story number {i}" for i in range(100)) + "\n", encoding="utf-8")
    train_config = {"dataset": str(text), "valid_dataset": ""}
    run = {"text": {"name": "stories.txt"}}
    for name in ("one", "two"):
        save_model(gpt, ByteTokenizer(), name, train_config=train_config, run=run)
    return text


def test_results_are_kept_and_not_computed_again(saved, monkeypatch):
    label, documents = text_documents(str(saved), 3)
    assert (label, documents) == ("stories.txt", [f"story number {i}" for i in range(3)])
    first = evaluate_saved("one", documents, text=label, save=True)
    assert read_results("one") == [first]
    content = json.loads((files.TRAINED_MODELS / "one" / "evaluation.json").read_text(encoding="utf-8"))
    assert content["protocol"] == evaluation.PROTOCOL
    assert evaluate_saved("two", documents, text=label)["bits_per_byte"] == first["bits_per_byte"]
    assert read_results("two") == []

    monkeypatch.setattr(evaluation, "evaluate_saved", lambda *a, **k: pytest.fail("computed again"))
    assert results_of(["one"]) == results_of(["one"], str(saved), max_documents=3) == {"one": first}


def test_a_model_without_results_is_scored_on_its_own_validation_text(saved):
    result = results_of(["two"], max_documents=2)["two"]
    assert (result["text"], result["documents"]) == ("stories.txt, validation", 2)
    assert read_results("two") == [result]


def test_two_folders_of_one_name_are_refused(saved, gpt, tmp_path):
    save_model(gpt, ByteTokenizer(), tmp_path / "one")
    with pytest.raises(ValueError, match="one have the same name"):
        results_of(["one", tmp_path / "one"], str(saved), max_documents=2)


def test_each_text_has_its_place_and_the_newest_result_stays(saved):
    for number in (3, 5, 3):
        label, documents = text_documents(str(saved), number)
        evaluate_saved("one", documents, text=label, save=True)
    assert [result["documents"] for result in read_results("one")] == [5, 3]


def test_results_of_other_weights_or_protocol_are_left_out(saved, gpt):
    label, documents = text_documents(str(saved), 3)
    evaluate_saved("one", documents, text=label, save=True)
    with torch.no_grad():
        gpt.final_norm.weight += 1
    save_model(gpt, ByteTokenizer(), "one")
    with pytest.warns(UserWarning, match="other weights"):
        assert read_results("one") == []
    path = files.TRAINED_MODELS / "one" / "evaluation.json"
    path.write_text('{"protocol": 0, "results": []}', encoding="utf-8")
    with pytest.warns(UserWarning, match="protocol 0"):
        assert read_results("one") == []


def test_terminal(saved, capsys):
    evaluation.main(["one", "two", "--text", str(saved), "--documents", "4"])
    out = capsys.readouterr().out
    assert "first 4 documents" in out and "bits/byte" in out
    assert sum(line.startswith(("| one", "| two")) for line in out.splitlines()) == 2
    assert read_results("one") == []
    evaluation.main(["one", "--text", str(saved), "--documents", "4", "--save"])
    assert len(read_results("one")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["onne", "--text", "{text}"], "did you mean 'one'"),
        (["onne"], "did you mean 'one'"),
        (["one", "--text", "{text}", "--device", "gpu"], "device='gpu' can't be used here"),
        (["--text", "{text}"], "there are: one, two"),
        (["one", "--text", "nowhere.txt"], "no such file"),
        (["one", "--text", "{text}", "--documents", "0"], "documents=0"),
    ],
)
def test_terminal_says_what_is_wrong(saved, arguments, message):
    with pytest.raises(SystemExit, match=message):
        evaluation.main([argument.format(text=saved) for argument in arguments])


TEXT_DISREPAIR = {
    "torn": ('{"text": "a b"}\n{"text": "x', "line 2 is not complete JSON"),
    "missing": ('{"text": "a b"}\n{"txet": "x"}\n', "line 2 has no field 'text' or 'story'"),
    "empty": ("", r"text='text\.jsonl' holds no text"),
    "long": ("x" * 10**7, "line 1 is not complete JSON"),
}


@pytest.mark.parametrize("name", TEXT_DISREPAIR)
def test_bad_text_is_one_clear_message(saved, tmp_path, name):
    content, message = TEXT_DISREPAIR[name]
    (tmp_path / "text.jsonl").write_text(content)
    with pytest.raises(SystemExit, match=message):
        evaluation.main(["one", "--text", str(tmp_path / "text.jsonl")])


def test_a_thousand_stories_take_less_than_a_minute_of_a_processor(shared_data):
    """A tenth of them, by a model of the 0.5M size as it is shipped: measured 0.8 seconds."""
    _, documents = text_documents(str(shared_data("tinystories_valid.txt")), 100)
    model, tok, _ = load_model(ROOT / "trained_models" / "0.5m")
    started = time.process_time()
    evaluate(model, tok, documents)
    assert time.process_time() - started < 60 / 10


def test_no_warnings_in_normal_use(saved):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        label, documents = text_documents(str(saved), 3)
        evaluate_saved("one", documents, text=label, save=True)
        results_of(["one"])
