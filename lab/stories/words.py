"""What a word of a text is, and a sign that no text holds."""

import re
from itertools import islice

WORD = re.compile(r"\w+(?:['’]\w+)*")
END = "\U0010ffff"  # a code point that stands in no text


def words_of(text: str) -> list[str]:
    """Runs of letters and digits in lower case, apostrophes inside them kept; punctuation is left out."""
    return WORD.findall(text.lower())


def end_of_word(text: str, count: int) -> int:
    """Where the word with this number (from 1) ends, or the last one; a full stop behind it is left out."""
    found = list(islice(WORD.finditer(text), count))
    return found[-1].end() if found else len(text)
