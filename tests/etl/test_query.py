"""What `bash/query.sh` prints of an answer, and how much of it."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Iterator
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_a_command_that_answers_nothing_is_told_to_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    query.show(["Result"], [], "table", 1000)
    assert capsys.readouterr().out == "done\n"
    query.show(["a"], [], "table", 1000)
    assert "a" in capsys.readouterr().out


def test_a_join_with_equal_names_loses_no_column_in_json_and_csv(capsys: pytest.CaptureFixture[str]) -> None:
    columns, row = ["id", "id_2", "id", "amount", "id"], (1, 2, 3, 4, 5)
    query.show(columns, [row], "json", None)
    assert json.loads(capsys.readouterr().out) == {"id": 1, "id_2": 2, "id_3": 3, "amount": 4, "id_4": 5}
    query.show(columns, [row], "csv", None)
    assert capsys.readouterr().out == "id,id_2,id_3,amount,id_4\r\n1,2,3,4,5\r\n"


@given(st.lists(st.sampled_from(["id", "id_2", "id_3", "name"])))
def test_names_told_apart_are_all_different_and_those_that_were_so_stay(names: list[str]) -> None:
    found = query.distinct(names)
    assert len(set(found)) == len(names)
    assert [one for one, name in zip(found, names, strict=True) if names.count(name) == 1] == [
        name for name in names if names.count(name) == 1
    ]


def test_values_in_json_are_numbers_with_all_their_digits_and_null_is_told_from_an_empty_text(capsys: pytest.CaptureFixture[str]) -> None:
    row = (Decimal("10.10"), Decimal("12345678901234567890123456789012345.678"), Decimal("1E-8"), 0.5, math.nan, True, None, "", 'é "x"')
    query.show(list("abcdefghi"), [row], "json", None)
    assert capsys.readouterr().out == (
        '{"a": 10.10, "b": 12345678901234567890123456789012345.678, "c": 0.00000001, "d": 0.5, "e": "NaN", "f": true, "g": null, "h": "", '
        '"i": "é \\"x\\""}\n'
    )


def test_null_and_an_empty_text_differ_in_csv_as_postgres_writes_them(capsys: pytest.CaptureFixture[str]) -> None:
    query.show(["a", "b", "c"], [(None, "", Decimal("1.50")), ("x,y", 'say "no"', "two\nlines"), (None, None, None)], "csv", None)
    assert capsys.readouterr().out == 'a,b,c\r\n,"",1.50\r\n"x,y","say ""no""","two\nlines"\r\n,,\r\n'


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=2))
def test_any_text_comes_back_from_csv(texts: list[str]) -> None:
    line = ",".join(map(query.as_csv, texts)) + "\r\n"
    assert list(csv.reader(io.StringIO(line, newline=""))) == [texts]
