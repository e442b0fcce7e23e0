"""lab/intervals.py: an interval holds what it is about, and where nothing can be said, none is given."""

import pytest

from lab.intervals import draw_documents, wilson


@pytest.mark.parametrize("count", [4, 5, 10, 14, 28])
def test_wilson_holds_the_share_that_was_seen(count):
    """Near 0 and 1 rounding would put the end beyond it, and an error bar below 0 can't be drawn."""
    for right in (0, count):
        low, high = wilson(right, count)
        assert low <= right / count <= high


def test_one_document_has_no_spread():
    with pytest.raises(ValueError, match="documents=1 must be at least 2"):
        draw_documents(1, 10, 0)
