"""karpathy's llama2.c: its model files (version 0, and 1, which begins with "ak42") and its tokenizer files."""

from __future__ import annotations

import dataclasses
import re
import struct
from pathlib import Path

import numpy as np
import torch

from config import ModelConfig
from lab.files import shown, write_atomic
from lab.formats.plain import (
    ROTATED,
    check_vocabulary,
    fill,
    halves,
    neighbours,
    new_model,
    plain_config,
    plain_weights,
)
from lab.formats.sentencepiece_file import read_proto
from lab.saving import model_folder
from model import GPT, rope_tables
from tokenizer import REPLACEMENT, SPACE, ByteTokenizer, SentencePieceTokenizer, Tokenizer

MAGIC = 0x616B3432  # "ak42", with which every version but the first begins
HEADER = "<7i"  # dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len
# The order of the weights. What belongs to a layer comes for each layer in turn; `cos` and `sin` are tables of RoPE
# that today's llama2.c skips; the head is only there if it is not the embedding.
ORDER = {
    0: "embed attn_norm attn.Wq attn.Wk attn.Wv attn.Wo mlp_norm mlp.Wgate mlp.Wdown mlp.Wup final_norm cos sin head",
    1: "attn_norm mlp_norm final_norm embed attn.Wq attn.Wk attn.Wv attn.Wo mlp.Wgate mlp.Wdown mlp.Wup head",
}
# How the file writes the first tokens; the line breaks keep them from being found in a text. `<pad>` is ours alone: it
# marks a tokenizer that puts no space before a text.
LLAMA2C_SPECIALS = {"<unk>": b"<unk>", "<s>": b"\n<s>\n", "</s>": b"\n</s>\n", "<pad>": b"\n<pad>\n"}


def from_llama2c(model_bin: str | Path, tokenizer_bin: str | Path) -> tuple[GPT, Tokenizer]:
    """The model (in eval mode) and the tokenizer of a pair of llama2.c's files, version 0 or 1.

    RoPE's base and the norms' eps, which the files do not hold, are llama2.c's own: 10,000 and 1e-5. As in llama2.c a
    space is put before a text, but not for a tokenizer that `to_llama2c` wrote from one which puts none.
    Raises: ValueError for files that are cut short, of another kind or version, or that do not fit one another.
    Source: github.com/karpathy/llama2.c, export.py and run.c. Its RoPE turns neighbouring channels, ours the halves of
    a head, so the rows of Wq and Wk are put in another order.
    """
    path = model_folder(Path(model_bin))
    content = path.read_bytes()
    version, start, cfg = _read_header(content, path)
    layout = _layout(cfg, version)
    expected = start + 4 * sum(int(np.prod(shape)) for _, shape in layout)
    if len(content) != expected:
        raise ValueError(
            f"{shown(path)} has {len(content):,} bytes, but its header asks for {expected:,}: "
            "it is cut short, or no model file of llama2.c"
        )
    tok = _read_tokenizer_bin(model_folder(Path(tokenizer_bin)), cfg.vocab_size)
    weights, numbers = {}, np.frombuffer(content, "<f4", offset=start)
    for name, shape in layout:
        piece, numbers = np.split(numbers, [int(np.prod(shape))])
        weights[f"{name}.weight"] = torch.tensor(piece).view(shape)
    weights = {name: halves(w, cfg) if ROTATED.search(name) else w for name, w in weights.items()}
    model = new_model(cfg)
    fill(model, {name: tensor for name, tensor in weights.items() if name[:3] not in ("cos", "sin")})
    return model.eval(), tok


def to_llama2c(
    model: GPT, tok: Tokenizer, model_bin: str | Path, tokenizer_bin: str | Path, *, version: int = 0
) -> None:
    """Writes a model and its tokenizer for llama2.c.

    version: 0, which `run` reads, or 1, the same numbers behind a header of 256 bytes.
    Ids stay what they are. Two things in `run` are not in the files: it puts a space before a prompt, and it takes it
    that byte b has the id b + 3, so that a character without a piece of its own comes out wrong in a prompt unless the
    tokenizer has its bytes there (ours have them further on). Text that the model writes is right in any case.
    Raises: ValueError for a setting or a tokenizer that the format can't hold.
    """
    if version not in ORDER:
        raise ValueError(f"version={version!r} is not written; choose 0, which llama2.c's run reads, or 1")
    model = getattr(model, "_orig_mod", model)
    check_vocabulary(model.cfg, tok)
    cfg, _ = plain_config(model, {})
    _check_llama2c(cfg)
    tokenizer = _tokenizer_bin(tok)
    weights = plain_weights(model, cfg)
    weights = {name: neighbours(w, cfg) if ROTATED.search(name) else w for name, w in weights.items()}
    weights["cos.weight"], weights["sin.weight"] = rope_tables(torch.arange(cfg.max_seq_len), cfg)
    body = [weights[f"{name}.weight"].numpy().astype("<f4").tobytes() for name, _ in _layout(cfg, version)]
    write_atomic(model_folder(Path(model_bin)), _header(cfg, version) + b"".join(body))
    write_atomic(model_folder(Path(tokenizer_bin)), tokenizer)


def _header(cfg: ModelConfig, version: int) -> bytes:
    """The beginning of a model file. Version 0 says by the sign of the vocabulary whether the head is tied."""
    sizes = [cfg.dim, cfg.mlp_hidden, cfg.num_layers, cfg.num_q_heads, cfg.num_kv_heads]
    if version == 0:
        return struct.pack(HEADER, *sizes, cfg.vocab_size if cfg.tied_head else -cfg.vocab_size, cfg.max_seq_len)
    header = struct.pack("<Ii", MAGIC, version) + struct.pack(HEADER, *sizes, cfg.vocab_size, cfg.max_seq_len)
    return (header + bytes([cfg.tied_head])).ljust(256, b"\0")


def _read_header(content: bytes, path: Path) -> tuple[int, int, ModelConfig]:
    """(version, where the weights begin, config) of a model file."""
    new = content[:4] == struct.pack("<I", MAGIC)
    if len(content) < (256 if new else 28):
        raise ValueError(f"{shown(path)} has only {len(content)} bytes: it is cut short, or no model file of llama2.c")
    version = struct.unpack_from("<i", content, 4)[0] if new else 0
    if version not in ORDER:
        raise ValueError(
            f"{shown(path)}: version={version} of llama2.c's format can't be read (2 holds rounded weights)"
        )
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack_from(HEADER, content, 8 if new else 0)
    try:
        cfg = ModelConfig(
            dim=dim,
            mlp_hidden=hidden,
            num_layers=layers,
            num_q_heads=heads,
            num_kv_heads=kv_heads,
            vocab_size=abs(vocab),
            max_seq_len=length,
            tied_head=bool(content[36]) if new else vocab > 0,
        )
    except ValueError as error:
        raise ValueError(f"{shown(path)} is no model file of llama2.c, or a damaged one: {error}") from error
    if layers * dim > len(content):  # looked at here, before something is made for each layer
        raise ValueError(f"{shown(path)} is cut short, or no model file of llama2.c: {layers:,} layers can't be in it")
    return version, 256 if new else 28, cfg


def _layout(cfg: ModelConfig, version: int) -> list[tuple[str, tuple[int, ...]]]:
    """(our name, shape) of each tensor in the order of the file."""
    D, F, V, K = cfg.dim, cfg.mlp_hidden, cfg.vocab_size, cfg.head_dim
    H, G, table = cfg.num_q_heads * K, cfg.num_kv_heads * K, (cfg.max_seq_len, K // 2)
    shapes = {"embed": (V, D), "final_norm": (D,), "head": (V, D), "cos": table, "sin": table}
    per_layer = {
        "attn_norm": (D,), "mlp_norm": (D,), "attn.Wq": (H, D), "attn.Wk": (G, D), "attn.Wv": (G, D),
        "attn.Wo": (D, H), "mlp.Wgate": (F, D), "mlp.Wup": (F, D), "mlp.Wdown": (D, F),
    }  # fmt: skip
    layout = []
    for part in ORDER[version].split():
        if part in per_layer:
            layout += [(f"layers.{i}.{part}", per_layer[part]) for i in range(cfg.num_layers)]
        elif part != "head" or not cfg.tied_head:
            layout.append((part, shapes[part]))
    return layout


def _check_llama2c(cfg: ModelConfig) -> None:
    """Raises ValueError unless the format holds `cfg`: its header has seven sizes, all else is as llama2.c has it."""
    held = ("dim", "num_layers", "vocab_size", "max_seq_len", "num_q_heads", "num_kv_heads", "mlp_hidden", "tied_head")
    plain = ModelConfig()
    wanted = {f.name: getattr(plain, f.name) for f in dataclasses.fields(cfg) if f.name not in held}
    wanted["head_dim"] = cfg.dim / cfg.num_q_heads
    problems = [
        f"{name}={getattr(cfg, name)!r} (it must be {value!r})"
        for name, value in wanted.items()
        if getattr(cfg, name) != value
    ]
    if problems:
        raise ValueError(f"llama2.c's format can't hold this model: {'; '.join(problems)}")


def _tokenizer_bin(tok: Tokenizer) -> bytes:
    """tokenizer.bin: the length of the longest piece, then for each its score, its length and its bytes."""
    names = list(LLAMA2C_SPECIALS)
    if isinstance(tok, ByteTokenizer):
        pieces = [(tok.piece(i), 0.0) for i in range(4)] + [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    elif isinstance(tok, SentencePieceTokenizer):
        proto = read_proto(tok)
        pieces = [(piece.piece, piece.score) for piece in proto.pieces]
        names = names[:3] if proto.normalizer_spec.add_dummy_prefix else names
    else:
        raise ValueError(f"tokenizer={tok.name}: llama2.c needs scores, which a {tok.kind} tokenizer does not have")
    if [piece for piece, _ in pieces[:3]] != names[:3]:
        raise ValueError(f"tokenizer={tok.name}: llama2.c has <unk>, <s> and </s> as its first three ids")
    specials = {i: LLAMA2C_SPECIALS[name] for i, name in enumerate(names) if pieces[i][0] == name}
    ready = [(specials.get(i, piece.replace(SPACE, " ").encode()), score) for i, (piece, score) in enumerate(pieces)]
    longest = max(len(piece) for piece, _ in ready)
    return struct.pack("<I", longest) + b"".join(struct.pack("<fI", score, len(p)) + p for p, score in ready)


def _read_tokenizer_bin(path: Path, vocab_size: int) -> Tokenizer:
    content, at, pieces = path.read_bytes(), 4, []
    while at < len(content) and len(pieces) < vocab_size:
        if at + 8 > len(content):
            break
        score, length = struct.unpack_from("<fI", content, at)
        pieces.append((content[at + 8 : at + 8 + length], score))
        at += 8 + length
    if len(pieces) != vocab_size or at != len(content):
        raise ValueError(
            f"{shown(path)} does not hold the {vocab_size} pieces that the model asks for: it is cut short, belongs to "
            "another model, or is no tokenizer file of llama2.c"
        )
    if [piece for piece, _ in pieces[:3]] != list(LLAMA2C_SPECIALS.values())[:3]:
        raise ValueError(f"{shown(path)} is no tokenizer file of llama2.c: it does not begin with <unk>, <s>, </s>")
    if [piece for piece, _ in pieces[4:]] == [b"<0x%02X>" % byte for byte in range(256)]:
        return ByteTokenizer()
    try:
        return SentencePieceTokenizer(_sentencepiece_model(pieces), path.stem)
    except ValueError as error:
        raise ValueError(f"{shown(path)}: its pieces form no tokenizer, so it is damaged: {error}") from error


def _sentencepiece_model(pieces: list[tuple[bytes, float]]) -> bytes:
    """A sentencepiece model of these pieces and scores: llama2.c joins pieces by the same rule."""
    from sentencepiece import sentencepiece_model_pb2 as format

    proto = format.ModelProto()
    kinds = format.ModelProto.SentencePiece
    names = {written: name for name, written in LLAMA2C_SPECIALS.items()}
    for i, (piece, score) in enumerate(pieces):
        text = names.get(piece) or piece.decode().replace(" ", SPACE)  # UnicodeDecodeError is a ValueError
        special = kinds.UNKNOWN if i == 0 else kinds.CONTROL if piece in names else kinds.NORMAL
        byte = re.fullmatch(r"<0x[0-9A-F]{2}>", text)
        proto.pieces.add(piece=text, score=score, type=kinds.BYTE if byte else special)
    spec = proto.trainer_spec
    spec.model_type, spec.vocab_size, spec.unk_surface = format.TrainerSpec.BPE, len(pieces), REPLACEMENT
    spec.byte_fallback = any(piece.type == kinds.BYTE for piece in proto.pieces)
    ours = pieces[3:] and pieces[3][0] == LLAMA2C_SPECIALS["<pad>"]
    spec.unk_id, spec.bos_id, spec.eos_id, spec.pad_id = 0, 1, 2, 3 if ours else -1
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = not ours
    proto.normalizer_spec.remove_extra_whitespaces = False
    return proto.SerializeToString()
