"""Files that grow line by line: what was paid for in time or money is on the disk at once, and survives a kill."""

import json
import os
from pathlib import Path

from lab.files import clear_write_errors
from lab.records import json_records


def add_to_journal(path: Path, record: dict) -> None:
    """Appends a record as one line of JSON, on the disk before the call returns."""
    with clear_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
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
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return [record for _, record in json_records(path)] if whole.strip() else []
