"""The token cache: a text's documents encoded once, one after another in one file, which training maps into memory.

    packed = write(read, tok, folder, fingerprint, {}, advance)     # on all cores, in bounded memory
    packed = load(folder, fingerprint)                              # None where there is nothing

`tokens-<fingerprint>.ids` holds the ids, `.starts` where each document begins, `.json` how many there are. The last is
written last: whoever finds it finds the other two whole. While they grow they end in `.part`; every PART_BYTES of text
they are put on the disk, and `.json.part` records how much of them is good. A process that is killed therefore loses
no more than that, and the next one cuts off what stands behind it and goes on with the document that follows.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from lab.files import clear_write_errors, sync_folder, write_json

ENCODE_BYTES = 2_000_000  # text per call of the tokenizer, which divides it among its threads: this bounds the memory
PART_BYTES = 64_000_000  # text between two marks from which an interrupted call goes on


@dataclass(frozen=True)
class PackedTokens:
    """All documents of a split one after another, each BOS … EOS.

    ids: (num_tokens,) uint16 or uint32, memory-mapped. starts: (num_documents,) int64, where each document's BOS
    stands. num_bytes: UTF-8 bytes of the documents. fingerprint: names the text and the tokenizer together.
    """

    ids: np.ndarray
    starts: np.ndarray
    num_tokens: int
    num_documents: int
    num_bytes: int
    fingerprint: str


def _paths(folder: Path, fingerprint: str, end: str = "") -> list[Path]:
    return [folder / f"tokens-{fingerprint}.{kind}{end}" for kind in ("ids", "starts", "json")]


def load(folder: Path, fingerprint: str) -> PackedTokens | None:
    """The cached tokens, or None where there are none. Raises ValueError where the files are damaged."""
    ids_path, starts_path, info_path = _paths(folder, fingerprint)
    if not info_path.exists():
        return None
    try:
        info = json.loads(info_path.read_text(encoding="utf-8"))
        ids = np.memmap(ids_path, dtype=info["dtype"], mode="r")
        starts = np.fromfile(starts_path, dtype="<i8")
        if (len(ids), len(starts)) != (info["num_tokens"], info["num_documents"]):
            raise ValueError(f"only {len(ids)} of {info['num_tokens']} tokens are there")
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise ValueError(f"token cache {info_path.stem} is damaged ({error})") from error
    return PackedTokens(ids, starts, len(ids), len(starts), info["num_bytes"], fingerprint)


def write(
    read: Callable[[], Iterator[str]],
    tok,
    folder: Path,
    fingerprint: str,
    about: dict,
    advance: Callable[[int], object],
) -> PackedTokens | None:
    """Encodes the documents that `read` gives and stores them; None where there are none.

    about: goes into the .json, for people. advance: told the bytes that were encoded, again and again. A second process
    that is given the same task waits for the first one.
    """
    import filelock

    lock = folder / f"tokens-{fingerprint}.lock"
    with filelock.FileLock(lock):
        packed = None
        with contextlib.suppress(ValueError):  # damaged: written anew
            packed = load(folder, fingerprint)
        if packed is None:
            _encode(read, tok, folder, fingerprint, about, advance)
            packed = load(folder, fingerprint)
    if packed is not None:
        with contextlib.suppress(OSError):  # Windows keeps it while another process looks at it
            lock.unlink()
    return packed


def _encode(read, tok, folder: Path, fingerprint: str, about: dict, advance) -> None:
    part = _Part(folder, fingerprint, np.dtype("<u2" if tok.vocab_size <= 65536 else "<u4"))
    with contextlib.closing(part), clear_write_errors(part.paths[0]):
        advance(part.good.num_bytes)
        for batch, num_bytes in in_batches(islice(read(), part.good.num_documents, None), ENCODE_BYTES):
            part.add(tok.encode_batch(batch, bos=True, eos=True, num_threads=cores()), num_bytes)
            advance(num_bytes)
        if part.now.num_documents:
            part.finish(_paths(folder, fingerprint), about)


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_batches(documents: Iterable[str], least: int) -> Iterator[tuple[list[str], int]]:
    """Documents in groups of at least `least` UTF-8 bytes (the last may have fewer), each with its size."""
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document.encode("utf-8"))
        if size >= least:
            yield batch, size
            batch, size = [], 0
    if batch:
        yield batch, size


@dataclass
class _Count:
    num_documents: int = 0
    num_tokens: int = 0
    num_bytes: int = 0


class _Part:
    """The files while they grow. `now` counts what was added, `good` what would be found after a power cut."""

    def __init__(self, folder: Path, fingerprint: str, dtype: np.dtype):
        self.paths, self.dtype = _paths(folder, fingerprint, ".part"), dtype
        self.good = self._find()
        self.now = _Count(**asdict(self.good))
        self.files = [open(path, "r+b" if self.good.num_documents else "w+b") for path in self.paths[:2]]  # noqa: SIM115
        for file, size in zip(self.files, self._sizes(self.good), strict=True):
            file.truncate(size)
            file.seek(size)

    def _find(self) -> _Count:
        """What an interrupted call left, or nothing."""
        try:
            found = _Count(**json.loads(self.paths[2].read_text(encoding="utf-8")))
            there = [path.stat().st_size for path in self.paths[:2]]
        except (FileNotFoundError, ValueError, TypeError):
            return _Count()
        whole = all(has >= needs for has, needs in zip(there, self._sizes(found), strict=True))
        return found if whole else _Count()

    def _sizes(self, count: _Count) -> list[int]:
        """Bytes of the two files."""
        return [count.num_tokens * self.dtype.itemsize, count.num_documents * 8]

    def add(self, encoded: list[list[int]], num_bytes: int) -> None:
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        self.files[0].writelines(np.asarray(ids, dtype=self.dtype).tobytes() for ids in encoded)
        self.files[1].write((self.now.num_tokens + np.cumsum(lengths) - lengths).astype("<i8").tobytes())
        self.now.num_documents += len(encoded)
        self.now.num_tokens += int(lengths.sum())
        self.now.num_bytes += num_bytes
        if self.now.num_bytes - self.good.num_bytes >= PART_BYTES:
            self._sync()
            write_json(self.paths[2], asdict(self.now))
            self.good = _Count(**asdict(self.now))

    def _sync(self) -> None:
        for file in self.files:
            file.flush()
            os.fsync(file.fileno())

    def finish(self, paths: list[Path], about: dict) -> None:
        """Gives the files their names."""
        self._sync()
        self._close_files()
        for part, path in zip(self.paths[:2], paths[:2], strict=True):
            os.replace(part, path)
        sync_folder(paths[0].parent)
        write_json(paths[2], about | {"dtype": self.dtype.str} | asdict(self.now))
        self.paths[2].unlink(missing_ok=True)

    def _close_files(self) -> None:
        for file in self.files:
            file.close()

    def close(self) -> None:
        """After an error: what cannot be gone on with is removed."""
        with contextlib.suppress(OSError):  # a full disk, which was reported already
            self._close_files()
        if not self.good.num_documents:
            for path in self.paths:
                path.unlink(missing_ok=True)
