"""tokenizer.py, lab/tokenizers.py, lab/bpe_by_hand.py and the tokenizers that are shipped."""

import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenizer as module
from lab import bpe_by_hand
from lab import tokenizers as lab_tokenizers
from tokenizer import get_tokenizer, load_tokenizer, text_fingerprint, train_tokenizer

ROOT = Path(module.__file__).parent
SHIPPED = ["characters", "bpe_128", "bpe_256", "bpe_512", "bpe_1024", "bpe_2048", "bpe_4096"]
LOSSLESS = ["byte", "bpe_512", "bpe_1024", "bpe_2048", "bpe_4096"]
LOSSY = ["characters", "bpe_128", "bpe_256"]
VALID = ROOT.parent / "shared" / "data" / "tinystories_valid.txt"
STORY = 'Once upon a time there was a little boy, he was called Tim.\nHe said, "Let\'s play!"'
AWKWARD = [
    "",
    " ",
    "  leading and trailing   ",
    "tabs\tand\t\tmore\n\n\nnewlines\n",
    "CRLF\r\nand a lone\rreturn",
    "NUL\0inside\0\0",
    "\u2581 and \u2581\u2581the sign for a space\u2581",
    "\u2585 is reserved by sentencepiece",
    "emoji 😀👩‍👩‍👧‍👦🏳️‍🌈",
    "\u0301 lone combining mark e\u0301 vs é",
    "ﬁ ligature, Ａ full width, ½, \u00a0 no-break space, \ufeff mark, \u200b none, \u3000 wide",
    "<s> </s> <unk> <pad> <0x41> <|endoftext|>",
    "中文日本語한국어العربية हिन्दी",
    "\U0010ffff\uffff\ufffd",
]
DOCUMENTS = [STORY, "The cat sat on the mat.\nThe dog ran to the cat.", "They ran and ran and sat and sat."] * 20


@pytest.fixture(scope="module")
def tokenizers_by_name():
    return {name: get_tokenizer(name) for name in ["byte", *SHIPPED]}


def stories(limit=None):
    if not VALID.is_file():
        pytest.skip("the TinyStories text is not beside this checkout")
    parts = VALID.read_bytes().decode().split(module.DOCUMENT_END)
    return [text for part in parts if (text := part.strip("\n"))][:limit]


# --- round trip ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_comes_back(tokenizers_by_name, name, text):
    tok = tokenizers_by_name[name]
    assert tok.decode(tok.encode(text)) == text
    assert tok.decode(tok.encode_batch([text, "other"], eos=True)[0]) == text
    assert b"".join(tok.token_bytes(i) for i in tok.encode(text, eos=True)) == text.encode()
    assert tok.unknown_count(text) == 0
    assert tok.unk_id not in tok.encode(text)


@pytest.mark.parametrize("name", LOSSLESS)
def test_all_validation_stories_come_back(tokenizers_by_name, name):
    tok, texts = tokenizers_by_name[name], stories()
    assert [tok.decode(ids) for ids in tok.encode_batch(texts)] == texts


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(["byte", "bpe_512", "bpe_2048"]))
def test_any_text_comes_back(text, name):
    tok = get_tokenizer(name)
    ids = tok.encode(text, bos=False)
    assert tok.decode(ids) == text
    assert tok.encode_batch([text], bos=False) == [ids]


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("a \u2581\u2585\n\r\t\0é😀<>x0"), max_size=30))
def test_awkward_characters_in_any_order_come_back(text):
    tok = get_tokenizer(512)
    assert tok.decode(tok.encode(text)) == text


@pytest.mark.parametrize("name", LOSSY)
def test_small_vocabularies_count_what_they_lack(tokenizers_by_name, name):
    tok = tokenizers_by_name[name]
    assert tok.decode(tok.encode(STORY)) == STORY
    assert tok.unknown_count(STORY) == 0
    text = "a\u2581中\0b\tc 😀"
    assert tok.unknown_count(text) == 5
    ids = tok.encode(text, bos=False)
    assert ids.count(tok.unk_id) == 3, "one unknown token per run"
    assert tok.decode(ids) == "a\ufffdb\ufffdc \ufffd"
    assert tok.encode_batch([text], bos=False) == [ids]


@pytest.mark.parametrize("name", LOSSY)
def test_every_printable_ascii_character_is_held(tokenizers_by_name, name):
    text = "".join(map(chr, range(32, 127))) + "\n"
    assert tokenizers_by_name[name].unknown_count(text) == 0
    assert tokenizers_by_name[name].decode(tokenizers_by_name[name].encode(text)) == text


# --- the interface ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["byte", *SHIPPED])
def test_special_tokens(tokenizers_by_name, name):
    tok = tokenizers_by_name[name]
    assert (tok.unk_id, tok.bos_id, tok.eos_id, tok.pad_id) == (0, 1, 2, 3)
    assert tok.encode("", bos=True) == [1]
    assert tok.encode("", bos=False) == []
    plain = tok.encode("a b", bos=False)
    assert tok.encode("a b") == [1, *plain]
    assert tok.encode("a b", bos=True, eos=True) == [1, *plain, 2]
    assert tok.encode_batch(["a b", ""], eos=True) == [[1, *plain, 2], [1, 2]]
    assert tok.decode([3, 3, 1, *plain, 2]) == "a b"
    assert [tok.token_bytes(i) for i in (1, 2, 3)] == [b"", b"", b""]
    assert tok.decode([0]) == "\ufffd"
    assert tok.decode([]) == ""


def test_vocab_size_counts_everything(tokenizers_by_name):
    sizes = {name: tok.vocab_size for name, tok in tokenizers_by_name.items()}
    assert sizes["byte"] == 4 + 256
    assert all(sizes[f"bpe_{n}"] == n for n in (128, 256, 512, 1024, 2048, 4096))
    assert sizes["characters"] >= 4 + 95 + 1
    assert len(tokenizers_by_name["byte"]) == 260


def test_newline_is_one_token_of_its_own(tokenizers_by_name):
    for name in SHIPPED:
        tok = tokenizers_by_name[name]
        assert tok.token_bytes(tok.encode("\n", bos=False)[0]) == b"\n"
        assert not any(b"\n" in tok.token_bytes(i) and tok.token_bytes(i) != b"\n" for i in range(tok.vocab_size))


def test_decode_takes_arrays_and_tensors(tokenizers_by_name):
    import numpy
    import torch

    tok = tokenizers_by_name["bpe_2048"]
    ids = tok.encode(STORY)
    assert tok.decode(numpy.array(ids, dtype=numpy.uint16)) == STORY
    assert tok.decode(torch.tensor(ids)) == STORY
    assert tok.decode(iter(ids)) == STORY


@pytest.mark.parametrize("name", ["byte", "bpe_2048"])
@pytest.mark.parametrize("wrong", [-1, 5000])
def test_ids_outside_the_vocabulary_are_refused(tokenizers_by_name, name, wrong):
    tok = tokenizers_by_name[name]
    message = f"id={wrong} .*vocab_size={tok.vocab_size}"
    for call in (lambda: tok.decode([5, wrong]), lambda: tok.token_bytes(wrong), lambda: tok.piece(wrong)):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("wrong", [None, 5, b"bytes", ["list"]])
def test_only_str_is_encoded(tokenizers_by_name, wrong):
    for name in ("byte", "bpe_512"):
        with pytest.raises(TypeError, match=type(wrong).__name__):
            tokenizers_by_name[name].encode(wrong)
        with pytest.raises(TypeError, match=type(wrong).__name__):
            tokenizers_by_name[name].encode_batch(["fine", wrong])
    with pytest.raises(TypeError, match="list"):
        tokenizers_by_name["byte"].encode_batch("one text")


@pytest.mark.parametrize("name", ["byte", "characters", "bpe_2048"])
def test_lone_surrogates_are_refused_with_their_place(tokenizers_by_name, name):
    tok = tokenizers_by_name[name]
    for text in ("abc\ud83d", "abc\ude00d"):
        for call in (lambda t=text: tok.encode(t), lambda t=text: tok.encode_batch(["fine", t])):
            with pytest.raises(ValueError, match=r"U\+D[8E].*position 3"):
                call()


def test_batches_and_threads_agree_with_single_texts(tokenizers_by_name):
    texts = [STORY, "", "\u2581x", "😀"] * 5
    for tok in tokenizers_by_name.values():
        expected = [tok.encode(text) for text in texts]
        assert tok.encode_batch(texts) == expected
        assert tok.encode_batch((t for t in texts), num_threads=2) == expected


def test_streaming_bytes_rebuild_characters(tokenizers_by_name):
    tok = tokenizers_by_name["bpe_2048"]
    parts = [tok.token_bytes(i) for i in tok.encode("a 😀", bos=False)]
    assert b"".join(parts).decode() == "a 😀"
    assert b"\xf0" in parts


def test_pieces_show_spaces_newlines_and_bytes(tokenizers_by_name):
    tok = tokenizers_by_name["bpe_2048"]
    pieces = tok.pieces("Once upon\né中")
    shown = [piece for _, piece in pieces]
    assert shown[:2] == ["Once", "\u2581upon"]
    assert "\\n" in shown
    assert shown[-3:] == ["<0xE4>", "<0xB8>", "<0xAD>"]
    assert [i for i, _ in pieces] == tok.encode("Once upon\né中", bos=False)


def test_bytes_per_token(tokenizers_by_name):
    assert tokenizers_by_name["byte"].bytes_per_token(["abc", "é"]) == 1.0
    assert tokenizers_by_name["bpe_2048"].bytes_per_token([STORY]) > 3
    with pytest.raises(ValueError, match="no text"):
        tokenizers_by_name["byte"].bytes_per_token([""])


# --- the tokenizers that are shipped ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_description_fits_the_model(tokenizers_by_name, name):
    tok = tokenizers_by_name[name]
    about = json.loads((ROOT / "tokenizers" / f"{name}.json").read_text(encoding="utf-8"))
    assert about["fingerprint"] == tok.fingerprint
    assert about["vocab_size"] == tok.vocab_size
    assert about["kind"] == tok.kind
    assert about["byte_fallback"] == (name in LOSSLESS)
    assert about["special_ids"] == {"unk": 0, "bos": 1, "eos": 2, "pad": 3}
    assert about["sentencepiece_options"]["normalization_rule_name"] == "identity"
    assert about["versions"]["sentencepiece"]
    assert about["text"]["documents"] > 10_000
    lacking = about["unknown_in_training_text"]
    assert lacking["total"] == sum(lacking["characters"].values())
    assert all(tok.unknown_count(c) == 1 for c in lacking["characters"])
    assert (lacking["total"] > 0) == (name in ("bpe_128", "bpe_256"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_name_no_folder_of_the_machine(name):
    for suffix in (".model", ".json"):
        content = (ROOT / "tokenizers" / f"{name}{suffix}").read_bytes()
        assert str(ROOT).encode() not in content
        assert b"/home" not in content and b"/tmp" not in content


def test_endoftext_is_no_piece(tokenizers_by_name):
    for name in SHIPPED:
        tok = tokenizers_by_name[name]
        assert not any(b"endof" in tok.token_bytes(i) for i in range(tok.vocab_size))


def test_compression_of_unseen_stories(tokenizers_by_name):
    texts = stories(500)
    found = {name: tokenizers_by_name[name].bytes_per_token(texts) for name in ["byte", *SHIPPED]}
    assert found["bpe_2048"] >= 3.59
    order = ["byte", "characters", "bpe_128", "bpe_256", "bpe_512", "bpe_1024", "bpe_2048", "bpe_4096"]
    assert [found[n] for n in order] == sorted(found.values())


# --- names and files -------------------------------------------------------------------------------------------------


def test_names_for_the_same_tokenizer():
    tok = get_tokenizer(2048)
    again = ["2048", "bpe_2048", "tokenizers/bpe_2048.model", "tokenizers/bpe_2048.json", "tokenizers/bpe_2048"]
    again += [ROOT / "tokenizers" / "bpe_2048.model", tok]
    assert {get_tokenizer(name).fingerprint for name in again} == {tok.fingerprint}


@pytest.mark.parametrize("name", ["bpe_204", "charcters", 2047, "", 3.5, None, "byt"])
def test_unknown_names_list_the_choices(name):
    with pytest.raises(ValueError, match=r"bpe_2048.*characters") as raised:
        get_tokenizer(name)
    assert repr(name) in str(raised.value)
    if name == "bpe_204":
        assert "did you mean 'bpe_2048'?" in str(raised.value)


@pytest.mark.parametrize("name", ["tokenizers/nope", "nope.model", "./nope", "trained_models/nope", "/nope/nope.json"])
def test_paths_without_a_tokenizer(name):
    with pytest.raises(FileNotFoundError, match="nope"):
        get_tokenizer(name)


def test_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer\.model nor tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_any_working_directory(tmp_path):
    code = "from tokenizer import get_tokenizer; print(get_tokenizer(512).fingerprint)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == get_tokenizer(512).fingerprint


def test_path_in_the_working_directory_is_found_too(tmp_path, monkeypatch):
    get_tokenizer(512).save(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert get_tokenizer("mine/tokenizer.model").vocab_size == 512


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"not a model", "no sentencepiece model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "Git LFS pointer.*git lfs pull"),
    ],
)
def test_damaged_model_files(tmp_path, content, message):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


def test_truncated_model_file(tmp_path):
    whole = (ROOT / "tokenizers" / "bpe_512.model").read_bytes()
    (tmp_path / "cut.model").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        get_tokenizer(tmp_path / "cut.model")


@pytest.mark.parametrize("content", ["{", "[]", '"text"', "{}"])
def test_damaged_json_files(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["byte", "characters", "bpe_2048"])
def test_saved_tokenizer_is_the_very_same(tokenizers_by_name, tmp_path, name):
    tok = tokenizers_by_name[name]
    path = tok.save(tmp_path / "model")
    assert path.name == ("tokenizer.json" if name == "byte" else "tokenizer.model")
    again = load_tokenizer(tmp_path / "model")
    assert again.fingerprint == tok.fingerprint
    assert again.encode(STORY) == tok.encode(STORY)
    assert [p.name for p in (tmp_path / "model").iterdir()] == [path.name], "nothing else is left behind"


def test_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = get_tokenizer(512).save(tmp_path)

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        get_tokenizer(1024).save(tmp_path)
    assert load_tokenizer(tmp_path).vocab_size == 512
    assert list(tmp_path.iterdir()) == [path]


def test_fingerprints_differ_and_do_not_change(tokenizers_by_name):
    assert len({tok.fingerprint for tok in tokenizers_by_name.values()}) == len(tokenizers_by_name)
    assert tokenizers_by_name["byte"].fingerprint == "f862ce0771192b99"
    assert tokenizers_by_name["bpe_2048"].fingerprint == "c91ff2af504913a3", "shipped models use it"


def test_tokenizers_survive_pickling(tokenizers_by_name):
    for tok in tokenizers_by_name.values():
        again = pickle.loads(pickle.dumps(tok))
        assert again.encode(STORY) == tok.encode(STORY)
        assert again.fingerprint == tok.fingerprint


# --- training --------------------------------------------------------------------------------------------------------


def test_train_writes_model_and_description(tmp_path):
    tok = train_tokenizer(DOCUMENTS, 120, tmp_path / "mine", text_name="three lines")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.json", "mine.model"]
    about = json.loads((tmp_path / "mine.json").read_text(encoding="utf-8"))
    assert about["text"] == {
        "name": "three lines",
        "sha256": text_fingerprint(DOCUMENTS),
        "documents": len(DOCUMENTS),
        "bytes": sum(len(d.encode()) for d in DOCUMENTS),
    }
    assert about["bytes_per_token_on_training_text"] == pytest.approx(tok.bytes_per_token(DOCUMENTS), abs=1e-4)
    for path in ("mine.model", "mine.json", "mine"):
        assert load_tokenizer(tmp_path / path).fingerprint == tok.fingerprint
    assert tok.kind == "bpe" and tok.vocab_size == 120


def test_training_is_deterministic(tmp_path):
    first, second = (train_tokenizer(iter(DOCUMENTS), 120, tmp_path / name) for name in ("a", "b.model"))
    assert first.fingerprint == second.fingerprint


def test_text_fingerprint_is_that_of_the_file(tmp_path):
    import hashlib

    content = "one\n<|endoftext|>\ntwo\nlines\n<|endoftext|>\n"
    assert text_fingerprint(["one", "two\nlines"]) == hashlib.sha256(content.encode()).hexdigest()


def test_characters_take_all_of_the_text(tmp_path):
    tok = train_tokenizer(["äöü ☃", "abc"], None, tmp_path / "c", kind="characters")
    assert tok.vocab_size == 4 + 1 + 95 + 4
    assert tok.kind == "characters"
    assert tok.decode(tok.encode("ü☃ ~")) == "ü☃ ~"


def test_long_and_awkward_training_text_is_not_skipped(tmp_path):
    one_line = "zyx " + "wonderful " * 20_000  # 200 kB without a newline; the trainer's own limit is 4 kB
    one_word = "qz" * 100_000
    reserved = "marvellous\u2581marvellous\u2585marvellous\tmarvellous\0marvellous " * 50
    words = " ".join(f"{a}{b}{c}{c}" for a in "kmn" for b in "aeiou" for c in "bdfgh")
    tok = train_tokenizer([one_line, one_word, reserved, words, *DOCUMENTS], 540, tmp_path / "long")
    shown = [tok.piece(i) for i in range(tok.vocab_size)]
    assert "\u2581wonderful" in shown
    assert "marvellous" in shown
    assert any(set(piece) == {"q", "z"} for piece in shown)
    for text in (one_line, one_word, reserved):
        assert tok.decode(tok.encode(text)) == text


def test_many_kinds_of_characters_leave_room_for_merges(tmp_path):
    chinese = "".join(chr(0x4E00 + n) for n in range(3000))
    tok = train_tokenizer([chinese, "the cat and the dog " * 200], 600, tmp_path / "zh")
    assert tok.decode(tok.encode(chinese)) == chinese
    assert "\u2581the" in [tok.piece(i) for i in range(tok.vocab_size)]


@pytest.mark.parametrize(
    ("documents", "options", "message"),
    [
        ([], {}, "no text"),
        (["", ""], {}, "no text"),
        (DOCUMENTS, {"vocab_size": 5000}, r"vocab_size=5000: this text is enough for \d+ pieces"),
        (DOCUMENTS, {"vocab_size": 50}, "vocab_size=50 must be a whole number from 104"),
        (DOCUMENTS, {"vocab_size": "big"}, "vocab_size='big'"),
        (DOCUMENTS, {"vocab_size": None}, "vocab_size=None"),
        (DOCUMENTS, {"kind": "characters"}, "pass None"),
        (DOCUMENTS, {"kind": "unigram"}, "kind='unigram' is unknown"),
        (["\ud800"], {}, "surrogate"),
    ],
)
def test_bad_requests_write_nothing(tmp_path, documents, options, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(documents, **({"vocab_size": 120, "path": tmp_path / "x"} | options))
    assert list(tmp_path.iterdir()) == []


def test_the_size_named_in_the_error_works(tmp_path):
    with pytest.raises(ValueError) as raised:
        train_tokenizer(DOCUMENTS, 5000, tmp_path / "x")
    size = int(str(raised.value).split("enough for ")[1].split()[0])
    assert train_tokenizer(DOCUMENTS, size, tmp_path / "x").vocab_size == size


# --- BPE by hand -----------------------------------------------------------------------------------------------------


def test_bpe_by_hand():
    words = bpe_by_hand.words_of("aab aab b")
    assert words == {("\u2581", "a", "a", "b"): 2, ("\u2581", "b"): 1}
    assert bpe_by_hand.pair_counts(words)["a", "b"] == 2
    assert bpe_by_hand.merge(("a", "a", "a"), ("a", "a")) == ("aa", "a")
    merges = [pair for pair, _ in bpe_by_hand.learn("low low low lower newest newest widest", 6)]
    assert bpe_by_hand.apply(merges, "low") == ["\u2581low"]
    text = "low widest unseen"
    assert "".join(bpe_by_hand.apply(merges, text)).replace("\u2581", " ") == f" {text}"
    assert len(bpe_by_hand.learn("ab", 99)) == 2, "it stops when everything is one piece"


def test_first_merges_by_hand_are_those_of_sentencepiece(tmp_path):
    text = "tcat ucat vcat wcat xhat yhat"  # no two of the first pairs occur equally often
    by_hand = ["".join(pair) for pair, times in bpe_by_hand.learn(text, 3)]
    tok = train_tokenizer([f" {text}"] * 10, 104, tmp_path / "t")
    assert [tok.piece(i) for i in (5, 6, 7)] == by_hand == ["at", "cat", "hat"]


# --- display ---------------------------------------------------------------------------------------------------------


def test_display_in_a_notebook_and_as_text(tokenizers_by_name):
    tok = tokenizers_by_name["bpe_2048"]
    shown = tok.display("Tim & <b>\nwas\0 there 😀")
    bundle = shown._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"}
    assert "&amp;" in bundle["text/html"] and "<b>" not in bundle["text/html"]
    assert "color:" not in bundle["text/html"].replace("background", ""), "letters keep the colour of the theme"
    assert bundle["text/plain"].startswith("Tim|\u2581|<0x26>|") and "|\\n|" in bundle["text/plain"]
    assert "tokens" in bundle["text/plain"]
    assert str(shown) == bundle["text/plain"], "no colours where the output is not a terminal"
    assert "&lt;0x00&gt;" in bundle["text/html"] and "\u21b5</span><br>" in bundle["text/html"]
    assert tok.display("").summary == "bpe_2048: 0 tokens, 0 bytes"


def test_display_in_a_terminal(tokenizers_by_name, monkeypatch):
    shown = tokenizers_by_name["bpe_2048"].display("a b\nc")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\033[38;5;16;48;5;" in str(shown)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in str(shown)


# --- Hugging Face ----------------------------------------------------------------------------------------------------


@pytest.fixture
def byte_level_folder(tmp_path):
    """A small tokenizer like GPT-2's, saved as the Hugging Face hub would hold it."""
    hf = pytest.importorskip("tokenizers")
    backend = hf.Tokenizer(hf.models.BPE())
    backend.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = hf.decoders.ByteLevel()
    alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(DOCUMENTS, trainer)
    folder = tmp_path / "my_gpt2"
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<|endoftext|>", "eos_token": {"content": "<|endoftext|>"}, "pad_token": None}),
        encoding="utf-8",
    )
    return folder


def test_hugging_face_folder(byte_level_folder, tmp_path):
    tok = get_tokenizer(byte_level_folder)
    assert tok.kind == "huggingface" and tok.vocab_size == 300
    assert tok.bos_id == tok.eos_id == tok.pad_id == 0
    for text in [STORY, *AWKWARD]:
        ids = tok.encode(text)
        assert ids[0] == tok.bos_id
        assert tok.decode(ids) == text
        assert tok.encode_batch([text]) == [ids]
        assert b"".join(map(tok.token_bytes, ids)) == text.encode()
    with pytest.raises(ValueError, match=r"id=300 .*vocab_size=300"):
        tok.decode([300])
    assert tok.display("Once")._repr_mimebundle_()["text/html"]
    tok.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert (again.fingerprint, again.bos_id, again.encode(STORY)) == (tok.fingerprint, tok.bos_id, tok.encode(STORY))


def test_hugging_face_agrees_with_transformers(byte_level_folder):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(byte_level_folder / "tokenizer.json"))
    assert get_tokenizer(byte_level_folder).encode(STORY, bos=False) == theirs.encode(STORY, add_special_tokens=False)


def test_hugging_face_word_pieces(tmp_path):
    hf = pytest.importorskip("tokenizers")
    vocabulary = {piece: i for i, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "play", "##ing", "boy"])}
    backend = hf.Tokenizer(hf.models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    backend.decoder = hf.decoders.WordPiece()
    backend.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    backend.save(str(tmp_path / "tokenizer.json"))
    tok = load_tokenizer(tmp_path)
    assert (tok.bos_id, tok.eos_id, tok.pad_id, tok.unk_id) == (2, 3, 0, 1)
    assert tok.decode(tok.encode("boy playing", eos=True)) == "boy playing"
    assert [tok.token_bytes(i) for i in (4, 5)] == [b" play", b"ing"]
    assert tok.unknown_count("boy zzz") == 1


def test_hugging_face_without_special_tokens(tmp_path):
    hf = pytest.importorskip("tokenizers")
    hf.Tokenizer(hf.models.BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="no special token"):
        load_tokenizer(tmp_path)


def test_hugging_face_folder_without_tokenizer_json(tmp_path):
    pytest.importorskip("transformers")
    alphabet = sorted(lab_tokenizers.BYTE_OF)
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, "ab", "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}), encoding="utf-8")
    tok = get_tokenizer(tmp_path)
    assert tok.encode("ab", bos=False) == [256]
    assert tok.decode(tok.encode("ab é😀")) == "ab é😀"


def test_hub_that_cannot_be_reached_is_said_at_once(monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("tokenizers")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        monkeypatch.setattr(hub.constants, "ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
        with pytest.raises(ConnectionError, match=r"tokenizer='gpt2' .*cannot be reached.*local folder"):
            get_tokenizer("gpt2")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE"):
        get_tokenizer("owner/name")


def test_hub_tokenizer_in_the_local_cache(monkeypatch, byte_level_folder):
    hub = pytest.importorskip("huggingface_hub")
    cached = {"tokenizer.json": str(byte_level_folder / "tokenizer.json")}
    monkeypatch.setattr(hub, "hf_hub_download", lambda name, file, **_: cached[file])
    assert get_tokenizer("gpt2").decode(get_tokenizer("gpt2").encode("é😀")) == "é😀"
    assert get_tokenizer("owner/name").name == "owner_name"


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match="pip install tokenizers"):
        get_tokenizer("gpt2")


def test_importing_tokenizer_stays_light():
    code = "import sys, tokenizer; print({'torch', 'transformers', 'pandas', 'IPython'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
