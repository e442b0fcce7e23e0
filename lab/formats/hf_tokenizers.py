"""Our tokenizers as the files that transformers' AutoTokenizer loads."""

from __future__ import annotations

import json

from lab.files import json_text
from lab.formats.sentencepiece_file import read_proto
from tokenizer import REPLACEMENT, RESERVED, SPACE, ByteTokenizer, SentencePieceTokenizer, Tokenizer


def tokenizer_files(tok: Tokenizer, max_seq_len: int) -> dict[str, str]:
    """tokenizer.json and tokenizer_config.json that encode and decode as `tok` does."""
    import tokenizers

    backend = _backend(tok)
    parts = {"bos_token": tok.bos_id, "eos_token": tok.eos_id, "pad_token": tok.pad_id}
    specials = {part: backend.id_to_token(i) for part, i in parts.items()}
    backend.add_special_tokens(list(dict.fromkeys(specials.values())))
    bos = specials["bos_token"]
    template = {"single": f"{bos} $A", "pair": f"{bos} $A {bos} $B", "special_tokens": [(bos, tok.bos_id)]}
    backend.post_processor = tokenizers.processors.TemplateProcessing(**template)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **specials,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # "<s>" in a text is that text, not the token
        "model_max_length": max_seq_len,
    }
    return {"tokenizer.json": backend.to_str(), "tokenizer_config.json": json_text(settings)}


def _backend(tok: Tokenizer):
    """A `tokenizers.Tokenizer` with the vocabulary of `tok`."""
    import tokenizers

    if isinstance(tok, SentencePieceTokenizer):
        return _from_sentencepiece(tok)
    if isinstance(tok, ByteTokenizer):
        return _from_bytes(tok)
    if tok.kind == "huggingface":
        return tokenizers.Tokenizer.from_str(json.dumps(json.loads(tok._file()[1])["tokenizer"]))
    raise ValueError(f"tokenizer={tok.name}: a tokenizer of kind {tok.kind!r} can't be written for AutoTokenizer")


def _from_bytes(tok: ByteTokenizer):
    """Bytes as GPT-2 writes them: each as a printable character."""
    import tokenizers
    from lab.tokenizers import BYTE_OF

    first = tok.vocab_size - 256
    vocabulary = {tok.piece(i): i for i in range(1, first)} | {c: first + byte for c, byte in BYTE_OF.items()}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({REPLACEMENT: tok.unk_id} | vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    return backend


def _from_sentencepiece(tok: SentencePieceTokenizer):
    """The same pieces and merges. Spaces stay spaces here, so that the character U+2581 needs no exception.

    sentencepiece joins, of all neighbours that form a piece, those whose piece scores highest; a list of merges in the
    order of the scores says the same. Of equal scores (Llama's runs of spaces) it takes the one furthest to the left;
    what stands there has grown longest, so longer left parts come first.
    """
    import tokenizers

    proto = read_proto(tok)
    kinds = proto.SentencePiece
    pieces = [piece.piece.replace(SPACE, " ") for piece in proto.pieces]
    fallback = proto.trainer_spec.byte_fallback
    if not fallback:  # an unknown character is decoded as U+FFFD; with bytes to fall back to there is none
        pieces[tok.unk_id] = REPLACEMENT
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for piece, entry in zip(pieces, proto.pieces, strict=True):
        if entry.type == kinds.NORMAL:
            cuts = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
            merges += [(entry.score, *map(len, cut), cut) for cut in cuts if set(cut) <= vocabulary.keys()]
    bpe = tokenizers.models.BPE(
        vocabulary,
        [cut for *_, cut in sorted(merges, reverse=True)],
        unk_token=pieces[tok.unk_id],
        fuse_unk=True,
        byte_fallback=fallback,
    )
    backend = tokenizers.Tokenizer(bpe)
    decoders, normalizers = tokenizers.decoders, tokenizers.normalizers
    steps = [decoders.ByteFallback(), decoders.Fuse()]
    changes = []
    if not fallback:
        changes.append(normalizers.Replace(REPLACEMENT, RESERVED))  # U+FFFD in a text is unknown like others
    if proto.normalizer_spec.add_dummy_prefix:
        changes += [normalizers.Prepend(" "), normalizers.Replace(SPACE, " ")]
        steps.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = normalizers.Sequence(changes) if changes else None
    backend.decoder = decoders.Sequence(steps)
    return backend
