"""The longest piece of each text that stands in the training text, too, however long that text is."""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lab.stories.words import END, words_of

PIECE = 4_000_000  # characters of training text searched at a time, which bounds the memory
TABLE = 2**25  # entries of a table that is quicker to look up in than a sorted list


def longest_overlaps(texts: Sequence[str], documents: Iterable[str]) -> list[tuple[int, int]]:
    """(words, characters) of the longest piece of each text that stands in one of the documents.

    Words as `words_of` has them, so in any case and with any punctuation; characters exactly as they are.
    """
    ids = {word: i for i, word in enumerate(dict.fromkeys(word for text in texts for word in words_of(text)))}
    as_words = [np.array([ids[word] for word in words_of(text)], dtype=np.int64) for text in texts]
    as_characters = [_code_points(text) for text in texts]
    best = np.zeros((2, len(texts)), dtype=np.int64)
    for piece in _pieces(documents):
        words = [ids.get(word, -1) for document in piece for word in (*words_of(document), END)]
        found = (
            longest_shared(as_words, np.array(words, dtype=np.int64)),
            longest_shared(as_characters, _code_points(END.join(piece))),
        )
        best = np.maximum(best, found)
    return [tuple(pair) for pair in best.T.tolist()]


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32).astype(np.int64)


def _pieces(documents: Iterable[str]) -> Iterator[list[str]]:
    """The documents in lists of about PIECE characters."""
    piece, size = [], 0
    for document in documents:
        piece.append(document)
        size += len(document)
        if size >= PIECE:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def longest_shared(texts: Sequence[np.ndarray], corpus: np.ndarray) -> np.ndarray:
    """For each of N texts, the length of its longest run of items that the corpus holds: (N,).

    texts, corpus: 1-d arrays of whole numbers.
    For length 1, 2, 3, ...: every start in the texts and in the corpus whose run of that length is in both has a name,
    the same for the same run. A run's name follows from the name of the run that is one shorter and its last item, so
    nothing is hashed or compared at length; starts without a partner are dropped, and few are left after some rounds.
    Source: the naming of Karp, Miller & Rosenberg 1972, doi 10.1145/800152.804905, by one item instead of doubling.
    """
    longest = np.zeros(len(texts), dtype=np.int64)
    flat = np.concatenate([*texts, np.empty(0, dtype=np.int64)])
    if not len(flat) or not len(corpus):
        return longest
    lengths = [len(text) for text in texts]
    owner, end = np.repeat(np.arange(len(texts)), lengths), np.repeat(np.cumsum(lengths), lengths)
    kinds, flat = np.unique(flat, return_inverse=True)
    items = _places(kinds, corpus, math.inf)
    count = 1  # of names given so far
    starts, names = np.arange(len(flat)), np.zeros(len(flat), dtype=np.int64)  # in the texts
    found, found_names = np.arange(len(corpus)), np.zeros(len(corpus), dtype=np.int64)  # in the corpus
    for length in range(1, max(lengths) + 1):
        inside = starts + length <= end[starts]
        starts, names = starts[inside], names[inside]
        runs, names = np.unique(names * len(kinds) + flat[starts + length - 1], return_inverse=True)
        found, found_names = _inside(found, found_names, length, items)
        places = _places(runs, found_names * len(kinds) + items[found + length - 1], count * len(kinds))
        count = len(runs)
        found, found_names = found[places >= 0], places[places >= 0]
        shared = np.zeros(len(runs), dtype=bool)
        shared[found_names] = True
        starts, names = starts[shared[names]], names[shared[names]]
        if not len(starts):
            break
        longest[owner[starts]] = length
    return longest


def _inside(found: np.ndarray, names: np.ndarray, length: int, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The starts whose run of this length ends in the corpus, with an item that the texts have."""
    fits = found + length <= len(items)
    found, names = found[fits], names[fits]
    known = items[found + length - 1] >= 0
    return found[known], names[known]


def _places(known: np.ndarray, values: np.ndarray, bound: float) -> np.ndarray:
    """Where each value stands in the sorted `known`, -1 where it is not there. `bound` is above all of them."""
    if not len(known):
        return np.full(len(values), -1)
    if bound <= min(TABLE, 8 * len(values)):  # looking up in a table is quicker, where making it does not take longer
        table = np.full(bound, -1, dtype=np.int32)
        table[known] = np.arange(len(known))
        return table[values]
    places = np.searchsorted(known, values).clip(max=len(known) - 1)
    return np.where(known[places] == values, places, -1)
