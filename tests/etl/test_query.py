"""What `bash/query.sh` prints of an answer, and how much of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from etl import query


def endless() -> Iterator[tuple[int, str]]:
    for number in itertools.count():
        yield number, f"row {number}"


@pytest.mark.parametrize(
    ("form", "told"), [("csv", "a,b\r\n0,row 0\r\n1,row 1\r\n"), ("json", '{"a": 0, "b": "row 0"}\n{"a": 1, "b": "row 1"}\n')]
)
def test_an_answer_without_end_is_cut_and_says_so(form: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    query.show(["a", "b"], endless(), form, 2)
    printed = capsys.readouterr()
    assert printed.out == told
    assert printed.err == "cut after 2 rows; --limit N shows more, --format csv or json gives all\n"


def test_a_table_is_cut_after_its_limit_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    query.show(["a", "b"], endless(), "table", 3)
    printed = capsys.readouterr()
    assert "row 2" in printed.out
    assert "row 3" not in printed.out
    assert "cut after 3 rows" in printed.err


@pytest.mark.parametrize("limit", [3, None])
def test_an_answer_that_is_whole_says_nothing_of_a_cut(limit: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    query.show(["a", "b"], itertools.islice(endless(), 3), "csv", limit)
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 4
    assert printed.err == ""
