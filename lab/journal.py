"""Files that grow line by line: what was paid for in time or money is on the disk at once, and survives a kill."""

import json
import os
from pathlib import Path

from lab.files import clear_write_errors
from lab.records import json_records


def add_to_journal(path: Path, record: dict) -> None:
    """Appends a record as one line of JSON, on the disk before the call returns; never behind half a line."""
    with clear_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)
        with open(path, "ab") as file:
            line = json.dumps(record, ensure_ascii=False, allow_nan=False)
            file.write(line.encode(errors="backslashreplace") + b"\n")  # half characters, as JSON spells them
            file.flush()
            os.fsync(file.fileno())


def read_journal(path: Path) -> list[dict]:
    """The records of such a file, [] if there is none.

    A last line without its end was torn by a kill or a full disk: it is cut off the file, and whatever it was is done
    again. Any other line that is no JSON object raises ValueError: then something else has written to the file.
    """
    _cut_torn_line(path)
    empty = not path.is_file() or not path.read_bytes().strip()
    return [] if empty else [record for _, record in json_records(path)]


def _cut_torn_line(path: Path) -> None:
    """Cuts off a last line that has no end."""
    if not path.is_file():
        return
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if file.read(1) in (b"\n", b""):
            return
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
    os.truncate(path, whole)
