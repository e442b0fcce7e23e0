"""Published test files, read line by line; whatever is wrong is said with the file and the line.

for place, record in json_records("BLiMP.zip"):        # a .jsonl file, a folder of them, or a zip of them
    text_field(record, "sentence_good", place)         # ValueError: BLiMP.zip:data/causative.jsonl, line 3: ...
"""

import json
import reprlib
import zipfile
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from lab.files import LFS_POINTER, shown

MAX_LINE = 1_000_000  # bytes; no published line is a hundredth of it, so a longer one is another kind of file
READ_AS = "one JSON object a line"


def json_records(path: str | Path) -> Iterator[tuple[str, dict]]:
    """(place, record) of each line of a .jsonl file, of all .jsonl files in a folder, or in a zip (nothing is unpacked
    to the disk); files in alphabetical order, hidden ones left out. `place` names file and line for messages.

    Raises: FileNotFoundError; ValueError for a torn line, one over MAX_LINE, text that is not UTF-8, no record, or a
    zip that cannot be read.
    """
    found = False
    for place, line in _lines_of_all(Path(path)):
        found = True
        yield place, _record(line, place)
    if not found:
        raise ValueError(f"{shown(path)} holds no record: it must have {READ_AS}")


def lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """(place, line without its end) of each line of a text file that is not blank. Raises as `json_records` does."""
    path = Path(path)
    with open(path, "rb") as file:
        yield from file_lines(file, shown(path))


def _lines_of_all(path: Path) -> Iterator[tuple[str, str]]:
    if path.is_dir():
        files = sorted(file for file in path.glob("*.jsonl") if not _is_hidden(file.name))
        if not files:
            raise ValueError(f"{shown(path)} is a folder without a .jsonl file")
        for file in files:
            yield from lines(file)
    elif path.suffix.lower() == ".zip":
        yield from _lines_in_zip(path)
    else:
        yield from lines(path)


def _lines_in_zip(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".jsonl") and not _is_hidden(name))
            if not names:
                raise ValueError(f"{shown(path)} holds no .jsonl file")
            for name in names:
                with archive.open(name) as file:
                    yield from file_lines(file, f"{shown(path)}:{name}")
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{shown(path)} is torn or no zip file ({error}): fetch it again") from error
    except RuntimeError as error:  # encrypted, or packed in a way that Python doesn't know
        raise ValueError(f"{shown(path)} can't be read ({error}): unpack it, and give the folder") from error


def _is_hidden(name: str) -> bool:
    """Whether a file was put there by a system, such as macOS's ._causative.jsonl, which is no text."""
    return name.rpartition("/")[2].startswith(".")


def file_lines(file: BinaryIO, name: str) -> Iterator[tuple[str, str]]:
    """Blank lines are passed over, but counted. A line is never read beyond MAX_LINE."""
    number = 0
    while content := file.readline(MAX_LINE + 1):
        number += 1
        place = f"{name}, line {number}"
        if len(content) > MAX_LINE:
            raise ValueError(f"{place}: longer than {MAX_LINE:,} bytes; no published file has such a line")
        if number == 1 and content.startswith(LFS_POINTER):
            raise ValueError(f"{name} is a Git LFS pointer, not the file itself: run `git lfs pull`")
        try:
            line = content.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{place}: not UTF-8 text ({error.reason} at byte {error.start})") from error
        if line.strip():
            yield place, line


def _record(line: str, place: str) -> dict:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: torn or no JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"{place}: must be a JSON object {{...}}, not a {type(record).__name__}")
    return record


def text_field(record: dict, name: str, place: str) -> str:
    """The text under `name`. Raises ValueError if it is missing, no string, blank, or holds half a character."""
    if name not in record:
        raise ValueError(f"{place}: no field {name!r}; there are {field_names(record)}")
    return checked_text(record[name], name, place)


def field_names(record: dict) -> str:
    """The names of a record's fields for a message, as many as it can hold."""
    names = [reprlib.repr(name) for name in islice(record, 20)]
    return ", ".join(names + ["..."] * (len(record) > 20)) or "none"


def checked_text(value: object, name: str, place: str) -> str:
    """`value` if it is a text that can be scored; `name` says in the message what it is."""
    if not isinstance(value, str):
        raise ValueError(f"{place}: {name} must be a string, not a {type(value).__name__} ({reprlib.repr(value)})")
    if not value.strip():
        raise ValueError(f"{place}: {name} is empty, so there is nothing to score")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: {name} holds half a character (a lone surrogate)") from error
    return value


def spread(items: list, most: int | None) -> list:
    """All items, or `most` of them, evenly spread over the list. Raises ValueError if most < 1."""
    if most is not None and most < 1:
        raise ValueError(f"at most {most} was asked for: it must be at least 1, or None for all")
    if most is None or most >= len(items):
        return items
    return [items[i * len(items) // most] for i in range(most)]
