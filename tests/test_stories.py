"""lab/stories/: metrics by hand, overlaps against brute force, completions that batches and kills do not change."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from config import ModelConfig
from inference import generate
from lab import data, files, stories
from lab.intervals import bootstrap_mean
from lab.journal import add_to_journal, read_journal
from lab.kept import read_section
from lab.saving import save_model
from lab.stories import (
    END,
    Decoding,
    completions_of,
    distinct,
    ends_properly,
    evaluate_stories,
    kept_stories,
    longest_overlaps,
    longest_shared,
    notes,
    overlaps,
    plot_stories,
    read_prompts,
    real_continuations,
    repetition,
    rows,
    samples,
    stories_of,
    table,
    words_of,
    write_stories,
)  # fmt: skip
from lab.stories import saved as saved_models
from lab.stories.__main__ import main
from model import GPT
from tokenizer import ByteTokenizer

PROMPTS = ["The cat", "A dog and", "Once upon"]
FEW = Decoding(completions=2, max_new_tokens=12, temperature=1.0, top_p=None)


def small_model(seed=0, context=64):
    torch.manual_seed(seed)
    cfg = ModelConfig(dim=16, num_layers=1, vocab_size=260, max_seq_len=context, num_q_heads=2, num_kv_heads=1)
    model = GPT(cfg)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def often_ending(model):
    """The same model, but with EOS likely after any token."""
    weight = model.head.weight
    with torch.no_grad():
        weight[ByteTokenizer().eos_id] *= 8
    return model


# ---------------------------------------------------------------- metrics by hand


def test_words():
    assert words_of("Don't stop, LILY! \"It’s 10 o'clock\" -- a well-fed dog") == [
        "don't", "stop", "lily", "it’s", "10", "o'clock", "a", "well", "fed", "dog",
    ]  # fmt: skip
    assert words_of("?! ...") == []


def test_distinct_counts_all_texts_together():
    assert distinct(["the red cat", "The red dog!"], 1) == 4 / 6
    assert distinct(["the red cat", "The red dog!"], 2) == 3 / 4  # none from the first text's end to the second
    assert distinct(["the red cat", "The red dog!"], 3) == 1.0
    assert math.isnan(distinct(["the red cat"], 4))
    assert math.isnan(distinct([], 1))


def test_repetition():
    assert repetition("a b c d e f") == 0
    assert repetition("go go go go go go") == 1 - 1 / 3
    assert repetition("a b c d, A b c d") == 1 - 4 / 5  # abcd bcda cdab dabc abcd
    assert repetition("a b a", n=1) == 1 - 2 / 3
    assert math.isnan(repetition("only three words"))


@pytest.mark.parametrize("text", ["The end.", 'He said, "Yes!"', "Really? ", "Well…", "(Bye.)\n", "‘No.’"])
def test_a_closed_text_ends_properly_if_the_model_ended_it(text):
    assert ends_properly(text, True)
    assert not ends_properly(text, False)


@pytest.mark.parametrize("text", ["The end", "and then,", "", 'the "big"', "He had 3.5", "a. b"])
def test_an_open_text_does_not(text):
    assert not ends_properly(text, True)


def test_bootstrap_by_hand():
    """Of two values, 0 and 2, drawn means are 0, 1, 2 with 1/4, 1/2, 1/4; deviations are widened by sqrt(2)."""
    found = bootstrap_mean([0.0, 2.0, math.nan])
    assert found == pytest.approx({"mean": 1, "low": 1 - math.sqrt(2), "high": 1 + math.sqrt(2)})
    assert bootstrap_mean([1.0]) is None
    assert bootstrap_mean([3.0, 3.0, 3.0]) == {"mean": 3, "low": 3, "high": 3}


def test_bootstrap_covers_the_true_mean():
    generator = np.random.default_rng(0)
    intervals = [bootstrap_mean(generator.normal(5, 2, size=30), resamples=400) for _ in range(200)]
    assert 0.90 <= np.mean([i["low"] <= 5 <= i["high"] for i in intervals]) <= 0.99


def test_a_share_of_none_or_all_is_not_certain():
    closed = [[{"text": "The end.", "ended": True}]] * 10
    found = stories.measure(closed, None)["ends"]
    assert found["mean"] == 1
    assert found["high"] == pytest.approx(1)
    assert found["low"] == pytest.approx(0.7225, abs=1e-3)  # Wilson for 10 of 10
    assert stories.measure([[{"text": "", "ended": False}]] * 10, None)["ends"]["high"] == pytest.approx(
        0.2775, abs=1e-3
    )


def test_measure_averages_over_completions_then_prompts():
    groups = [
        [{"text": " one two.", "ended": True}, {"text": " one two three four", "ended": False}],
        [{"text": " one.", "ended": True}, {"text": " two.", "ended": True}],
    ]
    found = stories.measure(groups, [(1, 5), (3, 7), (0, 0), (2, 4)])
    assert found["words"]["mean"] == (3 + 1) / 2
    assert found["ends"]["mean"] == 0.75
    assert found["distinct_1"]["mean"] == pytest.approx((4 / 6 + 1) / 2)
    assert found["overlap_words"]["mean"] == 1.5
    assert found["overlap_characters"]["mean"] == 4
    assert found["distinct_4"] is None  # one prompt alone has 4-grams: no interval can be given
    assert stories.measure(groups, None)["overlap_words"] is None


# ---------------------------------------------------------------- overlaps


def brute_longest(items, corpora):
    """The longest run of `items` in one of the corpora, by trying all."""
    best = 0
    for start in range(len(items)):
        for stop in range(start + 1, len(items) + 1):
            run = items[start:stop]
            if any(run == c[i : i + len(run)] for c in corpora for i in range(len(c))):
                best = max(best, stop - start)
    return best


SOME = st.text(alphabet="ab c", max_size=14)


@given(
    texts=st.lists(SOME, min_size=1, max_size=4), documents=st.lists(SOME, max_size=4), piece=st.sampled_from([1, 99])
)
def test_overlaps_equal_brute_force(texts, documents, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlaps, "PIECE", piece)
        found = longest_overlaps(texts, documents)
    assert found == [
        (brute_longest(words_of(t), [words_of(d) for d in documents]), brute_longest(t, documents)) for t in texts
    ]


@given(
    st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=3),
    st.lists(st.integers(-1, 4), max_size=40),
)
@pytest.mark.parametrize("table_size", [0, 2**25])
def test_both_ways_to_look_up_equal_brute_force(table_size, texts, corpus):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlaps, "TABLE", table_size)
        found = longest_shared([np.array(t, dtype=np.int64) for t in texts], np.array(corpus, dtype=np.int64))
    assert found.tolist() == [brute_longest(t, [corpus]) for t in texts]


def test_a_copied_story_is_found_whole():
    document = "Once upon a time, Tom the 🐸 sat. “Hi!” he said."
    assert longest_overlaps([document, document.upper(), "xyz"], ["Other.", document]) == [
        (10, len(document)), (10, 4), (0, 0),
    ]  # fmt: skip


def test_no_overlap_across_two_documents():
    assert longest_overlaps(["the end once upon"], ["the end", "once upon"]) == [(2, 9)]


# ---------------------------------------------------------------- prompts


def test_published_forms_of_prompts(tmp_path, shared_data):
    folder = shared_data("evals/tinystories")
    name, prompts = read_prompts(folder / "evaluation_prompts.yaml")
    assert (name, len(prompts)) == ("evaluation_prompts.yaml", 44)
    assert read_prompts(folder / "evaluation_prompts.json")[1] == prompts
    assert not any(prompt.endswith(" ") for prompt in prompts)


def test_forms_of_prompts(tmp_path):
    texts = ['One day, "Ben', "Two\n\nparts and"]
    (tmp_path / "a.json").write_text(json.dumps(texts))
    (tmp_path / "a.yaml").write_text("- 'One day, \"Ben'\n- |-\n  Two\n\n  parts and\n")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    for ending in ("json", "yaml", "jsonl"):
        assert read_prompts(tmp_path / f"a.{ending}") == (f"a.{ending}", texts)
    (tmp_path / "a.txt").write_text("One \n\nTwo\n")
    assert read_prompts(str(tmp_path / "a.txt")) == ("a.txt", ["One", "Two"])
    assert read_prompts(texts) == ("list", texts)


def test_storyworld_openings():
    name, prompts = read_prompts("storyworld")
    assert (name, len(set(prompts))) == ("storyworld", 44)
    assert [len(words_of(p)) for p in prompts[:3]] == [16, 17, 18]
    assert read_prompts("storyworld")[1] == prompts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.json", "[]", "holds none"),
        ("p.json", '["a", ', "torn or no JSON"),
        ("p.json", '{"a": 1}', "a list of prompts, not a dict"),
        ("p.json", '["a", 3]', "prompt 1: a prompt must be a string"),
        ("p.json", '["a", "  "]', "prompt 1: a prompt is empty"),
        ("p.yaml", "", "a list of prompts, not a NoneType"),
        ("p.yaml", "- a\n- 'b", "torn or no YAML"),
        ("p.yaml", "- !!python/object/apply:os.getcwd []", "torn or no YAML"),
        ("p.jsonl", '{"prompt": "a"}\n{"text": "b"}', "line 2: no field 'prompt'; there are 'text'"),
        ("p.txt", "\n\n", "holds none"),
        ("p.csv", "a", "must be 'storyworld', a list of strings, or a file that ends in"),
    ],
)
def test_bad_prompt_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)


def test_a_missing_file_is_never_replaced():
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_prompts("nowhere.yaml")
    with pytest.raises(ValueError, match="prompts='storyword' must be"):
        read_prompts("storyword")


# ---------------------------------------------------------------- writing


def test_completions_are_those_of_generate():
    model, tok = often_ending(small_model()), ByteTokenizer()
    found = list(write_stories(model, tok, PROMPTS, FEW))
    assert [(s["prompt"], s["number"]) for s in found] == [(i, j) for j in range(2) for i in range(3)]
    for story in found:
        prompt, seed = PROMPTS[story["prompt"]], story["number"] * 1_000_000 + story["prompt"]
        whole = generate(model, tok, prompt, max_new_tokens=12, temperature=1.0, seed=seed)
        assert prompt + story["text"] == whole
        more = generate(model, tok, prompt, max_new_tokens=13, temperature=1.0, seed=seed)
        assert not story["ended"] or more == whole
    assert {s["ended"] for s in found} == {True, False}
    assert not any(END in s["text"] for s in found)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_batches_and_more_prompts_change_no_text(batch_size):
    model, tok = often_ending(small_model()), ByteTokenizer()
    whole = list(write_stories(model, tok, PROMPTS, FEW))
    assert list(write_stories(model, tok, PROMPTS, FEW, batch_size=batch_size)) == whole
    fewer = list(write_stories(model, tok, PROMPTS[:2], FEW, batch_size=batch_size))
    assert fewer == [story for story in whole if story["prompt"] < 2]
    rest = list(write_stories(model, tok, PROMPTS, FEW, batch_size=batch_size, have=whole[:4]))
    assert rest == whole[4:]


def test_paragraphs_of_prompts_are_parted_as_asked():
    model, tok = small_model(), ByteTokenizer()
    one, two = (list(write_stories(model, tok, [f"A.{gap}B", "C"], FEW)) for gap in ("\n", "\n \n"))
    assert one == two
    blank = Decoding(completions=2, max_new_tokens=12, temperature=1.0, top_p=None, paragraph_break="\n\n")
    assert list(write_stories(model, tok, ["A.\nB", "C"], blank)) != one


class NoEnd(ByteTokenizer):
    eos_id = None


class NoQuotes(ByteTokenizer):
    def unknown_count(self, text):
        return text.count('"')


@pytest.mark.parametrize(
    ("prompts", "tok", "message"),
    [
        (["one"], ByteTokenizer(), "1 given; at least 2"),
        (["one", "x" * 70], ByteTokenizer(), r"prompts\[1\] has 71 tokens, more than max_seq_len=64"),
        (["one", "two"], NoEnd(), "no end-of-text token"),
        (['He said "Hi"', "two"], NoQuotes(), r"prompts\[0\]: the tokenizer has no token for 2 of its 12 characters"),
    ],
)
def test_what_cannot_be_continued(prompts, tok, message):
    with pytest.raises(ValueError, match=message):
        list(write_stories(small_model(), tok, prompts, FEW))


@pytest.mark.parametrize("settings", [{"completions": 0}, {"max_new_tokens": 1.5}, {"completions": True}])
def test_bad_settings(settings):
    with pytest.raises(ValueError, match="must be a whole number, at least 1"):
        Decoding(**settings)


def test_one_prompt_alone_has_no_spread_and_an_empty_group_changes_nothing():
    group = [{"text": "A cat sat on a mat.", "ended": True}]
    assert set(stories.measure([group], None).values()) == {None}
    two, three = (stories.measure(groups, None) for groups in ([group, group], [group, [], group]))
    assert two == three and two["ends"]["mean"] == 1


# ---------------------------------------------------------------- evaluation


def test_real_stories_are_cut_as_a_model_would_be():
    real = [
        "One two three. Four five six.",
        "One two three four and five and six and seven.",
        "Tiny.",
        "a b c d",
        "e f g h",
    ]
    groups = real_continuations(real, ["one two", "one two three"], ByteTokenizer(), FEW)
    assert [[s["text"] for s in group] for group in groups] == [[" three. Four", " three four "], [" c d", " g h"]]
    assert [[s["ended"] for s in group] for group in groups] == [[False, False], [True, True]]
    assert real_continuations(real[:2], ["a b", "c d"], ByteTokenizer(), FEW) == []


def test_evaluate_a_model():
    model, tok = often_ending(small_model()), ByteTokenizer()
    written = list(write_stories(model, tok, PROMPTS, FEW))
    text = ["Some text.", f"x{written[0]['text']}y"]
    real = [f"Tom saw a dog and it was number {i}." for i in range(6)]
    found = evaluate_stories(model, tok, PROMPTS, decoding=FEW, training_text=iter(text), real=real)
    assert (found["prompts"], found["texts"], found["over_context"]) == (3, 6, 0)
    assert sorted(found["stories"], key=lambda s: s["number"]) == written
    assert found["metrics"] == stories.measure(
        [[s for s in found["stories"] if s["prompt"] == i] for i in range(3)],
        longest_overlaps([s["text"] for s in found["stories"]], text),
    )
    assert found["reference"]["texts"] == 6
    again = evaluate_stories(model, tok, PROMPTS, decoding=FEW, training_text=text, real=real, batch_size=1)
    assert again == found
    assert evaluate_stories(model, tok, PROMPTS, decoding=FEW)["metrics"]["overlap_words"] is None
    with pytest.raises(TypeError, match=r"training_text='...' is a single str"):
        evaluate_stories(model, tok, PROMPTS, decoding=FEW, training_text="text")


def test_overlaps_belong_to_their_stories():
    """Completions come number by number, groups prompt by prompt: each must keep its own overlap."""
    model, tok = small_model(), ByteTokenizer()
    given_ = [
        {"prompt": i, "number": j, "text": text, "ended": True}
        for j, row in enumerate([["aaaa", "b", "c"], ["d", "e", "f"]])
        for i, text in enumerate(row)
    ]
    found = evaluate_stories(model, tok, PROMPTS, decoding=FEW, stories=given_, training_text=["aaaa"])
    assert found["metrics"]["overlap_characters"]["mean"] == pytest.approx((4 + 0) / 2 / 3)
    texts = [[s["text"] for s in found["stories"]][i : i + 2] for i in (0, 2, 4)]
    assert texts == [["aaaa", "d"], ["b", "e"], ["c", "f"]]


def test_texts_longer_than_the_context_are_counted():
    model, tok = small_model(context=16), ByteTokenizer()
    assert evaluate_stories(model, tok, PROMPTS, decoding=FEW)["over_context"] == 6


# ---------------------------------------------------------------- saved models


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """`one` with another seed, trained on a file of text beside them, and `lost`, whose text is not there."""
    monkeypatch.setattr(files, "TRAINED_MODELS", tmp_path)
    for module in (data, saved_models):  # not SANDBOX_CACHE, where the compiled decoder lies, too
        monkeypatch.setattr(module, "cache_folder", lambda: tmp_path / "cache")
    text = tmp_path / "text.txt"
    documents = [f"Tom number {i} saw a big dog and ran home. The end." for i in range(300)]
    text.write_text("\n<|endoftext|>\n".join(documents))
    fingerprint = data.open_source(str(text)).fingerprint
    for i, name in enumerate(("one", "one-seed2", "lost")):
        save_model(often_ending(small_model(i)), ByteTokenizer(), tmp_path / name)
        source = text if name != "lost" else tmp_path / "gone.txt"
        (tmp_path / name / "train_config.json").write_text(json.dumps({"dataset": str(source)}))
        about = {"text": {"name": "text.txt", "fingerprint": fingerprint}}
        (tmp_path / name / "run.json").write_text(json.dumps(about))
    return tmp_path


def test_stories_of_saved_models(saved):
    results = stories_of(["one"], PROMPTS, decoding=FEW, save=True)
    assert list(results) == ["one", "one-seed2"]
    record = results["one"]
    assert (record["name"], record["prompts"], record["texts"]) == ("list", 3, 6)
    assert record["decoding"]["temperature"] == 1.0
    assert [s["prompt"] for s in record["samples"]] == [0, 1, 2]
    assert record["reference"]["metrics"]["overlap_words"]["mean"] > record["metrics"]["overlap_words"]["mean"]
    assert read_section("one", "stories") == [json.loads(json.dumps(record))]
    assert PROMPTS[0] not in (saved / "one" / "evaluation.json").read_text()
    stored = read_journal(next((saved / "cache" / "stories").glob("one-????????????????.jsonl")))
    assert sorted(stored, key=lambda s: (s["prompt"], s["number"])) == completions_of("one", PROMPTS, FEW)


def test_what_was_kept_is_not_computed_again(saved, monkeypatch):
    first = stories_of(["one"], PROMPTS, decoding=FEW, save=True)
    (saved / "text.txt").unlink()  # not even needed
    monkeypatch.setattr(saved_models, "load_model", lambda *a, **k: pytest.fail("computed again"))
    assert stories_of(["one"], PROMPTS, decoding=FEW) == first
    assert kept_stories(["one"]) == kept_stories(["one"], "list") == first
    assert kept_stories(["one"], "other.yaml") == kept_stories(["lost"]) == {}


def test_other_weights_are_not_taken_for_the_old_ones(saved):
    first = stories_of(["one"], PROMPTS, decoding=FEW, save=True)["one"]
    old = completions_of("one", PROMPTS, FEW)
    save_model(small_model(7), ByteTokenizer(), saved / "new")
    (saved / "new" / "model.safetensors").replace(saved / "one" / "model.safetensors")
    with pytest.warns(UserWarning, match="left out"):
        assert "one" not in kept_stories(["one"])
    assert completions_of("one", PROMPTS, FEW) != old
    assert stories_of(["one"], PROMPTS, decoding=FEW, save=True)["one"]["weights"] != first["weights"]
    assert len(read_section("one", "stories")) == 1


def test_without_the_training_text(saved):
    with pytest.warns(UserWarning, match="lost: its training text is not at hand"):
        record = stories_of(["lost"], PROMPTS, decoding=FEW)["lost"]
    assert record["metrics"]["overlap_words"] is record["reference"] is None
    (saved / "text.txt").write_text("Another text.\n<|endoftext|>\nWhich is not what it was.")
    with pytest.warns(UserWarning, match=r"text.txt is not the text that it was"):
        assert stories_of(["one"], PROMPTS, decoding=FEW, with_seeds=False)["one"]["reference"] is None


def test_a_kill_is_made_up_for(saved, monkeypatch):
    """Stopped in the middle of a line: the next call writes what is missing, and the texts are the same."""
    whole = completions_of("one", PROMPTS, FEW)
    path = next((saved / "cache" / "stories").glob("one-????????????????.jsonl"))
    content = path.read_bytes()
    third = content.index(b"\n", content.index(b"\n") + 1) + 1
    path.write_bytes(content[: third + 9])
    assert completions_of("one", PROMPTS, FEW) == whole
    assert path.read_bytes() == content
    monkeypatch.setattr(saved_models, "write_stories", lambda *a, **k: pytest.fail("written again"))
    assert completions_of("one", PROMPTS, FEW) == whole


def test_journals(tmp_path):
    path = tmp_path / "folder" / "a.jsonl"
    assert read_journal(path) == []
    add_to_journal(path, {"text": "é\n\u2028"})
    add_to_journal(path, {"n": "\ud83d"})
    assert read_journal(path) == [{"text": "é\n\u2028"}, {"n": "\ud83d"}]
    path.write_bytes(b'{"n": 1}\n{"n"')
    assert read_journal(path) == [{"n": 1}]
    add_to_journal(path, {"n": 2})
    assert read_journal(path) == [{"n": 1}, {"n": 2}]
    path.write_bytes(b'{"torn')
    assert read_journal(path) == []
    path.write_bytes(b'{"n": 1}\n{"n"')
    add_to_journal(path, {"n": 2})  # not behind what another writer tore
    assert read_journal(path) == [{"n": 1}, {"n": 2}]
    path.write_bytes(b"\n")
    assert read_journal(path) == []
    path.write_bytes(b'{"n": 1\n{"n": 2}\n')
    with pytest.raises(ValueError, match=r"line 1: torn"):
        read_journal(path)


def test_two_calls_at_once_write_nothing_twice_and_leave_nothing_out(saved):
    """Both wrote the first four of six and were killed: eight lines, but not all completions."""
    whole = completions_of("one", PROMPTS, FEW)
    path = next((saved / "cache" / "stories").glob("one-????????????????.jsonl"))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for line in lines[:4] for _ in range(2)))
    assert completions_of("one", PROMPTS, FEW) == whole
    assert completions_of("one", PROMPTS, FEW) == whole


@pytest.mark.parametrize("strange", [{"prompt": 99}, {"number": 2}, {"number": [0]}])
def test_a_strange_completions_file_is_said(saved, strange):
    completions_of("one", PROMPTS, FEW)
    path = next((saved / "cache" / "stories").glob("one-????????????????.jsonl"))
    add_to_journal(path, {"prompt": 0, "number": 0, "text": "", "ended": True} | strange)
    with pytest.raises(ValueError, match="is no completion: delete the file"):
        completions_of("one", PROMPTS, FEW)


def test_a_single_str_is_no_list_of_prompts(saved):
    with pytest.raises(TypeError, match="prompts='storyworld' is a single str"):
        completions_of("one", "storyworld")
    with pytest.raises(TypeError, match="is a single str"):
        list(write_stories(small_model(), ByteTokenizer(), "The cat"))


def test_a_record_that_knows_overlaps_is_shown_before_one_that_does_not(saved):
    text = saved / "text.txt"
    text.rename(saved / "away.txt")
    with pytest.warns(UserWarning, match="training text is not at hand"):
        stories_of(["one"], PROMPTS, decoding=FEW, with_seeds=False, save=True)
    (saved / "away.txt").rename(text)
    known = stories_of(["one"], PROMPTS, decoding=FEW, with_seeds=False, save=True)["one"]
    assert known["metrics"]["overlap_words"]
    assert kept_stories(["one"])["one"] == known


# ---------------------------------------------------------------- to look at


def test_tables_notes_and_samples(saved):
    results = stories_of(["one"], PROMPTS, decoding=FEW)
    lines = rows(results)
    assert [line["model"] for line in lines] == ["one", "one-seed2", "real stories"]
    mean = results["one"]["metrics"]["words"]
    assert lines[0]["words"] == f"{mean['mean']:.0f} ({mean['low']:.0f} to {mean['high']:.0f})"
    assert list(table(results).index) == [line["model"] for line in lines]
    assert "list: 3 prompts, 2 completions of each, at most 12 tokens, temperature 1" in notes(results)[0]
    said = samples(results, PROMPTS)
    assert said.startswith("one, prompt 0: The cat >>>")
    assert said.count("\n\none-seed2, prompt") == 3
    with pytest.raises(ValueError, match="did not continue these"):
        samples(results, ["other", "prompts"])
    other = stories_of(["one"], PROMPTS[:2], decoding=FEW, with_seeds=False)
    assert any("cannot be compared" in line for line in notes({**results, "x": other["one"]}))


def test_picture(saved):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = stories_of(["one", "lost"], PROMPTS, decoding=FEW)
    figure = plot_stories(results)
    assert [ax.get_title(loc="left") for ax in figure.axes] == [heading for heading, _ in stories.METRICS.values()]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["one", "lost"]
    dots = [line for line in figure.axes[6].lines if line.get_marker() == "o"]
    assert [dot.get_xdata()[0] for dot in dots] == [r["metrics"]["words"]["mean"] for r in results.values()]
    figure.canvas.draw()


def test_terminal(saved, capsys):
    options = "--no-with-seeds --completions 1 --max-new-tokens 8 --save".split()
    (saved / "p.txt").write_text("The cat\nA dog\n")
    main(["one", "--prompts", str(saved / "p.txt"), *options])
    said = capsys.readouterr().out
    assert "| real stories" in said
    assert "p.txt: 2 prompts, 1 completions of each" in said
    assert len(read_section("one", "stories")) == 1
    with pytest.raises(SystemExit, match=r"error: prompts='none.yaml': there is no such file"):
        main(["one", "--prompts", "none.yaml"])
