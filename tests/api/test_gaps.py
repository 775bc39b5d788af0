"""api/gaps.py: which offsets count as lost."""

from __future__ import annotations

import pytest

from api.gaps import read_offsets, unread


@pytest.mark.parametrize(
    ("begin", "below", "read", "has_marks", "lost"),
    [
        (5, 5, [], False, []),
        (5, 9, [], False, [(5, 8)]),
        # Read before it was removed, and from where the log then began.
        (5, 9, [5, 6, 7, 8], False, []),
        (5, 9, [7, 8], False, [(5, 6)]),
        # Removed while it was read: the reader went on where the log began.
        (5, 9, [5, 6, 9, 10], False, [(7, 8)]),
        # Marks of transactions, within and at the end.
        (5, 12, [5, 6, 8, 9, 11], True, []),
        (5, 12, [5, 6, 8, 9, 10], True, []),
        (5, 12, [], True, [(5, 11)]),
    ],
)
def test_what_was_removed_unread_is_lost_and_marks_are_not(begin: int, below: int, read: list[int], has_marks: bool, lost: list[object]):
    assert unread(begin, below, read, has_marks) == lost


def test_offsets_are_read_as_a_checkpoint_has_them():
    assert read_offsets({"a": {"0": 7, "1": 8}, "b": {"0": 9}}) == {("a", 0): 7, ("a", 1): 8, ("b", 0): 9}
