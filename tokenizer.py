"""Text to token ids and back: byte-pair encoding (BPE), single characters, single bytes.

    tok = get_tokenizer(2048)                  # tokenizers/bpe_2048.model
    ids = tok.encode("Once upon a time")       # [1, ...]: begins with BOS
    tok.decode(ids)                            # "Once upon a time": special tokens are skipped
    tok.display("Once upon a time")            # the pieces in colour

Every tokenizer of this project gives its first four ids to the special tokens: 0 unknown, 1 beginning of a text (BOS),
2 end of a text (EOS), 3 padding. `vocab_size` counts them.

Nothing is lost: from 512 pieces up each tokenizer also holds all 256 bytes, and a character without a piece of its own
is spelled by its UTF-8 bytes, so that decode(encode(text)) == text for every text. Smaller vocabularies have no room
for that. A run of characters which they lack becomes one unknown token, decoded as U+FFFD; `unknown_count(text)` counts
such characters, and the .json beside each tokenizer says which ones its own training text had.

Relative paths start at the folder of this file, so a notebook may be started anywhere.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from lab.files import LFS_POINTER, ROOT, TOKENIZERS, shown, write_atomic, write_json

SPECIALS = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": 3}
BYTE_FALLBACK_FROM = 512  # below this, 256 pieces for the bytes would leave too few for merges
SPACE = "\u2581"  # sentencepiece writes a space as this character, so the character itself must be spelled by its bytes
RESERVED = "\u2585"  # never in a piece: sentencepiece skips every training sentence that holds it
REPLACEMENT = "\ufffd"  # what an unknown token decodes to
DOCUMENT_END = "<|endoftext|>"  # the line that separates documents in TinyStories files; never part of a document


class Tokenizer:
    """What all tokenizers have in common. A kind of tokenizer supplies `_encode`, `_pieces` and `_file`.

    vocab_size: number of ids, special tokens included.  bos_id, eos_id, pad_id, unk_id: ids of the special tokens.
    fingerprint: 16 hexadecimal digits that depend on nothing but the mapping between text and ids.
    """

    kind: str
    name: str
    vocab_size: int
    fingerprint: str
    unk_id, bos_id, eos_id, pad_id = SPECIALS.values()
    _bytes: list[bytes]  # id -> the UTF-8 bytes it stands for; b"" for BOS, EOS and padding

    def encode(self, text: str, bos: bool = True, eos: bool = False) -> list[int]:
        """The ids of `text`, with BOS before it and EOS after it where asked. An empty text has no ids of its own.

        Raises: TypeError if `text` is no str; ValueError if it holds a lone surrogate (half a character).
        """
        _check_text(text)
        return self._between(self._encode(text), bos, eos)

    def encode_batch(
        self, texts: Iterable[str], bos: bool = True, eos: bool = False, num_threads: int = 1
    ) -> list[list[int]]:
        """`encode` for many texts at once, on `num_threads` threads where the kind of tokenizer can."""
        if isinstance(texts, str):
            raise TypeError("texts='...' is a single str; encode_batch wants a list of them: [text]")
        texts = list(texts)
        for text in texts:
            _check_text(text)
        return [self._between(ids, bos, eos) for ids in self._encode_batch(texts, num_threads)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` (a list, an array or a 1-dimensional tensor), special tokens skipped.

        Bytes that form no character, such as those of a piece cut out of one, become U+FFFD. Raises: ValueError for an
        id outside the vocabulary.
        """
        table = self._bytes
        ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        if ids and not 0 <= min(ids) <= max(ids) < len(table):
            wrong = next(i for i in ids if not 0 <= i < len(table))
            raise ValueError(f"{self._outside(wrong)}; were the ids made by another tokenizer?")
        return b"".join([table[i] for i in ids]).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes of one id (perhaps a part of a character), b"" for BOS, EOS and padding: for streaming."""
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(self._outside(token_id))
        return self._bytes[token_id]

    def pieces(self, text: str) -> list[tuple[int, str]]:
        """(id, piece as shown) of each token of `text`: a space is shown as \u2581, a single byte as <0xE2>."""
        return [(i, self.piece(i)) for i in self.encode(text, bos=False)]

    def piece(self, token_id: int) -> str:
        """One id as it is shown: `<s>`, `\u2581once`, `\\n`, `<0xE2>`."""
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(self._outside(token_id))
        return self._pieces[token_id].replace("\n", "\\n").replace(" ", SPACE)

    def unknown_count(self, text: str) -> int:
        """How many characters of `text` this tokenizer cannot hold: 0 for all that fall back to bytes."""
        return 0

    def bytes_per_token(self, texts: Iterable[str]) -> float:
        """UTF-8 bytes of `texts` per token (BOS and EOS not counted): higher means shorter sequences."""
        texts = list(texts)
        num_tokens = sum(map(len, self.encode_batch(texts, bos=False)))
        if num_tokens == 0:
            raise ValueError("texts hold no text, so there is nothing to count")
        return sum(len(text.encode()) for text in texts) / num_tokens

    def display(self, text: str):
        """The pieces of `text` in colour: HTML in a notebook, ANSI colours in a terminal, plain text elsewhere."""
        from lab.tokenizers import ColouredPieces

        return ColouredPieces(self, text)

    def save(self, folder: str | Path) -> Path:
        """Write this very tokenizer into `folder` as tokenizer.model or tokenizer.json; `load_tokenizer` reads it."""
        filename, content = self._file()
        path = _at(folder) / filename
        write_atomic(path, content)
        return path

    def __len__(self) -> int:
        return self.vocab_size

    def __repr__(self) -> str:
        return f"<{self.name}: {self.kind} tokenizer, vocab_size={self.vocab_size}, fingerprint={self.fingerprint}>"

    def _outside(self, token_id: int) -> str:
        return f"id={token_id} is outside the vocabulary of {self.name}: vocab_size={self.vocab_size}"

    def _between(self, ids: list[int], bos: bool, eos: bool) -> list[int]:
        return [self.bos_id] * bool(bos) + ids + [self.eos_id] * bool(eos)

    def _encode_batch(self, texts: list[str], num_threads: int) -> list[list[int]]:
        return [self._encode(text) for text in texts]


class ByteTokenizer(Tokenizer):
    """One id per UTF-8 byte, after the four special tokens: 260 ids, no file to train, every text representable."""

    kind = "byte"
    name = "byte"

    def __init__(self) -> None:
        first = len(SPECIALS)
        self.vocab_size = first + 256
        self._bytes = [REPLACEMENT.encode(), b"", b"", b""] + [bytes([b]) for b in range(256)]
        self._pieces = ["<unk>", "<s>", "</s>", "<pad>"] + [
            chr(b) if chr(b) in string.printable[:95] else f"<0x{b:02X}>" for b in range(256)
        ]
        self._file_content = json.dumps({"kind": "byte", "first_byte_id": first}).encode()
        self.fingerprint = _fingerprint(self._file_content)

    def _encode(self, text: str) -> list[int]:
        first = len(SPECIALS)
        return [first + byte for byte in text.encode()]

    def _file(self) -> tuple[str, bytes]:
        return "tokenizer.json", self._file_content


class SentencePieceTokenizer(Tokenizer):
    """A trained sentencepiece model (BPE or characters), given as the bytes of its .model file."""

    def __init__(self, model: bytes, name: str = "sentencepiece") -> None:
        self.name = name
        self._model = model
        self._sp = _read_sentencepiece(model, name)
        self.vocab_size = self._sp.vocab_size()
        self.fingerprint = _fingerprint(model)
        self._pieces = [self._sp.id_to_piece(i) for i in range(self.vocab_size)]
        self._byte_fallback = any(self._sp.is_byte(i) for i in range(self.vocab_size))
        self.kind = "bpe" if any(len(p) > 1 for p in self._normal_pieces()) else "characters"
        self._find_specials()
        self._bytes = [self._bytes_of(i) for i in range(self.vocab_size)]
        self._space_bytes = [self._sp.piece_to_id(f"<0x{b:02X}>") for b in SPACE.encode()]
        self._adds_space = self._sp.normalize("a") != "a"  # models of other projects may; ours do not

    def decode(self, ids: Iterable[int]) -> str:
        text = super().decode(ids)
        return text[1:] if self._adds_space and text.startswith(" ") else text

    def unknown_count(self, text: str) -> int:
        _check_text(text)
        if self._byte_fallback:
            return 0
        known = {p.replace(SPACE, " ") for p in self._normal_pieces() if len(p) == 1}
        return sum(count for character, count in Counter(text).items() if character not in known)

    def _encode(self, text: str) -> list[int]:
        if SPACE not in text or self._adds_space:
            return self._sp.encode(text)
        if not self._byte_fallback:
            return self._sp.encode(text.replace(SPACE, RESERVED))  # unknown, and one run with unknown neighbours
        first, *others = text.split(SPACE)
        ids = self._sp.encode(first)
        for part in others:
            ids += self._space_bytes + self._sp.encode(part)
        return ids

    def _encode_batch(self, texts: list[str], num_threads: int) -> list[list[int]]:
        rare = {i: self._encode(text) for i, text in enumerate(texts) if SPACE in text}
        encoded = self._sp.encode(texts, num_threads=num_threads)
        return [rare.get(i, ids) for i, ids in enumerate(encoded)] if rare else encoded

    def _file(self) -> tuple[str, bytes]:
        return "tokenizer.model", self._model

    def _normal_pieces(self) -> list[str]:
        special = (self._sp.is_control, self._sp.is_unknown, self._sp.is_byte)
        return [p for i, p in enumerate(self._pieces) if not any(is_kind(i) for is_kind in special)]

    def _find_specials(self) -> None:
        """Models of other projects may lack a special token (id -1): BOS and EOS then stand in for one another."""
        self.unk_id, bos, eos, pad = self._sp.unk_id(), self._sp.bos_id(), self._sp.eos_id(), self._sp.pad_id()
        if bos < 0 and eos < 0:
            raise ValueError(f"tokenizer={self.name}: it has neither BOS nor EOS, so documents cannot be told apart")
        self.bos_id, self.eos_id = (bos if bos >= 0 else eos), (eos if eos >= 0 else bos)
        self.pad_id = pad if pad >= 0 else self.eos_id

    def _bytes_of(self, i: int) -> bytes:
        if self._sp.is_control(i):
            return b""
        if self._sp.is_unknown(i):
            return REPLACEMENT.encode()
        if self._sp.is_byte(i):
            return bytes([int(self._pieces[i][3:5], 16)])  # <0xE2>
        return self._pieces[i].replace(SPACE, " ").encode()


# ---------------------------------------------------------------------------------------------------------------------
# Finding and loading


def get_tokenizer(name: int | str | Path | Tokenizer) -> Tokenizer:
    """The tokenizer called `name`.

    2048, "2048", "bpe_2048", "characters": one shipped in tokenizers/.   "byte": the 256 bytes, no file.
    A path: a .model file, its .json, or a folder of trained_models/.
    "gpt2", "owner/name", or a local folder with a Hugging Face tokenizer: see lab/tokenizers.py.
    Raises: ValueError for a name that is none of these, FileNotFoundError for a path where nothing is.
    """
    if isinstance(name, Tokenizer):
        return name
    text = str(name)
    if text == "byte":
        return ByteTokenizer()
    shipped = _shipped()
    short = f"bpe_{text}" if text.isdecimal() else text
    if short in shipped:
        return _load_model_file(shipped[short])
    if _looks_like_path(text):
        return load_tokenizer(text)
    from lab.tokenizers import HUB_NAMES, from_hub

    if text in HUB_NAMES or re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        return from_hub(text)
    choices = ["byte", *shipped, *HUB_NAMES]
    close = difflib.get_close_matches(short, choices, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise ValueError(
        f"tokenizer={name!r} is unknown{hint} Choose one of {', '.join(choices)}; the path of a .model file or of a "
        "folder that holds a tokenizer; or owner/name on the Hugging Face hub"
    )


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer that a path leads to: a .model or .json file, or a folder with tokenizer.model or tokenizer.json.

    Raises: FileNotFoundError if there is none; ValueError if the file cannot be read as a tokenizer.
    """
    path = _find(path)
    if path.is_dir():
        return _load_folder(path)
    if not path.suffix and path.with_name(f"{path.name}.model").is_file():
        path = path.with_name(f"{path.name}.model")
    if not path.is_file():
        raise FileNotFoundError(f"tokenizer={shown(path)}: no such file; see tokenizers/ for those that are shipped")
    return _load_json_file(path) if path.suffix == ".json" else _load_model_file(path)


def _load_folder(folder: Path) -> Tokenizer:
    for file, load in (("tokenizer.model", _load_model_file), ("tokenizer.json", _load_json_file)):
        if (folder / file).is_file():
            return load(folder / file)
    if (folder / "vocab.json").is_file() or (folder / "vocab.txt").is_file():
        from lab.tokenizers import from_transformers

        return from_transformers(folder)
    raise FileNotFoundError(f"tokenizer={shown(folder)}: the folder holds neither tokenizer.model nor tokenizer.json")


def _load_model_file(path: Path) -> SentencePieceTokenizer:
    name = path.parent.name if path.stem == "tokenizer" else path.stem
    return SentencePieceTokenizer(path.read_bytes(), name)


def _load_json_file(path: Path) -> Tokenizer:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind = content.get("kind", "huggingface")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"tokenizer={shown(path)}: not a readable tokenizer file ({error})") from error
    if kind == "byte":
        return ByteTokenizer()
    if kind in ("bpe", "characters"):  # the description beside a .model file
        return load_tokenizer(path.with_suffix(".model"))
    from lab.tokenizers import from_file

    return from_file(path)


def _read_sentencepiece(model: bytes, name: str) -> sentencepiece.SentencePieceProcessor:
    if model.startswith(LFS_POINTER):
        raise ValueError(f"tokenizer={name}: the file is a Git LFS pointer, not a tokenizer; run `git lfs pull`")
    if not model:
        raise ValueError(f"tokenizer={name}: the file is empty; write it again, or take it from where it came from")
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"tokenizer={name}: the file of {len(model)} bytes is no sentencepiece model, or a damaged one ({error})"
        ) from error


def _shipped() -> dict[str, Path]:
    """Name -> .model file of tokenizers/, smallest vocabulary first."""
    files = {path.stem: path for path in TOKENIZERS.glob("*.model")}
    return dict(sorted(files.items(), key=lambda item: (len(item[0]), item[0])))


def _looks_like_path(text: str) -> bool:
    if text.endswith((".model", ".json")) or text.startswith((".", "~")) or Path(text).is_absolute():
        return True
    return _find(text).exists() or (ROOT / Path(text).parts[0]).is_dir() if text else False


def _at(path: str | Path) -> Path:
    """A relative path starts at the folder of this file."""
    return ROOT / Path(path).expanduser()


def _find(path: str | Path) -> Path:
    """Like `_at`, but what is not there is then looked for in the working directory."""
    there = _at(path)
    here = Path(path).expanduser().absolute()
    return here if here.exists() and not there.exists() else there


# ---------------------------------------------------------------------------------------------------------------------
# Training


def train_tokenizer(
    documents: Iterable[str],
    vocab_size: int | None,
    path: str | Path,
    kind: str = "bpe",
    text_name: str = "unnamed text",
) -> Tokenizer:
    """Train a tokenizer on `documents`, write it as `path`.model with a description `path`.json, and return it.

    documents: the texts, split where one ends and the next begins; a separator left in them would become a piece.
    vocab_size: number of ids, special tokens included; None with kind="characters" (as many as there are characters).
    kind: "bpe" (Sennrich et al. 2015, arXiv 1508.07909: merge the most frequent pair, again and again) or "characters"
    (the printable ASCII characters, newline, and whatever else the text holds).
    Raises: ValueError if the text is empty, or yields fewer pieces than asked for.
    """
    _check_request(vocab_size, kind)
    texts = [text for text in documents if text]
    if not texts:
        raise ValueError("documents=[]: there is no text to train a tokenizer on")
    for text in texts:
        _check_text(text)
    counts = Counter()
    for text in texts:
        counts.update(text)
    kept = _characters_to_keep(counts, vocab_size, kind)
    options = _options(vocab_size, kind, len(kept))
    model = _run_trainer(texts, kept, options)
    path = _at(path).with_suffix(".model") if str(path).endswith((".model", ".json")) else _at(f"{path}.model")
    tokenizer = SentencePieceTokenizer(model, path.stem)
    description = _describe(tokenizer, texts, counts, options, kind, text_name)
    write_atomic(path, model)
    write_json(path.with_suffix(".json"), description)
    return tokenizer


def text_fingerprint(documents: Iterable[str]) -> str:
    """SHA-256 of the documents, each followed by its <|endoftext|> line: that of the file they were read from."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(f"{document}\n{DOCUMENT_END}\n".encode())
    return digest.hexdigest()


def _check_request(vocab_size: int | None, kind: str) -> None:
    if kind not in ("bpe", "characters"):
        raise ValueError(f"kind={kind!r} is unknown; choose 'bpe' or 'characters'")
    if kind == "characters" and vocab_size is not None:
        raise ValueError(f"vocab_size={vocab_size}: the text decides how many characters there are; pass None")
    if kind == "bpe" and (not isinstance(vocab_size, int) or not 104 <= vocab_size <= 2**20):
        raise ValueError(
            f"vocab_size={vocab_size!r} must be a whole number from 104 (4 special tokens, newline, 95 printable ASCII "
            "characters, 4 merges) to 1,048,576"
        )


def _characters_to_keep(counts: Counter, vocab_size: int | None, kind: str) -> list[str]:
    """The characters that get a piece of their own; the others fall back to bytes or are unknown.

    All for "characters". For BPE those that make up at least one in 100,000, the most frequent first, in at most half
    of the room that the bytes leave; and always printable ASCII where there are no bytes.
    """
    reserved = {"\n", "\0", "\t", SPACE, RESERVED}  # a symbol of its own, and four that sentencepiece uses itself
    ranked = [c for c, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if c not in reserved]
    ascii_characters = list(string.printable[:95])
    if kind == "characters":
        return list(dict.fromkeys(ascii_characters + ranked))
    frequent = [c for c in ranked if counts[c] * 100_000 >= counts.total()]
    if vocab_size >= BYTE_FALLBACK_FROM:
        room = vocab_size - len(SPECIALS) - 1 - 256
        return list(dict.fromkeys([" "] + frequent[: room // 2 - 1]))
    kept = list(dict.fromkeys(ascii_characters + frequent))
    return kept[: vocab_size - len(SPECIALS) - 1]


def _options(vocab_size: int | None, kind: str, num_characters: int) -> dict:
    """What sentencepiece is told. Its defaults would change the text: fold characters, squeeze and add spaces."""
    return {
        "model_type": "bpe" if kind == "bpe" else "char",
        "vocab_size": vocab_size or len(SPECIALS) + 1 + num_characters,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "byte_fallback": kind == "bpe" and vocab_size >= BYTE_FALLBACK_FROM,
        "user_defined_symbols": ["\n"],
        "character_coverage": 1.0,  # `_training_pieces` has already left out what gets no piece
        "max_sentence_length": 1 << 20,  # bytes; anything longer would be skipped without a word
        "unk_surface": REPLACEMENT,
        **SPECIALS,
    }


def _run_trainer(texts: list[str], kept: list[str], options: dict) -> bytes:
    model = io.BytesIO()  # not a path: sentencepiece would write the path into the model
    sentences = _training_pieces(texts, kept)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences, model_writer=model, num_threads=1, minloglevel=1, **options
        )
    except RuntimeError as error:
        limit = re.search(r"value <= (\d+)", str(error))
        if limit is None:
            raise
        most = int(limit[1])
        if options["byte_fallback"] and most < BYTE_FALLBACK_FROM:
            most -= 256  # so few that there will be no bytes among them
        raise ValueError(
            f"vocab_size={options['vocab_size']}: this text is enough for {most} pieces; ask for at most so many, "
            "or give more text"
        ) from error
    return model.getvalue()


def _training_pieces(texts: list[str], kept: list[str]) -> Iterator[str]:
    """The text as the trainer gets it: cut at newlines and at characters without a piece, which no piece may contain.

    Each kept character comes once by itself first, so that it is in the vocabulary even where the text lacks it. Very
    long runs are cut as well: sentencepiece counts positions within a word in 16 bits.
    """
    yield from kept
    cut = re.compile("[^" + re.escape("".join(kept)) + "]+")
    longest = 10_000  # characters
    for text in texts:
        for run in cut.split(text):
            yield from (run[i : i + longest] for i in range(0, len(run), longest))


def _describe(
    tokenizer: SentencePieceTokenizer, texts: list[str], counts: Counter, options: dict, kind: str, text_name: str
) -> dict:
    """The content of the .json file beside a .model file."""
    lacking = {c: n for c, n in counts.most_common() if tokenizer.unknown_count(c)}
    fallback = options["byte_fallback"]
    how = "its UTF-8 bytes" if fallback else f"unknown token, id {tokenizer.unk_id}, decoded as U+FFFD; one per run"
    return {
        "name": tokenizer.name,
        "kind": kind,
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": tokenizer.fingerprint,
        "special_ids": {"unk": 0, "bos": 1, "eos": 2, "pad": 3},
        "byte_fallback": fallback,
        "characters_without_a_piece": how,
        "unknown_in_training_text": {"total": sum(lacking.values()), "characters": lacking},
        "bytes_per_token_on_training_text": round(tokenizer.bytes_per_token(texts), 4),
        "text": {
            "name": text_name,
            "sha256": text_fingerprint(texts),
            "documents": len(texts),
            "bytes": sum(len(text.encode()) for text in texts),
        },
        "sentencepiece_options": options,
        "versions": {"sentencepiece": sentencepiece.__version__},
    }


# ---------------------------------------------------------------------------------------------------------------------
# Small parts


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"text={text!r:.60} is of type {type(text).__name__}; a tokenizer encodes str")
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise ValueError(
            f"text holds half a character, the lone surrogate U+{code:04X}, at position {error.start}; it cannot be "
            "written as UTF-8: repair the text, or use text.encode('utf-8', 'replace').decode()"
        ) from error


def _fingerprint(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
