"""Text in, batches out: where the stories come from, the token cache on disk, and the rows that training reads.

    source = open_source("auto")                        # which text: TinyStories, storyworld, or your own files
    packed = tokenize(source, "train", tok)             # encoded once, then memory-mapped from the cache
    x, y = Batches(packed, batch_size=8, seq_len=512).get(0)     # (B, T) inputs, and the same shifted by one
    documents = validation_documents(source)            # the fixed list that every evaluation uses

One rule for documents, whatever the file format: `<|endoftext|>` ends a document wherever it stands, newlines around a
document are stripped, and documents without text are dropped. Nothing else is changed: line ends within a document
(CRLF too) stay as they are, because bits per byte counts the bytes of the source text.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import json
import mmap
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from lab import packing
from lab.files import ROOT, leftovers, write_atomic
from lab.packing import PackedTokens

SEPARATOR = "<|endoftext|>"
SUFFIXES = (".txt", ".jsonl", ".parquet")
TEXT_FIELDS = ("text", "story")
HOLD_OUT_EVERY = 50  # a source without its own validation split gives up 2 % of its documents ...
HOLD_OUT_MOST = 500  # ... but never more than this many
VALID_DOCUMENTS = 500  # as many are kept of a named dataset's validation split
STORYWORLD_BYTES = 8_000_000
SLOWEST_HUB = 50_000  # bytes per second: "auto" does not wait for a hub that is slower
STALE_SECONDS = 3600  # a temporary file nobody has written to for so long was left by a process that died
READ_BYTES = 1_000_000  # read from a file at once
STALE_PART_SECONDS = 7 * 24 * 3600  # half of a big text's tokens are worth keeping for longer
BIG_CACHE_BYTES = 100_000_000  # of a bigger one, a process does not keep all that it has read in its memory ...
ROWS_HELD = 1000  # ... but what so many rows took, each of them up to 64 kB
CACHE_FORMAT = 1  # part of every name in the cache: raise it when what is written there changes


# ---------------------------------------------------------------------------------------------------- reading files


def _clean(text: str) -> Iterator[str]:
    """The documents in a piece of text: cut at SEPARATOR, outer newlines stripped, pieces without text dropped."""
    for piece in text.split(SEPARATOR):
        piece = piece.strip("\r\n")
        if piece.strip():
            yield piece


def _read_txt(path: Path) -> Iterator[str]:
    """Documents of a text file, one in memory at a time. Raises ValueError naming the byte that is not UTF-8."""
    mark, offset = SEPARATOR.encode(), 0  # offset: where in the file the document begins
    with open(path, "rb") as file:
        if file.read(3) == b"\xef\xbb\xbf":  # a byte-order mark is no text
            offset = 3
        file.seek(offset)
        rest = bytearray()  # what was read and not yet given out: no whole document
        while chunk := file.read(READ_BYTES):
            searched = max(0, len(rest) - len(mark))  # a mark may stand across two chunks
            rest += chunk
            start = 0
            while (end := rest.find(mark, max(start, searched))) >= 0:
                yield from _clean(_decode(rest[start:end], path, offset + start))
                start = end + len(mark)
            del rest[:start]
            offset += start
        yield from _clean(_decode(rest, path, offset))


def _decode(raw: bytes | bytearray, path: Path, offset: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte {offset + error.start} (0x{raw[error.start]:02x})"
        raise ValueError(f"dataset={str(path)!r}: not UTF-8 at {byte}; save the file as UTF-8") from None


def _read_jsonl(path: Path) -> Iterator[str]:
    """Documents of a file with one JSON object per line. Raises ValueError naming the line that cannot be used."""
    offset = 0
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            line = _decode(raw, path, offset).lstrip("\ufeff" if number == 1 else "")
            offset += len(raw)
            if line.strip():
                yield from _clean(_text_of_line(line, f"dataset={str(path)!r}: line {number}"))


def _text_of_line(line: str, where: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not complete JSON ({error.msg}); repair or delete it") from None
    if (kind := type(record).__name__) != "dict":
        raise ValueError(f'{where} holds a {kind}; each line must be an object like {{"text": "Once …"}}')
    text = record[_text_field(record, where)]
    if (kind := type(text).__name__) != "str":
        raise ValueError(f"{where}: its text is a {kind}; it must be a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{where} holds half a surrogate pair, which is no character; repair or delete it") from None
    return text


def _text_field(fields: Iterable[str], where: str) -> str:
    for name in TEXT_FIELDS:
        if name in fields:
            return name
    raise ValueError(
        f"{where} has no field 'text' or 'story' (it has: {', '.join(map(str, fields)) or 'none'}); "
        "rename the one that holds the text"
    )


def _read_parquet(path: Path) -> Iterator[str]:
    """Documents of a parquet file, a batch of rows at a time. Rows without text (null) are dropped."""
    import pyarrow
    import pyarrow.parquet

    where = f"dataset={str(path)!r}"
    try:
        # unless told otherwise, it reads all that is stored of a row group's column at once
        with pyarrow.parquet.ParquetFile(path, buffer_size=READ_BYTES, pre_buffer=False) as table:
            name = _text_field(table.schema_arrow.names, where)
            kind = table.schema_arrow.field(name).type
            if kind not in (pyarrow.string(), pyarrow.large_string()):
                raise ValueError(f"{where}: its column {name!r} holds {kind}; it must hold strings")
            for batch in table.iter_batches(batch_size=1024, columns=[name]):
                yield from _clean_column(batch.column(0))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{where} is not a readable parquet file ({error}); get a whole copy") from None


def _read_arrow(path: Path) -> Iterator[str]:
    """Documents of a file in which the `datasets` package keeps a dataset that it has downloaded."""
    import pyarrow

    with pyarrow.OSFile(str(path)) as file, pyarrow.ipc.open_stream(file) as batches:
        for batch in batches:
            yield from _clean_column(batch.column("text"))


def _clean_column(column) -> Iterator[str]:
    for text in column.to_pylist():
        yield from _clean(text or "")


READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet, ".arrow": _read_arrow}


def _read_files(files: list[Path]) -> Iterator[str]:
    for path in files:
        yield from READERS[path.suffix.lower()](path)


# ---------------------------------------------------------------------------------------------------- sources


@dataclass(frozen=True)
class Split:
    """One part of a source.

    read: opens a fresh stream of documents. stamp: changes whenever the text may have changed. size: about how many
    bytes there are, for progress bars.
    """

    read: Callable[[], Iterator[str]]
    stamp: str
    size: int


@dataclass(frozen=True)
class Source:
    """A text with a training and a validation split.

    name: short, for records (a file's name, never its folder). notice: one line for a person: which text, how much,
    why. splits: "train" and "valid". cache: the folder for what is prepared from this text.
    """

    name: str
    notice: str
    splits: dict[str, Split] = field(repr=False)
    cache: Path = field(repr=False)

    def split(self, name: str) -> Split:
        if name not in self.splits:
            raise ValueError(f"split={name!r} must be one of {', '.join(self.splits)}")
        return self.splits[name]

    def documents(self, split: str) -> Iterator[str]:
        """A fresh stream of the documents of "train" or "valid": outer newlines stripped, none of them empty."""
        return self.split(split).read()

    @property
    def fingerprint(self) -> str:
        """Hex name of the training text: two sources with the same fingerprint hold the same documents."""
        return self.split_fingerprint("train")

    def split_fingerprint(self, split: str, cache_dir: Path | None = None) -> str:
        """sha256 over the documents of a split; remembered in the cache folder, so that a big file is read once."""
        stamp = _digest(f"{CACHE_FORMAT} {self.split(split).stamp}")
        memo = (cache_dir or self.cache) / f"fingerprint-{stamp[:20]}.txt"
        if memo.exists():
            return memo.read_text(encoding="ascii")
        digest = hashlib.sha256()
        for document in self.documents(split):
            raw = document.encode("utf-8")
            digest.update(len(raw).to_bytes(8, "little"))  # the lengths keep ["ab"] and ["a", "b"] apart
            digest.update(raw)
        _make_cache(memo.parent)
        write_atomic(memo, digest.hexdigest())
        return digest.hexdigest()


def open_source(
    dataset: str,
    *,
    valid_dataset: str = "",
    limit_bytes: int = 50_000_000,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> Source:
    """Open a text by name or by path.

    dataset: a path (.txt, whose documents end with `<|endoftext|>`; .jsonl with a "text" or "story" field; .parquet
    with such a column; a folder of those), "storyworld" (built in), "tinystories" (Hugging Face), or "auto":
    TinyStories where it is at hand or the hub answers within 3 seconds, else storyworld. The result's `notice` says
    which, and why.
    valid_dataset: the same, for validation; "" takes the source's own validation split where it has one (in a folder:
    the files with "valid" in their names), else holds out every 50th document, at most 500.
    limit_bytes: at most so many bytes of TinyStories or storyworld are used; a path is always used whole.
    seed: of the storyworld. cache_dir: for what is prepared from the text (default: `cache_folder()`).
    Raises ConnectionError for "tinystories" when the hub cannot be reached; ValueError or FileNotFoundError for a name
    or path that does not exist, or a file that cannot be read as text.
    """
    if limit_bytes < 1:
        raise ValueError(f"limit_bytes={limit_bytes} must be at least 1 (bytes of training text)")
    cache = Path(cache_dir) if cache_dir is not None else cache_folder()

    def find(name: str, hold_out: bool) -> Source:
        return NAMES[name](limit_bytes, seed, cache) if name in NAMES else _from_path(name, cache, hold_out)

    source = find(dataset, hold_out=not valid_dataset)
    if not valid_dataset:
        return source
    other = find(valid_dataset, hold_out=False)
    valid = other.splits.get("valid", other.splits["train"])
    return replace(source, notice=f"{source.notice}; validation: {other.name}", splits=source.splits | {"valid": valid})


def _from_path(dataset: str, cache: Path, hold_out: bool) -> Source:
    """A file or folder. Beside other files, those with "valid" in their names are for validation; where there are none,
    a part of the text is, if `hold_out` says so."""
    files = _supported_files(dataset)
    name, whole = Path(dataset).expanduser().resolve().name, _split_of(files)
    text = f"text: {name} ({whole.size / 1e6:.1f} MB)"
    validation = [file for file in files if re.search(r"(^|[-_.])val(id|idation)?([-_.]|$)", file.name.lower())]
    training = [file for file in files if file not in validation]
    if validation and training:
        notice = f"{text}; validation: its {', '.join(file.name for file in validation)}"
        return Source(name, notice, {"train": _split_of(training), "valid": _split_of(validation)}, cache)
    if not hold_out:
        return Source(name, text, {"train": whole}, cache)
    splits, how = _hold_out(whole, name)
    return Source(name, f"{text}; validation: {how}", splits, cache)


def _split_of(files: list[Path]) -> Split:
    stats = [file.stat() for file in files]
    stamp = [(str(file.resolve()), stat.st_size, stat.st_mtime_ns) for file, stat in zip(files, stats, strict=True)]
    return Split(lambda: _read_files(files), json.dumps(stamp), sum(stat.st_size for stat in stats))


def _hold_out(whole: Split, name: str) -> tuple[dict[str, Split], str]:
    """Divide one stream in two, always alike: the splits "train" and "valid", and in words how that was done.

    Held out is every 50th document, at most 500; of fewer than 50 documents the last; of a single one its last 2 %.
    """
    read = whole.read
    first = list(islice(read(), HOLD_OUT_EVERY))
    if not first:
        raise ValueError(f"dataset={name!r} holds no text; give a file that does")
    if len(first) == 1:
        body, tail = _cut_tail(first[0])
        read, held_out = lambda: _clean(body), list(_clean(tail))
        how = f"its last 2 % (no {SEPARATOR} line was found between texts, so it counts as one document)"
    elif len(first) < HOLD_OUT_EVERY:
        held_out, how = first[-1:], f"the last of its {len(first)} documents, held out"
    else:
        held_out = list(islice(read(), HOLD_OUT_EVERY - 1, HOLD_OUT_EVERY * HOLD_OUT_MOST, HOLD_OUT_EVERY))
        how = f"{len(held_out)} of its documents, held out (every {HOLD_OUT_EVERY}th)"
    hidden = frozenset(held_out)  # by text, so that a copy of a held-out document is not trained on either
    train = Split(lambda: (text for text in read() if text not in hidden), f"the rest: {whole.stamp}", whole.size)
    valid = Split(lambda: iter(held_out), f"held out: {whole.stamp}", whole.size // HOLD_OUT_EVERY)
    return {"train": train, "valid": valid}, how


def _cut_tail(text: str) -> tuple[str, str]:
    """A text without its last 2 %, and these: cut at the end of a line, else of a word, where there is one nearby."""
    at = len(text) * (HOLD_OUT_EVERY - 1) // HOLD_OUT_EVERY
    for mark in "\n", " ":
        if (cut := text.rfind(mark, at - at // HOLD_OUT_EVERY, at)) > 0:
            return text[:cut], text[cut:]
    return text[:at], text[at:]


def _supported_files(dataset: str) -> list[Path]:
    path = Path(dataset).expanduser()
    if not dataset or not path.exists():
        raise _unknown(dataset)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise ValueError(f"dataset={dataset!r}: the folder holds no {', '.join(SUFFIXES)} file")
        return files
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"dataset={dataset!r} must end in {', '.join(SUFFIXES)}, or be a folder of such files")
    return [path]


def _unknown(dataset: str) -> Exception:
    choices = ", ".join(NAMES)
    if Path(dataset).suffix or len(Path(dataset).parts) > 1:
        return FileNotFoundError(
            f"dataset={dataset!r}: there is no such file or folder; give a path that exists, or one of {choices}"
        )
    near = difflib.get_close_matches(dataset.lower(), NAMES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"dataset={dataset!r} is neither a file or folder nor one of {choices}{hint}")


def validation_documents(source: Source, max_documents: int = 500) -> list[str]:
    """The first documents of the validation split: the same list every time. Raises ValueError where there is none."""
    documents = list(islice(source.documents("valid"), max_documents))
    if not documents:
        raise ValueError(
            f"dataset={source.name!r}: its validation split holds no text; set valid_dataset to a file "
            "with text, or leave it empty to hold out a part of the training text"
        )
    return documents


# ---------------------------------------------------------------------------------------------------- named datasets


def _storyworld(limit_bytes: int, seed: int, cache: Path) -> Source:
    """The built-in stories: training text from one seed, validation from another; needs no network."""
    from lab import storyworld

    size = min(limit_bytes, STORYWORLD_BYTES)
    stamp = f"storyworld version {storyworld.VERSION}, seed {seed}"
    stored = cache / f"storyworld-{_digest(stamp)[:12]}-{size}.txt"

    def train() -> Iterator[str]:
        return _read_txt(_stored(stored, _first_bytes(storyworld.generate_stories(seed=seed), size), size))

    def valid() -> Iterator[str]:
        return storyworld.generate_stories(VALID_DOCUMENTS, seed=f"{seed}, validation")

    splits = {"train": Split(train, f"{stamp}, {size} bytes", size), "valid": Split(valid, f"{stamp}, valid", 400_000)}
    return Source("storyworld", f"text: storyworld, made-up stories, built in ({size / 1e6:g} MB)", splits, cache)


def _tinystories(limit_bytes: int, cache: Path, least_rate: float) -> Source:
    """TinyStories, stored in the cache folder as text. Raises ConnectionError with the reason why it cannot be had."""
    train, valid = cache / f"tinystories-train-{limit_bytes}.txt", cache / "tinystories-valid.txt"
    where = "stored earlier"
    if not (train.exists() and valid.exists()):
        where, read = _find_tinystories(least_rate)
        _stored(valid, islice(read("validation"), VALID_DOCUMENTS), 400_000)
        _stored(train, _first_bytes(read("train"), limit_bytes), limit_bytes)
    first = f"first {limit_bytes / 1e6:g} MB"
    return Source(
        f"TinyStories (hub, {first})",
        f"text: TinyStories, {first}, {where}",
        {"train": _split_of([train]), "valid": _split_of([valid])},
        cache,
    )


def _find_tinystories(least_rate: float) -> tuple[str, Callable[[str], Iterator[str]]]:
    """Where TinyStories can be had, in words, and a function that opens one of its splits there."""
    from lab import hub

    local = {split: hub.local_files(split) for split in ("train", "validation")}
    if all(local.values()):
        return "from the local Hugging Face cache", lambda split: _read_files(local[split])
    hub.probe()
    return "from the Hugging Face hub", lambda split: (
        document for text in hub.stories(split, least_rate) for document in _clean(text)
    )


def _tinystories_or_error(limit_bytes: int, seed: int, cache: Path) -> Source:
    try:
        return _tinystories(limit_bytes, cache, least_rate=0)
    except ConnectionError as reason:
        raise ConnectionError(
            f"dataset='tinystories': {reason}; use dataset='storyworld' (built in) or the path of a "
            "file with your own text"
        ) from reason


def _auto(limit_bytes: int, seed: int, cache: Path) -> Source:
    """TinyStories where that costs seconds of waiting at most, else storyworld, with the reason in its notice."""
    try:
        return _tinystories(limit_bytes, cache, SLOWEST_HUB)
    except ConnectionError as reason:
        source = _storyworld(limit_bytes, seed, cache)
        return replace(source, notice=f"{source.notice}, because TinyStories is not at hand: {reason}")


NAMES = {"auto": _auto, "tinystories": _tinystories_or_error, "storyworld": _storyworld}


def _first_bytes(documents: Iterable[str], limit: int) -> Iterator[str]:
    """Documents until the next one would exceed `limit` UTF-8 bytes; the first one in any case."""
    used = 0
    for document in documents:
        size = len(document.encode("utf-8"))
        if used and used + size > limit:
            return
        used += size
        yield document


def _stored(path: Path, documents: Iterable[str], size: int) -> Path:
    """Write documents to a text file of the cache, unless it is there already; `size`: bytes for the progress bar."""
    if path.exists():
        return path

    def fill(file: BinaryIO) -> None:
        with _progress(f"preparing {path.stem.split('-')[0]}", size) as bar:
            for document in documents:
                bar.update(file.write(f"{document}\n{SEPARATOR}\n".encode()))

    _make_cache(path.parent)
    write_atomic(path, fill)
    return path


def _progress(what: str, size: int, show: bool = True):
    """A plain progress bar over `size` bytes; quiet where the work takes less than a second."""
    from tqdm import tqdm

    return tqdm(
        desc=what, total=size, unit="B", unit_scale=True, delay=1, leave=False, file=sys.stderr, disable=not show
    )


# ---------------------------------------------------------------------------------------------------- the token cache


def cache_folder() -> Path:
    """Where prepared text and tokens are kept: the environment variable SANDBOX_CACHE, else `.cache` by the code."""
    return Path(os.environ.get("SANDBOX_CACHE") or ROOT / ".cache")


def _make_cache(folder: Path) -> None:
    """Make the cache folder ready to be written to. Raises OSError with the remedy where it cannot be."""
    remedy = "the cache folder cannot be written to; set the environment variable SANDBOX_CACHE to one that can"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: {remedy}", str(folder)) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"Permission denied: {remedy}", str(folder))
    for leftover in [*leftovers(folder), *folder.glob("tokens-*.part")]:
        with contextlib.suppress(FileNotFoundError):  # another process may be faster
            patience = STALE_PART_SECONDS if leftover.suffix == ".part" else STALE_SECONDS
            if time.time() - leftover.stat().st_mtime > patience:
                leftover.unlink()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def tokenize(
    source: Source, split: str, tok, *, cache_dir: str | Path | None = None, progress: bool = True
) -> PackedTokens:
    """The tokens of a split: encoded on the first call, on all cores, and memory-mapped from the cache ever after.

    Memory is bounded by the longest document, not by the text. An interrupted call leaves nothing that a later one
    takes for whole; that of a big text goes on where the interrupted one was.
    Raises ValueError for a split without text, OSError where the cache folder cannot be written to.
    """
    folder = Path(cache_dir) if cache_dir is not None else source.cache
    text = source.split_fingerprint(split, folder)
    fingerprint = _digest(f"{CACHE_FORMAT} {text} {tok.fingerprint}")[:32]
    try:
        packed = packing.load(folder, fingerprint)
    except ValueError as error:
        print(f"{error}: encoding the text again", file=sys.stderr)
        packed = None
    if packed is not None:
        return packed
    _make_cache(folder)
    with _progress(f"encoding {source.name}", source.split(split).size, progress) as bar:
        about = {"text": source.name, "split": split}
        packed = packing.write(source.split(split).read, tok, folder, fingerprint, about, bar.update)
    if packed is None:
        raise ValueError(f"dataset={source.name!r}: its split {split!r} holds no text; give a file that does")
    return packed


# ---------------------------------------------------------------------------------------------------- batches


class Batches:
    """Micro-batches of packed rows; number i depends on (seed, i) alone, so resuming needs no more than i.

    The stream of tokens is closed to a ring and cut into `num_rows` rows of T tokens. Each epoch begins the cut at
    another random position and shuffles the rows anew. Within an epoch no token is a target twice, and only the
    `num_tokens % T` tokens left over between the last row and the first are no target. Rows begin anywhere in a
    document and go on into the next; a batch at an epoch's end is filled up from the next epoch.
    """

    def __init__(self, packed: PackedTokens, *, batch_size: int, seq_len: int, seed: int = 1337):
        for name, value, least in (("batch_size", batch_size, 1), ("seq_len", seq_len, 1), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        if packed.num_tokens < seq_len + 1:
            raise ValueError(
                f"seq_len={seq_len}: a row takes {seq_len + 1} tokens and the text holds only "
                f"{packed.num_tokens}; use more text or a shorter seq_len"
            )
        self.packed, self.batch_size, self.seq_len, self.seed = packed, batch_size, seq_len, seed
        self.num_rows = packed.num_tokens // seq_len
        self.tokens_per_epoch = self.num_rows * seq_len
        self._orders: dict[int, np.ndarray] = {}
        self._rows_held = 0

    def epoch(self, i: int) -> int:
        """The epoch, counted from 0, in which micro-batch i begins."""
        return i * self.batch_size // self.num_rows

    def get(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Micro-batch i: inputs x and targets y, both (B, T) int64 on the CPU; y[:, t] is the token after x[:, t]."""
        tokens = torch.from_numpy(self.packed.ids[self._places(i, self.seq_len + 1)].astype(np.int64))  # (B, T+1)
        self._give_back()
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def _give_back(self) -> None:
        """Of a big cache, takes the pages that were read out of this process's memory, now and then.

        They stay in the system's own file cache while there is room, and cost next to nothing to have again.
        """
        self._rows_held += self.batch_size
        if self._rows_held < ROWS_HELD or self.packed.ids.nbytes < BIG_CACHE_BYTES:
            return
        self._rows_held = 0
        mapped = self.packed.ids.base
        if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            mapped.madvise(mmap.MADV_DONTNEED)

    def segments(self, i: int) -> torch.Tensor:
        """(B, T) int64: which document of its row each input of micro-batch i belongs to, counted from 0 per row."""
        starts, places = self.packed.starts, self._places(i, self.seq_len)
        begins = starts[np.searchsorted(starts, places, side="right") - 1] == places
        begins[:, 0] = False  # a row's first document is number 0, whether it begins there or before
        return torch.from_numpy(np.cumsum(begins, axis=1))

    def _places(self, i: int, length: int) -> np.ndarray:
        """(B, length) where in the stream the tokens of micro-batch i stand."""
        if i < 0:
            raise ValueError(f"i={i}: micro-batches are numbered from 0")
        rows = range(i * self.batch_size, (i + 1) * self.batch_size)
        first = np.array([self._order(row // self.num_rows)[row % self.num_rows] for row in rows])
        return (first[:, None] + np.arange(length)) % self.packed.num_tokens

    def _order(self, epoch: int) -> np.ndarray:
        """(num_rows,) where the rows of an epoch begin, in the order in which they are read."""
        if epoch not in self._orders:
            random = np.random.Generator(np.random.PCG64([self.seed, epoch]))
            offset = random.integers(self.packed.num_tokens)
            order = (offset + self.seq_len * random.permutation(self.num_rows)) % self.packed.num_tokens
            # One more epoch is kept, for the batches that stand in two.
            self._orders = {e: known for e, known in self._orders.items() if e == epoch - 1} | {epoch: order}
        return self._orders[epoch]
