"""What other formats need to know of a sentencepiece tokenizer: its pieces, scores and rules."""

from __future__ import annotations

from tokenizer import SentencePieceTokenizer


def read_proto(tok: SentencePieceTokenizer):
    """The model file as a protocol buffer. Raises ValueError for what no list of merges can express."""
    from sentencepiece import sentencepiece_model_pb2 as format

    proto = format.ModelProto()
    proto.ParseFromString(tok._file()[1])
    kind = format.TrainerSpec.ModelType.Name(proto.trainer_spec.model_type)
    if kind not in ("BPE", "CHAR"):
        raise ValueError(f"tokenizer={tok.name}: model_type={kind} has no merges; only BPE and CHAR can be written")
    normal = proto.normalizer_spec
    suffix = proto.trainer_spec.treat_whitespace_as_suffix
    if normal.precompiled_charsmap or normal.remove_extra_whitespaces or not normal.escape_whitespaces or suffix:
        raise ValueError(f"tokenizer={tok.name}: it changes the text before it cuts it (normalizer {normal.name!r})")
    symbols = [p.piece for p in proto.pieces if p.type == p.USER_DEFINED and len(p.piece) > 1]
    if symbols:
        raise ValueError(f"tokenizer={tok.name}: user-defined symbols such as {symbols[0]!r} can't be written")
    return proto
