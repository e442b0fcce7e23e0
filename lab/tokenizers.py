"""Less-used parts of `tokenizer.py`: tokenizers of the Hugging Face hub behind our interface, and pieces in colour."""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from tokenizer import REPLACEMENT, Tokenizer

# ---------------------------------------------------------------------------------------------------------------------
# Hugging Face tokenizers

HUB_NAMES = ("gpt2", "distilgpt2", "bert-base-uncased", "t5-small")  # names without an owner; others are owner/name
PROBE_SECONDS = 3  # an unreachable hub makes its own client retry for 23 seconds

# Which token plays which part, the first that a tokenizer has: BERT has [CLS] and [SEP], GPT-2 only one for everything.
ROLES = {
    "bos": ("bos_token", "cls_token", "eos_token", "pad_token"),
    "eos": ("eos_token", "sep_token", "bos_token", "pad_token"),
    "pad": ("pad_token", "eos_token", "sep_token", "bos_token"),
    "unk": ("unk_token",),
}
USUAL_NAMES = {  # for a lone tokenizer.json, which does not say which token is which
    "bos_token": ("<s>", "<bos>", "<|begin_of_text|>", "[BOS]", "<|startoftext|>"),
    "eos_token": ("</s>", "<eos>", "<|end_of_text|>", "[EOS]", "<|endoftext|>"),
    "pad_token": ("<pad>", "[PAD]", "<|pad|>"),
    "cls_token": ("[CLS]",),
    "sep_token": ("[SEP]",),
    "unk_token": ("<unk>", "[UNK]"),
}


class HuggingFaceTokenizer(Tokenizer):
    """A fast Hugging Face tokenizer behind the interface of this project.

    backend: a `tokenizers.Tokenizer`.  specials: {"bos_token": "<s>", ...}, the tokens' names by their part.
    A lossless tokenizer (byte-level, like GPT-2's) stays lossless; one that folds case (BERT's) does not become so. The
    texts of special tokens are encoded like any other text. `num_threads` is left to the package.
    Raises: ValueError if no token can mark where a document begins and ends.
    """

    kind = "huggingface"

    def __init__(self, backend, specials: dict[str, str], name: str) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self.name = name
        self._backend = backend
        self._specials = {part: token for part, token in specials.items() if backend.token_to_id(token) is not None}
        self.bos_id, self.eos_id, self.pad_id, self.unk_id = map(self._id_for, ROLES)
        if self.bos_id is None:
            raise ValueError(f"tokenizer={name}: it names no special token, so documents cannot be told apart")
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(vocabulary.values())
        self._pieces = [""] * self.vocab_size
        for piece, i in vocabulary.items():
            self._pieces[i] = piece
        self._bytes = self._table()
        self.fingerprint = hashlib.sha256(self._file()[1]).hexdigest()[:16]

    def decode(self, ids: Iterable[int]) -> str:
        ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        super().decode(ids)  # refuses ids outside the vocabulary
        return self._backend.decode(ids, skip_special_tokens=True)

    def unknown_count(self, text: str) -> int:
        """How many tokens of `text` are unknown ones (a Hugging Face tokenizer does not say how many characters)."""
        return sum(i == self.unk_id for i in self.encode(text, bos=False))

    def _encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def _encode_batch(self, texts: list[str], num_threads: int) -> list[list[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch(texts, add_special_tokens=False)]

    def _file(self) -> tuple[str, bytes]:
        content = {
            "kind": "huggingface",
            "specials": self._specials,
            "tokenizer": json.loads(self._backend.to_str()),
        }
        return "tokenizer.json", json.dumps(content, ensure_ascii=False, sort_keys=True).encode()

    def _id_for(self, role: str) -> int | None:
        tokens = [self._specials[part] for part in ROLES[role] if part in self._specials]
        return self._backend.token_to_id(tokens[0]) if tokens else None

    def _table(self) -> list[bytes]:
        decoder = json.loads(self._backend.to_str()).get("decoder") or {}
        kinds = [decoder.get("type"), *(step.get("type") for step in decoder.get("decoders", []))]
        to_bytes = next((BYTES_BY_DECODER[kind] for kind in kinds if kind in BYTES_BY_DECODER), _plain_bytes)
        added = self._backend.get_added_tokens_decoder()
        table = [to_bytes(piece) for piece in self._pieces]
        for i, token in added.items():
            table[i] = b"" if token.special else token.content.encode()
        if self.unk_id is not None and self.unk_id not in (self.bos_id, self.eos_id):
            table[self.unk_id] = REPLACEMENT.encode()
        return table


def _byte_level_bytes(piece: str) -> bytes:
    """GPT-2 writes each byte as a printable character: the byte's own where it has one, else one from U+0100 on."""
    return b"".join(bytes([BYTE_OF[c]]) if c in BYTE_OF else c.encode() for c in piece)


def _byte_alphabet() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


BYTE_OF = _byte_alphabet()


def _word_piece_bytes(piece: str) -> bytes:
    return (piece[2:] if piece.startswith("##") else f" {piece}").encode()


def _plain_bytes(piece: str) -> bytes:
    if re.fullmatch(r"<0x[0-9A-F]{2}>", piece):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("\u2581", " ").encode()


BYTES_BY_DECODER = {"ByteLevel": _byte_level_bytes, "WordPiece": _word_piece_bytes}


def from_hub(name: str) -> Tokenizer:
    """A tokenizer of the Hugging Face hub, "gpt2" or "owner/name": from the local cache, else downloaded.

    Raises: ImportError if a package is missing, ConnectionError if the hub does not answer, ValueError if it holds no
    such tokenizer.
    """
    try:
        from huggingface_hub import errors, hf_hub_download

        import tokenizers  # noqa: F401  (used by from_file; asked for here, before anything is downloaded)
    except ImportError as error:
        raise ImportError(
            f"tokenizer={name!r} comes from the Hugging Face hub, which needs two more packages: "
            "pip install tokenizers huggingface_hub"
        ) from error
    try:
        path = hf_hub_download(name, "tokenizer.json", local_files_only=True)
    except errors.LocalEntryNotFoundError:
        path = _download(name)
    return from_file(Path(path), name=name.replace("/", "_"))


def _download(name: str) -> str:
    from huggingface_hub import constants, errors, hf_hub_download

    if constants.HF_HUB_OFFLINE:
        raise _unreachable(name, "HF_HUB_OFFLINE is set")
    _require_hub(name, constants.ENDPOINT)
    try:
        path = hf_hub_download(name, "tokenizer.json", etag_timeout=PROBE_SECONDS)
    except errors.LocalEntryNotFoundError as error:  # broken connection; first, for it is also an EntryNotFoundError
        raise _unreachable(name, error) from error
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError) as error:
        raise ValueError(f"tokenizer={name!r}: the hub has no such repository, or no tokenizer.json in it") from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise _unreachable(name, error) from error
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        try:
            hf_hub_download(name, file, etag_timeout=PROBE_SECONDS)
        except errors.LocalEntryNotFoundError as error:
            raise _unreachable(name, error) from error
        except errors.EntryNotFoundError:
            continue  # either file may be absent: from_file asks what is there
    return path


def _require_hub(name: str, endpoint: str) -> None:
    """One short question first: does the hub answer at all?"""
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError as error:
        if error.code == 429 or error.code >= 500:
            raise _unreachable(name, error) from error
    except OSError as error:
        raise _unreachable(name, error) from error


def _unreachable(name: str, reason: Exception | str) -> ConnectionError:
    return ConnectionError(
        f"tokenizer={name!r} is not in the local cache and the Hugging Face hub cannot be reached ({reason}); go "
        "online, give a local folder that holds its tokenizer.json, or use one that is shipped, such as 2048"
    )


def from_file(path: Path, name: str | None = None) -> HuggingFaceTokenizer:
    """A tokenizer from a Hugging Face tokenizer.json (and tokenizer_config.json beside it), or from one we saved."""
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(f"tokenizer={path}: a Hugging Face tokenizer; pip install tokenizers") from error
    content = json.loads(path.read_text(encoding="utf-8"))
    ours = content.get("kind") == "huggingface"
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(content["tokenizer"] if ours else content))
    except Exception as error:  # the package raises bare Exception
        raise ValueError(f"tokenizer={path}: not a Hugging Face tokenizer.json ({error})") from error
    specials = content.get("specials", {}) if ours else _special_tokens(path.parent, backend)
    return HuggingFaceTokenizer(backend, specials, name or path.parent.name)


def from_transformers(folder: Path) -> HuggingFaceTokenizer:
    """A tokenizer from a folder without tokenizer.json (vocab.json and merges.txt, ...), converted by transformers."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            f"tokenizer={folder}: without a tokenizer.json the folder needs one more package: pip install transformers"
        ) from error
    slow_or_fast = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    backend = getattr(slow_or_fast, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"tokenizer={folder}: transformers knows no fast form of {type(slow_or_fast).__name__}")
    return HuggingFaceTokenizer(backend, dict(slow_or_fast.special_tokens_map), folder.name)


def _special_tokens(folder: Path, backend) -> dict[str, str]:
    """Which token is which: as the files beside tokenizer.json say, else by the usual names."""
    found = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            found |= json.loads((folder / file).read_text(encoding="utf-8"))
    named = {part: token for part, token in found.items() if part in USUAL_NAMES and token}
    if named:
        return {part: token["content"] if isinstance(token, dict) else token for part, token in named.items()}
    vocabulary = backend.get_vocab(with_added_tokens=True)
    usual = {part: [n for n in names if n in vocabulary] for part, names in USUAL_NAMES.items()}
    return {part: names[0] for part, names in usual.items() if names}


# ---------------------------------------------------------------------------------------------------------------------
# Pieces in colour

HUES = (210, 35, 130, 320, 265)  # degrees; neighbours in this list are easy to tell apart
ANSI_BACKGROUNDS = (153, 223, 157, 218, 189)  # the same as light xterm colours, always under black letters


class ColouredPieces:
    """A text as a tokenizer cuts it, each piece on a ground of its own colour.

    A notebook shows it as HTML: grounds are half transparent, so the letters keep the colour of a light or a dark
    theme. In a terminal, `print` uses ANSI colours; elsewhere, or where NO_COLOR is set, pieces stand between bars.
    """

    def __init__(self, tokenizer: Tokenizer, text: str) -> None:
        self.pieces = tokenizer.pieces(text)
        self._bytes = [tokenizer.token_bytes(i) for i, _ in self.pieces]
        num_bytes = len(text.encode())
        ratio = f", {num_bytes / len(self.pieces):.2f} bytes per token" if self.pieces else ""
        self.summary = f"{tokenizer.name}: {len(self.pieces)} tokens, {num_bytes} bytes{ratio}"

    @property
    def plain(self) -> str:
        return "|".join(piece for _, piece in self.pieces) + f"\n{self.summary}"

    @property
    def ansi(self) -> str:
        spans = []
        for n, shown in enumerate(self._shown()):
            colour = ANSI_BACKGROUNDS[n % len(ANSI_BACKGROUNDS)]
            reset = "\033[0m" + ("\n" if shown == "\u21b5" else "")
            spans.append(f"\033[38;5;16;48;5;{colour}m{shown}{reset}")
        return "".join(spans) + f"\n{self.summary}"

    @property
    def html(self) -> str:
        spans = []
        for n, ((i, _), shown) in enumerate(zip(self.pieces, self._shown(), strict=True)):
            style = f"background:hsla({HUES[n % len(HUES)]},85%,55%,.38);border-radius:3px"
            newline = "<br>" if shown == "\u21b5" else ""
            spans.append(f'<span title="id {i}" style="{style}">{html.escape(shown)}</span>{newline}')
        text = f'<div style="white-space:pre-wrap;font-family:monospace;line-height:1.6">{"".join(spans)}</div>'
        return f'{text}<div style="opacity:.75;font-size:90%">{html.escape(self.summary)}</div>'

    def _shown(self) -> list[str]:
        return [_readable(piece, data) for (_, piece), data in zip(self.pieces, self._bytes, strict=True)]

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": self.plain}

    def __str__(self) -> str:
        return self.ansi if sys.stdout.isatty() and "NO_COLOR" not in os.environ else self.plain

    __repr__ = __str__


def _readable(piece: str, data: bytes) -> str:
    """A piece as its text; an arrow for a newline; parts of characters and what has no glyph as <0xE2> or <U+200D>."""
    if data == b"\n":
        return "\u21b5"
    if data in (b"", REPLACEMENT.encode()):
        return piece
    text = data.decode("utf-8", errors="replace")
    if REPLACEMENT in text or (not text.isprintable() and text.isascii()):
        return "".join(f"<0x{byte:02X}>" for byte in data)
    return "".join(c if c.isprintable() else f"<U+{ord(c):04X}>" for c in text)
