"""Big texts: encoding in bounded memory, on any number of threads, and going on after a kill; reading 600 M tokens."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import data, packing, storyworld
from lab.data import SEPARATOR, open_source, tokenize
from tokenizer import get_tokenizer

ROOT = Path(__file__).resolve().parent.parent
MEASURE = """
import sys, threading
import numpy as np, psutil, torch, tqdm, filelock
from lab import data, packing
from tokenizer import get_tokenizer
tok = get_tokenizer(2048)
this, peak, ended = psutil.Process(), 0, threading.Event()
before = this.memory_info().rss
def watch():
    global peak
    while not ended.wait(0.005):
        peak = max(peak, this.memory_info().rss)
threading.Thread(target=watch, daemon=True).start()
{work}
ended.set()
print((peak - before) / 1e6)
"""
ENCODE = """
packed = data.tokenize(data.open_source(sys.argv[1], cache_dir=sys.argv[2]), "train", tok, progress=False)
"""


@pytest.fixture(scope="module")
def stories() -> list[str]:
    """4 MB of storyworld."""
    return list(storyworld.documents("train", size_bytes=4_000_000))


@pytest.fixture
def text(tmp_path, stories) -> Path:
    return write(tmp_path / "stories.txt", stories)


def write(path: Path, documents) -> Path:
    path.write_bytes("".join(f"{document}\n{SEPARATOR}\n" for document in documents).encode())
    return path


def child(work: str, *arguments) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE.format(work=work), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE)


def megabytes_more(work: str, *arguments) -> float:
    """By how many MB the resident memory of a fresh process grew at most while it did the work."""
    process = child(work, *arguments)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    return float(output)


def in_memory(documents: list[str], tok) -> np.ndarray:
    """The plain way: everything encoded at once on one thread."""
    return np.concatenate([np.asarray(ids) for ids in tok.encode_batch(documents, bos=True, eos=True)])


# ---------------------------------------------------------------- the same tokens


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_same_as_in_memory_on_any_number_of_threads(text, tmp_path, stories, monkeypatch, threads):
    monkeypatch.setattr(packing, "cores", lambda: threads)
    monkeypatch.setattr(packing, "ENCODE_BYTES", 300_000)
    monkeypatch.setattr(packing, "PART_BYTES", 1_000_000)
    source, tok = open_source(str(text), cache_dir=tmp_path / "cache"), get_tokenizer(2048)
    packed = tokenize(source, "train", tok, progress=False)
    documents = list(source.documents("train"))
    assert len(documents) > 0.97 * len(stories)
    assert np.array_equal(packed.ids, in_memory(documents, tok))
    assert packed.num_documents == len(documents) and (packed.ids[packed.starts] == tok.bos_id).all()
    assert packed.num_bytes == sum(len(document.encode()) for document in documents)
    assert not list((tmp_path / "cache").glob("*.part"))


def test_every_format_packs_to_the_same_tokens(tmp_path, stories):
    stories = stories[:500]
    write(tmp_path / "a.txt", stories)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in stories))
    pyarrow.parquet.write_table(pyarrow.table({"text": stories}), tmp_path / "a.parquet")
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "1.txt", stories[:200]), write(tmp_path / "folder" / "2.txt", stories[200:])
    prints = set()
    for number, name in enumerate(("a.txt", "a.jsonl", "a.parquet", "folder")):
        source = open_source(str(tmp_path / name), cache_dir=tmp_path / f"cache{number}")
        prints.add(tokenize(source, "train", get_tokenizer(2048), progress=False).ids.tobytes())
    assert len(prints) == 1


@given(st.lists(st.text(st.sampled_from("a<|endoftx>é\n"), max_size=30), max_size=6), st.integers(1, 40))
def test_marks_are_found_wherever_a_chunk_ends(tmp_path_factory, pieces, chunk):
    raw = SEPARATOR.join(pieces).encode()
    path = tmp_path_factory.mktemp("chunks") / "a.txt"
    path.write_bytes(raw)
    whole = list(data._read_txt(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "READ_BYTES", chunk)
        assert list(data._read_txt(path)) == whole == list(data._clean(raw.decode()))


# ---------------------------------------------------------------- going on


class Counting:
    """A tokenizer that counts the documents it was given, and may be told to fail."""

    def __init__(self, fail_after: int = 10**9):
        self.tok, self.seen, self.fail_after = get_tokenizer(2048), 0, fail_after
        self.vocab_size, self.fingerprint = self.tok.vocab_size, self.tok.fingerprint

    def encode_batch(self, texts, **options):
        if self.seen >= self.fail_after:
            raise KeyboardInterrupt
        self.seen += len(texts)
        return self.tok.encode_batch(texts, **options)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(packing, "ENCODE_BYTES", 100_000)
    monkeypatch.setattr(packing, "PART_BYTES", 500_000)


def test_an_interrupted_encoding_goes_on(text, tmp_path, small_parts):
    source = open_source(str(text), cache_dir=tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        tokenize(source, "train", Counting(fail_after=3000), progress=False)
    ids, = (tmp_path / "cache").glob("*.ids.part")
    assert not list((tmp_path / "cache").glob("tokens-*.json"))
    with open(ids, "ab") as file:
        file.write(b"torn")  # what a kill leaves behind the last mark is cut off
    tok = Counting()
    packed = tokenize(source, "train", tok, progress=False)
    documents = list(source.documents("train"))
    assert len(documents) - 3100 < tok.seen < len(documents) - 2000
    assert np.array_equal(packed.ids, in_memory(documents, tok.tok))
    assert packed.num_bytes == sum(len(document.encode()) for document in documents)
    assert (packed.ids[packed.starts] == get_tokenizer(2048).bos_id).all() and len(packed.starts) == len(documents)


@pytest.mark.parametrize("end, damage", [("ids", lambda raw: raw[:1000]), ("starts", None), ("json", lambda raw: b"{")])
def test_damaged_parts_are_not_gone_on_with(text, tmp_path, small_parts, end, damage):
    source = open_source(str(text), cache_dir=tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        tokenize(source, "train", Counting(fail_after=3000), progress=False)
    path, = (tmp_path / "cache").glob(f"*.{end}.part")
    path.write_bytes(damage(path.read_bytes())) if damage else path.unlink()
    tok = Counting()
    packed = tokenize(source, "train", tok, progress=False)
    documents = list(source.documents("train"))
    assert tok.seen == len(documents) and np.array_equal(packed.ids, in_memory(documents, tok.tok))


def test_a_killed_process_is_gone_on_with(text, tmp_path, small_parts):
    slow = "packing.ENCODE_BYTES, packing.PART_BYTES = 50_000, 500_000\nimport time\n" \
        "real = tok.encode_batch\ntok.encode_batch = lambda *a, **b: (time.sleep(0.05), real(*a, **b))[1]\n"
    process = child(slow + ENCODE, text, tmp_path / "cache")
    end = time.monotonic() + 100
    while not list((tmp_path / "cache").glob("*.json.part")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    process.communicate()
    source, tok = open_source(str(text), cache_dir=tmp_path / "cache"), Counting()
    packed = tokenize(source, "train", tok, progress=False)
    documents = list(source.documents("train"))
    assert 0 < tok.seen < len(documents) - 400
    assert np.array_equal(packed.ids, in_memory(documents, tok.tok))


# ---------------------------------------------------------------- memory


def test_memory_is_bounded_while_encoding(tmp_path, stories):
    """20 MB take hardly more than 8; benchmarks/data.py --big 200 measures as much as you like."""
    grown = []
    for copies in (2, 5):
        path = write(tmp_path / f"{copies}.txt", (f"{copy} {story}" for copy in range(copies) for story in stories))
        grown.append(megabytes_more(ENCODE, path, tmp_path / "cache"))
    assert grown[1] < 200 and grown[1] < grown[0] + 30


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not let a process give such pages back")
def test_memory_is_bounded_while_reading_600_million_tokens(tmp_path):
    with open(tmp_path / "ids", "wb") as file:
        file.truncate(1_200_000_000)  # a file of holes, which takes no room
    work = """
ids = np.memmap(sys.argv[1], dtype="<u2", mode="r")
packed = packing.PackedTokens(ids, np.zeros(1, np.int64), len(ids), 1, 0, "")
batches = data.Batches(packed, batch_size=64, seq_len=512)
for i in range(300):
    batches.get(i)
assert batches.num_rows == 1_171_875
"""
    assert megabytes_more(work, tmp_path / "ids") < 200  # 19,200 rows would take up to 1,200 MB
