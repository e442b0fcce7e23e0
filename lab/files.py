"""Small file helpers: write a file whole or not at all, read and write JSON, find the project's folders.

    write_atomic(path, b"...")                         # bytes, a str, or a function that writes to a binary file
    write_json(path, {"steps": 100});  read_json(path)

A file is written under a temporary name beside its place and then renamed. Whoever reads it, and whatever happens
meanwhile (a full disk, Ctrl-C, a kill), finds the old content or the new, never a part.
"""

import contextlib
import errno
import json
import os
import re
import reprlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parent.parent  # the checkout: a notebook may be started in any folder
TRAINED_MODELS = ROOT / "trained_models"
TOKENIZERS = ROOT / "tokenizers"

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"  # how the stand-in for a Git LFS file begins
REMEDIES = {
    errno.EACCES: "the folder or file is read-only: save to another folder, or change who may write there",
    errno.EPERM: "the folder or file is read-only: save to another folder, or change who may write there",
    errno.EROFS: "the whole disk is read-only: save to another one",
    errno.ENOSPC: "make room and save again",
    getattr(errno, "EDQUOT", errno.ENOSPC): "your share of the disk is used up: make room and save again",
}


def write_atomic(path: str | Path, content: Callable[[BinaryIO], object] | bytes | str) -> None:
    """Replaces the file at `path` in one step; makes its folder where that is missing.

    content: bytes, a str (written as UTF-8), or a function that is given the open binary file and writes to it.
    Raises: OSError of the fitting kind (PermissionError for a read-only folder) with the remedy; the old file is then
    as it was, and no temporary file is left.
    """
    path = Path(path)
    with clear_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(path)
        try:
            with open(temporary, "xb") as file:
                _fill(file, content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def _fill(file: BinaryIO, content: Callable[[BinaryIO], object] | bytes | str) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content.encode() if isinstance(content, str) else content)


def temporary_beside(path: Path) -> Path:
    """A new name in the same folder, `.<name>.<random>.tmp`: hidden, and easy to recognise should it be left over."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def leftovers(folder: Path, name: str = "") -> list[Path]:
    """Temporary files and folders that a killed save left in `folder`: all of them, or those meant for `name`."""
    if not folder.is_dir():
        return []
    pattern = rf"\.{re.escape(name) if name else '.+'}\.[^.]+\.tmp"
    return [path for path in folder.iterdir() if re.fullmatch(pattern, path.name)]


def sync_folder(folder: Path) -> None:
    """Puts a rename on the disk, so that a power cut does not undo it. Windows has no such call."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def clear_write_errors(path: Path) -> Iterator[None]:
    """Adds to "Permission denied" or "No space left on device" what was being written and what to do about it."""
    try:
        yield
    except OSError as error:
        if error.errno not in REMEDIES or REMEDIES[error.errno] in error.strerror:
            raise
        message = f"{error.strerror} ({REMEDIES[error.errno]}); what stood there before is unchanged"
        raise OSError(error.errno, message, shown(path)) from error


def shown(path: str | Path) -> str:
    """A path as messages show it: from the checkout's folder on where it lies in it."""
    path = Path(path)
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


def write_json(path: str | Path, values: dict) -> None:
    """Writes `values` in their order, indented by 2. Raises ValueError or TypeError for what JSON cannot hold."""
    write_atomic(path, json_text(values, Path(path).name))


def json_text(values: dict, name: str = "JSON") -> str:
    """What `write_json` writes. Infinity and not-a-number are refused: JSON has none, and few programs read them."""
    for key, value in values.items():
        try:
            json.dumps(value, allow_nan=False)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{name}: {key}={reprlib.repr(value)} can't be written ({error})") from error
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def read_json(path: str | Path) -> dict:
    """The object in a JSON file. Raises FileNotFoundError, or ValueError if it is empty, torn or no JSON object."""
    path = Path(path)
    content = path.read_bytes()
    if content.startswith(LFS_POINTER):
        raise ValueError(f"{shown(path)} is a Git LFS pointer, not the file itself: run `git lfs pull`")
    if not content.strip():
        raise ValueError(f"{shown(path)} is empty: restore it (git checkout, a backup), or make it again")
    try:
        values = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{shown(path)} is torn or no JSON ({error}): restore it, or make it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{shown(path)} must hold one JSON object {{...}}, not a {type(values).__name__}")
    return values
