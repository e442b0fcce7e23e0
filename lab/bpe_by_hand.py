"""Byte-pair encoding by hand: three short functions for `build_tokenizer.ipynb`.

A text is a count of words, and each word a tuple of pieces, at first its characters. Training merges the most frequent
pair of neighbours, again and again; encoding makes the same merges in the same order.

Source: Sennrich, Haddow, Birch 2015, arXiv 1508.07909, section 3.2. As in sentencepiece, a word begins with its space,
written as U+2581 (there it ends with an end-of-word sign).
"""

from __future__ import annotations

from collections import Counter

Word = tuple[str, ...]
Pair = tuple[str, str]


def words_of(text: str) -> Counter[Word]:
    """How often each word occurs, as a tuple of characters; its space, written \u2581, comes first."""
    return Counter(tuple("\u2581" + word) for word in text.split())


def pair_counts(words: Counter[Word]) -> Counter[Pair]:
    """How often each pair of neighbouring pieces occurs."""
    counts = Counter()
    for word, times in words.items():
        for pair in zip(word, word[1:], strict=False):
            counts[pair] += times
    return counts


def merge(word: Word, pair: Pair) -> Word:
    """The word with every occurrence of `pair`, from left to right, made one piece."""
    merged = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return tuple(merged)


def learn(text: str, num_merges: int) -> list[tuple[Pair, int]]:
    """The first `num_merges` merges and how often each pair occurred when it was merged; the first seen wins a tie."""
    words, merges = words_of(text), []
    for _ in range(num_merges):
        counts = pair_counts(words)
        if not counts:
            break
        pair, times = counts.most_common(1)[0]
        merges.append((pair, times))
        words = Counter({merge(word, pair): n for word, n in words.items()})
    return merges


def apply(merges: list[Pair], text: str) -> list[str]:
    """The pieces of `text` after making `merges` in the order given."""
    pieces = []
    for word in text.split():
        parts = tuple("\u2581" + word)
        for pair in merges:
            parts = merge(parts, pair)
        pieces += parts
    return pieces
