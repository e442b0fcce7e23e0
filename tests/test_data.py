"""lab/data.py and lab/hub.py: reading files, named datasets, the token cache, batches. No test leaves this machine."""
import io
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
import tracemalloc
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lab import data, hub, packing
from lab.data import SEPARATOR, Batches, PackedTokens, open_source, tokenize, validation_documents


class Bytes:
    """A tokenizer for tests: one id per byte."""
    vocab_size, bos_id, eos_id, pad_id, fingerprint = 259, 256, 257, 258, "bytes"

    def encode_batch(self, texts, bos=True, eos=True, num_threads=1):
        return [[self.bos_id] * bos + list(text.encode()) + [self.eos_id] * eos for text in texts]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and no Hugging Face cache or hub but those that a test brings."""
    from huggingface_hub import constants
    monkeypatch.setenv("SANDBOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("no_proxy", "*")
    for name in ("HF_DATASETS_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "huggingface" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    return tmp_path / "cache"


def write(path: Path, documents, ending="\n") -> str:
    path.write_bytes("".join(f"{text}{ending}{SEPARATOR}{ending}" for text in documents).encode())
    return str(path)


def stories(count: int) -> list[str]:
    return [f"Story {i} began.\nIt ended é {i * i}." for i in range(count)]


def everything(source) -> list[str]:
    return [*source.documents("train"), *source.documents("valid")]


# ------------------------------------------------------------------------------------------------ reading files

@pytest.mark.parametrize("raw", [
    b"One.\n<|endoftext|>\nTwo\nlines.\n<|endoftext|>\n",
    b"One.<|endoftext|>Two\nlines.",
    b"\xef\xbb\xbfOne.\n<|endoftext|>\n\n<|endoftext|>\n  \n<|endoftext|>\nTwo\nlines.\n\n",
    b"\r\n\r\nOne.\r\n<|endoftext|>\r\nTwo\nlines.\r\n",
])
def test_txt(tmp_path, raw):
    (tmp_path / "a.txt").write_bytes(raw)
    source = open_source(str(tmp_path / "a.txt"))
    assert (list(source.documents("train")), list(source.documents("valid"))) == (["One."], ["Two\nlines."])
    assert source.name == "a.txt" and str(tmp_path) not in source.notice


def test_crlf_inside_a_document_is_kept(tmp_path):
    path = write(tmp_path / "a.txt", ["One\r\ntwo.", "Three."], ending="\r\n")
    assert everything(open_source(path)) == ["One\r\ntwo.", "Three."]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=8))
def test_every_format_gives_the_same_documents(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("formats")
    texts = [text.replace("<", "") for text in texts]
    expected = [text.strip("\r\n") for text in texts if text.strip()]
    files = [folder / name for name in ("a.txt", "a.jsonl", "a.parquet")]
    write(files[0], texts)
    files[1].write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array(texts, pyarrow.string())}), files[2])
    for file in files:
        if texts and not (expected and texts[0].startswith("\ufeff")):       # there it is a mark of the file
            assert list(data.READERS[file.suffix](file)) == expected


def test_jsonl_fields_and_blank_lines(tmp_path):
    (tmp_path / "a.jsonl").write_text('\ufeff{"text": "One.", "n": 1}\n\n{"story": "Two."}\r\n{"text": ""}\n', "utf-8")
    assert everything(open_source(str(tmp_path / "a.jsonl"))) == ["One.", "Two."]


@pytest.mark.parametrize("line, message", [
    ('{"text": "torn', "line 2 is not complete JSON"),
    ('["text"]', "line 2 holds a list"),
    ('{"txt": 1, "id": 2}', r"line 2 has no field 'text' or 'story' \(it has: txt, id\)"),
    ('{"text": 7}', "line 2: its text is a int"),
    (r'{"text": "\ud83d"}', "line 2 holds half a surrogate pair"),
])
def test_bad_jsonl_names_the_line(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "One."}\n' + line)
    with pytest.raises(ValueError, match=message):
        open_source(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("name, before", [
    ("a.txt", "Ärger.\n<|endoftext|>\nTwo "), ("a.jsonl", '{"text": "é"}\n{"text": "')])
def test_not_utf8_names_the_byte(tmp_path, name, before):
    (tmp_path / name).write_bytes(before.encode() + b"\xe9t\xe9\n")
    with pytest.raises(ValueError, match=rf"not UTF-8 at byte {len(before.encode())} \(0xe9\); save the file as UTF-8"):
        open_source(str(tmp_path / name))


def test_parquet(tmp_path):
    table = pyarrow.table({"id": [1, 2, 3], "story": ["One.", None, "Two."]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert everything(open_source(str(tmp_path / "a.parquet"))) == ["One.", "Two."]


def test_bad_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"id": [1], "body": ["One."]}), path)
    with pytest.raises(ValueError, match=r"no field 'text' or 'story' \(it has: id, body\)"):
        open_source(str(path))
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), path)
    with pytest.raises(ValueError, match="'text' holds int64; it must hold strings"):
        open_source(str(path))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="not a readable parquet file"):
        open_source(str(path))


def test_folder(tmp_path):
    write(tmp_path / "b.txt", ["Two."])
    (tmp_path / "a.jsonl").write_text('{"text": "One."}\n')
    (tmp_path / "notes.md").write_text("no story")
    source = open_source(str(tmp_path))
    assert everything(source) == ["One.", "Two."] and source.name == tmp_path.name
    write(tmp_path / "my_valid.txt", ["Three."])
    source = open_source(str(tmp_path))
    assert list(source.documents("train")) == ["One.", "Two."]
    assert validation_documents(source) == ["Three."]
    assert "my_valid.txt" in source.notice
    write(tmp_path / "my_valid.txt", ["Four."])
    source = open_source(str(tmp_path), valid_dataset=str(tmp_path / "my_valid.txt"))
    assert list(source.documents("train")) == ["One.", "Two."] and validation_documents(source) == ["Four."]


@pytest.mark.parametrize("dataset, error, message", [
    ("storywrld", ValueError, "did you mean 'storyworld'"),
    ("wikipedia", ValueError, "nor one of auto, tinystories, storyworld$"),
    ("", ValueError, "neither a file or folder"),
    ("missing/stories.txt", FileNotFoundError, "no such file or folder"),
    ("stories.txt", FileNotFoundError, "no such file or folder"),
    (__file__, ValueError, "must end in .txt, .jsonl, .parquet"),
])
def test_unknown_dataset(dataset, error, message):
    with pytest.raises(error, match=message):
        open_source(dataset)


def test_other_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="limit_bytes=0 must be at least 1"):
        open_source("storyworld", limit_bytes=0)
    with pytest.raises(ValueError, match=r"holds no \.txt, \.jsonl, \.parquet file"):
        open_source(str(tmp_path))
    with pytest.raises(ValueError, match="split='test' must be one of train, valid"):
        open_source(write(tmp_path / "a.txt", stories(3))).documents("test")


# ------------------------------------------------------------------------------------------------ validation

def test_two_percent_are_held_out(tmp_path):
    texts = stories(1000)
    texts[123] = texts[49]           # a copy of a held-out document
    path = write(tmp_path / "a.txt", texts)
    source = open_source(path)
    valid = validation_documents(source)
    assert valid == texts[49::50] == validation_documents(open_source(path))
    assert list(source.documents("train")) == [text for text in texts if text not in valid]
    assert len(list(source.documents("train"))) == 979
    assert "20 of its documents" in source.notice


def test_at_most_500_are_held_out(tmp_path):
    source = open_source(write(tmp_path / "a.txt", map(str, range(26_000))))
    assert len(list(source.documents("valid"))) == 500
    assert len(list(source.documents("train"))) == 25_500
    assert validation_documents(source, 3) == ["49", "99", "149"]


def test_one_document_is_cut(tmp_path):
    text = "\n".join(f"Line {i} of the play." for i in range(1000))
    (tmp_path / "play.txt").write_text(text)
    source = open_source(str(tmp_path / "play.txt"))
    (train,), (valid,) = source.documents("train"), source.documents("valid")
    assert f"{train}\n{valid}" == text and 0.02 <= len(valid) / len(text) < 0.022
    assert SEPARATOR in source.notice and "one document" in source.notice


def test_valid_dataset(tmp_path):
    train, valid = write(tmp_path / "a.txt", stories(200)), write(tmp_path / "b.txt", ["One.", "Two."])
    source = open_source(train, valid_dataset=valid)
    assert list(source.documents("train")) == stories(200)
    assert validation_documents(source) == ["One.", "Two."]
    assert source.notice.endswith("validation: b.txt")
    source = open_source(train, valid_dataset="storyworld")
    assert len(validation_documents(source)) == 500


def test_no_text(tmp_path):
    train, empty = write(tmp_path / "a.txt", stories(5)), write(tmp_path / "b.txt", ["", " \n"])
    with pytest.raises(ValueError, match=r"'a.txt': its validation split holds no text; set valid_dataset"):
        validation_documents(open_source(train, valid_dataset=empty))
    with pytest.raises(ValueError, match=r"'b.txt' holds no text"):
        open_source(empty)
    with pytest.raises(ValueError, match=r"'b.txt': its split 'train' holds no text"):
        tokenize(open_source(empty, valid_dataset=train), "train", Bytes())


# ------------------------------------------------------------------------------------------------ fingerprints

def test_fingerprint_names_the_text(tmp_path):
    path = write(tmp_path / "a.txt", stories(60))
    first = open_source(path).fingerprint
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in stories(60)))
    assert open_source(str(tmp_path / "b.jsonl")).fingerprint == first
    assert open_source(write(tmp_path / "a.txt", stories(61))).fingerprint != first
    assert open_source(write(tmp_path / "a.txt", stories(60)), valid_dataset="storyworld").fingerprint != first


def test_fingerprint_is_remembered(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", stories(60))
    first = open_source(path).fingerprint
    source = open_source(path)
    monkeypatch.setattr(data, "_read_files", lambda files: pytest.fail("the text was read again"))
    assert source.fingerprint == first


# ------------------------------------------------------------------------------------------------ the token cache

class Refusing(Bytes):
    def encode_batch(self, texts, bos=True, eos=True, num_threads=1):
        raise AssertionError("the text was encoded again")


def packed_equals(packed: PackedTokens, documents: list[str]) -> None:
    assert packed.ids.tolist() == list(itertools.chain(*Bytes().encode_batch(documents)))
    assert packed.num_tokens == len(packed.ids) and packed.num_documents == len(documents)
    assert packed.num_bytes == sum(len(text.encode()) for text in documents)
    assert (packed.ids[packed.starts] == Bytes.bos_id).all() and len(packed.starts) == len(documents)
    assert packed.starts.dtype == np.int64


def test_tokenize(tmp_path):
    source = open_source(write(tmp_path / "a.txt", stories(60)))
    for split in ("train", "valid"):
        packed_equals(tokenize(source, split, Bytes()), list(source.documents(split)))
    again = tokenize(source, "train", Refusing())
    packed_equals(again, list(source.documents("train")))
    assert isinstance(again.ids, np.memmap) and again.ids.dtype == np.uint16
    assert again.fingerprint == tokenize(open_source(str(tmp_path / "a.txt")), "train", Refusing()).fingerprint


def test_other_text_or_tokenizer_has_its_own_cache(tmp_path):
    class Wide(Bytes):
        vocab_size, fingerprint, bos_id = 70_000, "wide", 69_999

    source = open_source(write(tmp_path / "a.txt", stories(60)))
    narrow, wide = tokenize(source, "train", Bytes()), tokenize(source, "train", Wide())
    assert wide.ids.dtype == np.uint32 and wide.ids[0] == 69_999 and narrow.fingerprint != wide.fingerprint
    source = open_source(write(tmp_path / "a.txt", stories(70)))
    packed_equals(tokenize(source, "train", Bytes()), list(source.documents("train")))


def test_cache_dir(tmp_path, cache):
    source = open_source(write(tmp_path / "a.txt", stories(60)))
    tokenize(source, "train", Bytes(), cache_dir=tmp_path / "elsewhere")
    tokenize(open_source(str(tmp_path / "a.txt"), cache_dir=tmp_path / "elsewhere"), "train", Refusing())
    assert not cache.exists()


@pytest.mark.parametrize("ending, damage", [
    ("ids", lambda raw: raw[:-2]), ("ids", lambda raw: raw[:-1]), ("ids", lambda raw: b""),
    ("starts", lambda raw: raw[:-8]), ("json", lambda raw: raw[:-9]), ("json", lambda raw: b"{}"),
])
def test_damaged_cache_is_rebuilt(tmp_path, cache, capsys, ending, damage):
    source = open_source(write(tmp_path / "a.txt", stories(60)))
    tokenize(source, "train", Bytes())
    path, = cache.glob(f"tokens-*.{ending}")
    path.write_bytes(damage(path.read_bytes()))
    packed_equals(tokenize(source, "train", Bytes()), list(source.documents("train")))
    assert "is damaged" in capsys.readouterr().err
    tokenize(source, "train", Refusing())


def test_interrupt_leaves_nothing(tmp_path, cache, monkeypatch):
    class Interrupted(Bytes):
        calls = 0

        def encode_batch(self, texts, bos=True, eos=True, num_threads=1):
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().encode_batch(texts, bos, eos)

    monkeypatch.setattr(packing, "ENCODE_BYTES", 100)
    source = open_source(write(tmp_path / "a.txt", stories(60)))
    with pytest.raises(KeyboardInterrupt):
        tokenize(source, "train", Interrupted())
    assert [path.name for path in cache.iterdir() if not path.name.startswith("fingerprint")] == locks(cache)
    packed_equals(tokenize(source, "train", Bytes()), list(source.documents("train")))


def locks(cache) -> list[str]:
    """Empty files, which an interrupted call leaves behind."""
    return [path.name for path in cache.glob("*.lock") if not path.stat().st_size]


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its processes with fork")


def in_child(work) -> int:
    """Run `work` in a forked process; returns its process id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return child


@needs_fork
@pytest.mark.parametrize("step", range(4))
def test_kill_never_leaves_half_a_cache(tmp_path, cache, monkeypatch, step):
    source = open_source(write(tmp_path / "a.txt", stories(60)))
    assert source.fingerprint
    renamed = itertools.count()

    def replace_or_die(old, new, replace=os.replace):
        if next(renamed) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(old, new)

    def work():
        monkeypatch.setattr(os, "replace", replace_or_die)
        tokenize(source, "train", Bytes())
        os.kill(os.getpid(), signal.SIGKILL)

    assert os.WIFSIGNALED(os.waitpid(in_child(work), 0)[1])
    unfinished = [*cache.glob("*.tmp"), *cache.glob("*.part")]
    assert len(unfinished) == [2, 1, 1, 0][step]
    for leftover in unfinished:
        os.utime(leftover, (0, time.time() - 2 * data.STALE_PART_SECONDS))
    packed_equals(tokenize(source, "train", Refusing() if step == 3 else Bytes()), list(source.documents("train")))
    assert not list(cache.glob("*.tmp")) and not list(cache.glob("*.part"))


@needs_fork
def test_processes_at_the_same_time(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(packing, "ENCODE_BYTES", 1000)
    source = open_source(write(tmp_path / "a.txt", stories(2000)))

    def work():
        packed_equals(tokenize(source, "train", Bytes(), progress=False), list(source.documents("train")))
        os._exit(0)

    children = [in_child(work) for _ in range(3)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    packed_equals(tokenize(source, "train", Refusing()), list(source.documents("train")))
    assert not list(cache.glob("*.tmp"))


def test_leftovers_of_running_processes_stay(tmp_path, cache):
    cache.mkdir()
    young, old = cache / ".tokens-1.ids.0a.tmp", cache / ".tokens-1.ids.0b.tmp"
    for path in (young, old):
        path.touch()
    os.utime(old, (0, time.time() - data.STALE_SECONDS - 60))
    tokenize(open_source(write(tmp_path / "a.txt", stories(60))), "train", Bytes())
    assert list(cache.glob("*.tmp")) == [young]


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    source = open_source(write(tmp_path / "a.txt", stories(60)))
    with monkeypatch.context() as patch:         # as for a folder without write permission (but root has it always)
        patch.setattr(os, "access", lambda *_: False)
        with pytest.raises(PermissionError, match="SANDBOX_CACHE"):
            tokenize(source, "train", Bytes())
    monkeypatch.setenv("SANDBOX_CACHE", str(tmp_path / "a.txt"))
    with pytest.raises(OSError, match=r"cannot be written to; .* SANDBOX_CACHE.*a\.txt"):
        tokenize(open_source(str(tmp_path / "a.txt")), "train", Bytes())


def test_whole_cache_is_read_without_writing(tmp_path, monkeypatch):
    source = open_source(write(tmp_path / "a.txt", stories(60)))
    tokenize(source, "train", Bytes())
    monkeypatch.setattr(data, "write_atomic", lambda *_: pytest.fail("something was written"))
    tokenize(open_source(str(tmp_path / "a.txt")), "train", Refusing())


def test_full_disk_keeps_what_was_there(tmp_path, cache, monkeypatch):
    source = open_source(write(tmp_path / "a.txt", stories(60)))
    tokenize(source, "train", Bytes())
    before = {path.name: path.read_bytes() for path in cache.iterdir()}

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        tokenize(source, "valid", Bytes())
    assert {path.name: path.read_bytes() for path in cache.iterdir() if path.name not in locks(cache)} == before


def test_memory_does_not_grow_with_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "ENCODE_BYTES", 100_000)

    def peak(megabytes: int) -> int:
        path = write(tmp_path / "a.txt", (f"{i:04} " * 1000 for i in range(200 * megabytes)))
        source = open_source(path, valid_dataset="storyworld")
        tracemalloc.start()
        assert tokenize(source, "train", Bytes(), progress=False).num_bytes == 1_000_000 * megabytes
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(1)                  # imports and the like
    assert peak(6) < peak(2) + 200_000


def test_progress_goes_to_stderr(tmp_path, capsys, monkeypatch):
    class Slow(Bytes):
        def encode_batch(self, texts, bos=True, eos=True, num_threads=1):
            time.sleep(0.2)
            return super().encode_batch(texts, bos, eos)

    monkeypatch.setattr(packing, "ENCODE_BYTES", 300)
    source = open_source(write(tmp_path / "a.txt", stories(60)))
    tokenize(source, "train", Slow())
    output = capsys.readouterr()
    assert "encoding a.txt" in output.err and output.out == ""
    Slow.fingerprint = "slow"
    tokenize(source, "train", Slow(), progress=False)
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------------------------ batches

def ring(num_tokens: int, starts=(0,)) -> PackedTokens:
    """A stream in which every token is its own position."""
    return PackedTokens(np.arange(num_tokens, dtype=np.uint32), np.array(starts, dtype=np.int64), num_tokens,
                        len(starts), num_tokens, "ring")


sizes = st.tuples(st.integers(2, 300), st.integers(1, 40)).filter(lambda pair: pair[0] > pair[1])


@given(sizes, st.integers(1, 9), st.integers(0, 2**40), st.integers(0, 4))
def test_an_epoch_has_every_token_once_as_target(size, batch_size, seed, epoch):
    (num_tokens, seq_len) = size
    batches = Batches(ring(num_tokens), batch_size=batch_size, seq_len=seq_len, seed=seed)
    rows = num_tokens // seq_len
    first, last = epoch * rows // batch_size, ((epoch + 1) * rows - 1) // batch_size
    x, y = (torch.cat(parts) for parts in zip(*(batches.get(i) for i in range(first, last + 1)), strict=True))
    assert torch.equal(y, (x + 1) % num_tokens) and x.dtype == y.dtype == torch.int64
    assert torch.equal(y[:, :-1], x[:, 1:])
    begin = epoch * rows - first * batch_size
    targets = Counter(y[begin:begin + rows].flatten().tolist())
    assert batches.tokens_per_epoch == rows * seq_len == len(targets) and set(targets.values()) == {1}
    left_out = sorted(set(range(num_tokens)) - set(targets))
    assert len(left_out) == num_tokens % seq_len
    if left_out:            # they are neighbours on the ring
        assert any([(p + k) % num_tokens in left_out for k in range(len(left_out))].count(False) == 0 for p in left_out)
    assert batches.epoch(first) <= epoch and (begin or batches.epoch(first) == epoch)


@given(sizes, st.integers(1, 5), st.lists(st.integers(0, 200), min_size=1, max_size=6))
def test_a_batch_depends_on_seed_and_number_only(size, batch_size, numbers):
    def batches():
        return Batches(ring(size[0]), batch_size=batch_size, seq_len=size[1], seed=3)

    used = batches()
    for i in numbers:
        assert all(torch.equal(a, b) for a, b in zip(used.get(i), batches().get(i), strict=True))
    single = Batches(ring(size[0]), batch_size=1, seq_len=size[1], seed=3)
    rows = torch.cat([single.get(numbers[0] * batch_size + row)[0] for row in range(batch_size)])
    assert torch.equal(used.get(numbers[0])[0], rows)       # accumulating small batches reads the same rows


def test_epochs_differ_in_order_and_cut():
    batches = Batches(ring(1030), batch_size=1, seq_len=10, seed=1)
    epochs = [[batches.get(e * 103 + i)[0][0, 0].item() for i in range(103)] for e in range(3)]
    assert epochs[0] != epochs[1] and len({epoch[0] % 10 for epoch in epochs}) > 1
    other = Batches(ring(1030), batch_size=1, seq_len=10, seed=2)
    assert not torch.equal(other.get(0)[0], batches.get(0)[0])
    assert [batches.epoch(i) for i in (0, 102, 103, 206)] == [0, 0, 1, 2]


@given(st.lists(st.integers(2, 12), min_size=1, max_size=30), st.integers(1, 20), st.integers(0, 30))
def test_segments(lengths, seq_len, i):
    num_tokens = sum(lengths)
    if num_tokens <= seq_len:
        return
    starts = [0, *itertools.accumulate(lengths[:-1])]
    batches = Batches(ring(num_tokens, starts), batch_size=2, seq_len=seq_len)
    x, segments = batches.get(i)[0], batches.segments(i)
    for row, numbers in zip(x.tolist(), segments.tolist(), strict=True):
        expected = [sum(place in starts for place in row[1:t + 1]) for t in range(seq_len)]
        assert numbers == expected


def test_bad_batches():
    with pytest.raises(ValueError, match="seq_len=64: a row takes 65 tokens and the text holds only 64"):
        Batches(ring(64), batch_size=2, seq_len=64)
    for wrong in ({"batch_size": 0}, {"seq_len": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*must be at least"):
            Batches(ring(64), **{"batch_size": 2, "seq_len": 8} | wrong)
    with pytest.raises(ValueError, match="i=-1"):
        Batches(ring(64), batch_size=2, seq_len=8).get(-1)


# ------------------------------------------------------------------------------------------------ storyworld

def test_storyworld(cache):
    source = open_source("storyworld", limit_bytes=40_000)
    train, valid = list(source.documents("train")), validation_documents(source)
    assert 30_000 < sum(len(text.encode()) for text in train) <= 40_000
    assert len(valid) == 500 and not set(valid) & set(train)
    assert source.name == "storyworld" and "0.04 MB" in source.notice
    again = open_source("storyworld", limit_bytes=40_000)
    assert list(again.documents("train")) == train and validation_documents(again) == valid
    assert open_source("storyworld", limit_bytes=30_000).fingerprint != source.fingerprint
    assert open_source("storyworld", limit_bytes=40_000, seed=1).fingerprint != source.fingerprint
    packed_equals(tokenize(source, "train", Bytes()), train)


def test_storyworld_text_is_made_once(monkeypatch):
    from lab import storyworld
    open_source("storyworld", limit_bytes=20_000).fingerprint  # noqa: B018 (made here)
    monkeypatch.setattr(storyworld, "generate_stories", lambda seed: (pytest.fail("made again") for _ in "1"))
    assert list(open_source("storyworld", limit_bytes=20_000).documents("train"))


# ------------------------------------------------------------------------------------------------ the hub

def parquet(texts) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), file, row_group_size=100)
    return file.getvalue()


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as streaming TinyStories takes."""
    protocol_version = "HTTP/1.1"
    repo, commit = "/roneneldan/TinyStories", "a" * 40
    files = {"data/train-00000-of-00001.parquet": parquet([f"Story {i}.\n\nThe end." for i in range(2000)]),
             "data/validation-00000-of-00001.parquet": parquet([f"Other {i}." for i in range(700)]),
             "README.md": b"---\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n---\n"}

    def do_GET(self):
        path = unquote(self.path.split("?")[0])
        if path.startswith(f"/api/datasets{self.repo}/tree/"):
            folder = path.partition(self.commit)[2].strip("/")
            self.answer_json([{"type": "directory", "oid": "b" * 40, "size": 0, "path": "data"}] * (not folder) + [
                {"type": "file", "oid": "b" * 40, "size": len(raw), "path": name}
                for name, raw in self.files.items() if name.startswith(folder)])
        elif path.startswith(f"/api/datasets{self.repo}"):
            self.answer_json({"id": self.repo[1:], "sha": self.commit, "private": False, "gated": False, "tags": [],
                              "disabled": False, "siblings": [{"rfilename": name} for name in self.files]})
        elif path.startswith(f"/datasets{self.repo}/resolve/") and path.split("/", 6)[-1] in self.files:
            self.answer_file(self.files[path.split("/", 6)[-1]])
        else:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def answer_json(self, value):
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer_file(self, raw):
        headers = {"ETag": f'"{len(raw):040x}"', "X-Repo-Commit": self.commit, "Accept-Ranges": "bytes"}
        if "Range" not in self.headers:
            return self.answer(200, raw, headers)
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        part = raw[int(first):int(last) + 1]
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(raw)}"
        return self.answer(206, part, headers)

    def answer(self, code, raw, headers=()):
        self.send_response(code)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(monkeypatch):
    """Start a stand-in for the hub: serve(handler class)."""
    from huggingface_hub import constants
    servers = []

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_):         # clients that hang up are part of these tests
            pass

    def start(handler):
        servers.append(Server(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{servers[-1].server_port}")

    yield start
    for server in servers:
        server.shutdown()
        server.socket.close()


def test_tinystories_from_the_hub(serve, cache):
    serve(Hub)
    source = open_source("auto", limit_bytes=30_000)
    train = list(source.documents("train"))
    assert source.notice == "text: TinyStories, first 0.03 MB, from the Hugging Face hub"
    assert train[0] == "Story 0.\n\nThe end." and 29_000 < sum(map(len, train)) <= 30_000
    assert validation_documents(source) == [f"Other {i}." for i in range(500)]
    assert source.name == "TinyStories (hub, first 0.03 MB)"
    packed_equals(tokenize(source, "train", Bytes()), train)
    assert not list(cache.glob("*.tmp"))


def test_tinystories_is_not_downloaded_again(serve, monkeypatch):
    serve(Hub)
    monkeypatch.setattr(hub, "stories", lambda split, rate: (f"{split} {i}." for i in range(900)))
    first = open_source("tinystories", limit_bytes=3000)
    monkeypatch.setattr(hub, "probe", lambda: pytest.fail("the hub was asked again"))
    for dataset in ("auto", "tinystories"):
        again = open_source(dataset, limit_bytes=3000)
        assert "stored earlier" in again.notice and again.name == first.name
        assert again.fingerprint == first.fingerprint


class Busy(Hub):
    def do_GET(self):
        self.answer(429, b"slow down", {"Retry-After": "60"})


class Silent(Hub):
    def do_GET(self):
        time.sleep(30)


class Dripping(Hub):
    """Keeps sending, but never finishes its answer."""
    def do_GET(self):
        for _ in range(100):
            time.sleep(0.1)
            self.wfile.write(b"HTTP/1.1 200 OK\r\n"[:1])


class NoHttp(Hub):
    def do_GET(self):
        self.wfile.write(b"220 mail.example ready\r\n")
        self.close_connection = True


@pytest.mark.parametrize("handler, reason", [
    (None, "cannot be reached"), (Busy, r"answered 429 \(Too Many Requests\)"), (NoHttp, "cannot be reached"),
    (Silent, "did not answer within 0.5 s"), (Dripping, "did not answer within 0.5 s"),
])
def test_hub_out_of_reach_costs_seconds(serve, monkeypatch, handler, reason):
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.5)
    monkeypatch.setattr(hub, "stories", lambda *_: pytest.fail("the hub client was started"))
    if handler:
        serve(handler)
    begin = time.monotonic()
    with pytest.raises(ConnectionError, match=rf"dataset='tinystories': .*{reason}.*dataset='storyworld'.*path"):
        open_source("tinystories")
    source = open_source("auto", limit_bytes=20_000)
    assert time.monotonic() - begin < 3
    assert source.name == "storyworld"
    assert "storyworld" in source.notice and "because TinyStories is not at hand: the Hugging Face hub" in source.notice
    assert len(validation_documents(source)) == 500


def test_offline_switch_is_honoured(serve, monkeypatch):
    from huggingface_hub import constants
    serve(Hub)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in open_source("auto").notice


def test_name_lookup_that_hangs(monkeypatch):
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(30))
    with pytest.raises(ConnectionError, match=r"did not answer within 0\.3 s"):
        open_source("tinystories")


def client(monkeypatch, code: str) -> None:
    """Put a few lines of Python in the place of the hub client's process."""
    monkeypatch.setattr(hub, "CLIENT", [sys.executable, "-S", "-c", f"import json, time\n{code}"])


def test_hub_that_stops_answering(serve, monkeypatch, cache):
    serve(Hub)
    client(monkeypatch, """print("{}\\n" + json.dumps({"text": "One."}), flush=True); time.sleep(100)""")
    monkeypatch.setattr(hub, "STALL_SECONDS", 1)
    begin = time.monotonic()
    source = open_source("auto", limit_bytes=20_000)
    assert time.monotonic() - begin < 30
    assert source.name == "storyworld" and "delivered nothing for 1 s" in source.notice
    assert not list(cache.glob("*tinystories*"))


def test_hub_client_that_is_missing(serve, monkeypatch):
    serve(Hub)
    client(monkeypatch, "import no_such_module")
    with pytest.raises(ConnectionError, match="does not load; install"):
        open_source("tinystories")


@pytest.mark.parametrize("lines, reason", [
    ([{"loaded": True}, {"text": "One."}, {"error": "HfHubHTTPError: 500"}], r"failed \(HfHubHTTPError: 500\)"),
    ([{"loaded": True}, {"text": "One."}], "broke off"),
])
def test_transfer_that_fails(serve, monkeypatch, cache, lines, reason):
    serve(Hub)
    client(monkeypatch, f"for line in {lines!r}: print(json.dumps(line))")
    with pytest.raises(ConnectionError, match=reason):
        open_source("tinystories")
    assert not list(cache.glob("*"))


def test_auto_does_not_wait_for_a_slow_hub(serve, monkeypatch):
    serve(Hub)
    monkeypatch.setattr(hub, "STALL_SECONDS", 0.5)
    monkeypatch.setattr(data, "VALID_DOCUMENTS", 10)

    client(monkeypatch, """
print("{}")
while True:
    print(json.dumps({"text": "A story."}), flush=True)
    time.sleep(0.1)""")
    assert "the Hugging Face hub is slow (0 kB/s)" in open_source("auto", limit_bytes=20_000).notice
    assert "from the Hugging Face hub" in open_source("tinystories", limit_bytes=30).notice


def arrow(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({"text": texts})
    with pyarrow.ipc.new_stream(str(path), table.schema) as file:
        file.write_table(table)


@pytest.mark.parametrize("dataset", ["auto", "tinystories"])
@pytest.mark.parametrize("kept_by", ["datasets", "hub client"])
def test_local_huggingface_cache_comes_first(tmp_path, monkeypatch, dataset, kept_by):
    monkeypatch.setattr(hub, "probe", lambda: pytest.fail("the hub was asked"))
    home, train, valid = tmp_path / "huggingface", stories(90), ["Other."]
    if kept_by == "datasets":
        folder = home / "datasets/roneneldan___tiny_stories/default/0.0.0" / Hub.commit
        arrow(folder / "tiny_stories-train-00000-of-00002.arrow", train[:50])
        arrow(folder / "tiny_stories-train-00001-of-00002.arrow", train[50:])
        arrow(folder / "tiny_stories-validation.arrow", valid)
        arrow(folder.with_name("c" * 40 + ".incomplete") / "tiny_stories-train.arrow", ["half"])
    else:
        folder = home / "hub/datasets--roneneldan--TinyStories/snapshots" / Hub.commit / "data"
        folder.mkdir(parents=True)
        (folder / "train-00000-of-00001.parquet").write_bytes(parquet(train))
        (folder / "validation-00000-of-00001.parquet").write_bytes(parquet(valid))
    source = open_source(dataset, limit_bytes=2000)
    kept = list(source.documents("train"))
    assert kept == train[:len(kept)] and 1900 < sum(len(text.encode()) for text in kept) <= 2000
    assert validation_documents(source) == valid
    assert source.notice == "text: TinyStories, first 0.002 MB, from the local Hugging Face cache"


# ------------------------------------------------------------------------------------------------ real text

def test_real_tinystories(shared_data):
    source = open_source(str(shared_data("tinystories_train.txt")))
    packed = tokenize(source, "train", Bytes(), progress=False)
    assert packed.num_documents == 10_869 and len(validation_documents(source)) == 221
    assert packed.num_tokens == packed.num_bytes + 2 * packed.num_documents
    x, y = Batches(packed, batch_size=8, seq_len=512).get(0)
    assert x.shape == y.shape == (8, 512)
