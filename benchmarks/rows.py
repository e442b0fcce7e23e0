"""Results that are gathered row by row, so that a benchmark of many runs can be stopped and taken up again."""

import csv
from pathlib import Path


def read(path: Path) -> list[dict]:
    """All rows of a CSV file, as text by column; none where there is no such file yet."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(path: Path, row: dict) -> None:
    """Adds a row, below a header where the file is new."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
