"""What names a person in texts and files."""

from __future__ import annotations

import io
import json
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.errors import WarehouseError
from etl.traces import Others, Subject, UnreadableError, Words, names_person, rows_of, texts_of_others

SUBJECT = Subject("customer_id", 7, ("customer_name", "email"), "erased")
ZOE = Words.of(['Zoë "Bo" Müller', "zoe@mail.example"], Others())


def parquet(**columns: object) -> bytes:
    written = io.BytesIO()
    pq.write_table(pa.table(columns), written)
    return written.getvalue()


def number(value: int) -> bytes:
    """A whole number as Avro writes it."""
    value = (value << 1) ^ (value >> 63)
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def avro(block: bytes, codec: bytes) -> bytes:
    header = [(b"avro.schema", b'"bytes"'), (b"avro.codec", codec)]
    told = b"".join(number(len(part)) + part for pair in header for part in pair)
    return b"Obj\x01" + number(len(header)) + told + number(0) + b"s" * 16 + number(1) + number(len(block)) + block + b"s" * 16


@pytest.mark.parametrize(
    "text",
    [
        "7,ZOE@MAIL.EXAMPLE,NL",
        'called zoë "bo" müller today',
        json.dumps({"note": 'Zoë "Bo" Müller'}),
        json.dumps({"note": 'Zoë "Bo" Müller'}, ensure_ascii=False),
    ],
)
def test_a_person_is_named_in_any_case_and_in_json(text: str) -> None:
    assert ZOE.are_in(text)
    assert "oë" not in ZOE.masked(text, "erased")
    assert "ZOE@" not in ZOE.masked(text, "erased")


@pytest.mark.parametrize("text", ["chloezoe@mail.example", "zoe@mail.examples", "Zoë Müller", ""])
def test_a_part_of_a_longer_word_names_nobody(text: str) -> None:
    assert not ZOE.are_in(text)
    assert ZOE.masked(text, "erased") == text


def test_a_namesakes_name_and_a_very_short_one_prove_nothing() -> None:
    others = Others()
    values = ["Ann Smith", "Ann Smithson-Featherstone", "Bo", "ann@mail.example"]
    others.add(["Ann Smith", "Ann Smithson-Ferrari", "joann@mail.example"], values)
    words = Words.of(values, others)
    assert words.values == ("Ann Smithson-Featherstone", "ann@mail.example")
    # In bytes nothing says where a word begins.
    assert words.parts == ("Ann Smithson-Featherstone",)
    assert words.beginnings == ("ann@mail.exampl",)


def test_nobody_is_found_by_no_words() -> None:
    assert not Words().are_in("anything")
    assert Words().likes == []
    assert not names_person(parquet(note=["anything"]), Words())


def test_own_rows_and_those_of_others_are_told_apart() -> None:
    content = parquet(
        customer_id=[7, 8, 7], customer_name=["erased", "Ann", "Zoë"], email=[None, "ann@mail.example", None], batch=[1, 1, 1]
    )
    assert rows_of(content, SUBJECT) == (2, ["Zoë"])
    assert list(texts_of_others(content, SUBJECT, ["ANN@mail.example", "Bo"])) == ["ann@mail.example"]
    assert rows_of(parquet(customer_id=[7], country=["NL"]), SUBJECT) == (0, [])
    assert rows_of(b"no Parquet", SUBJECT) == (0, [])


@pytest.mark.parametrize(
    "column",
    [
        ["x", "for Zoë@ or zoe@mail.example"],
        [b"\xff zoe@mail.example"],
        [[{"feature": "zoe@mail.example", "contribution": 0.1}]],
        pa.array([[("zoe@mail.example", 1)]], pa.map_(pa.string(), pa.int64())),
    ],
)
def test_texts_of_parquet_are_searched_nested_ones_and_bytes_as_well(column: object) -> None:
    assert names_person(parquet(amount=[1.0] * len(column), column=column), ZOE)  # type: ignore[arg-type]


def test_statistics_of_values_that_are_gone_are_found() -> None:
    content = parquet(note=["who@mail.example"])
    assert not names_person(content, ZOE)
    before, _, after = content.rpartition(b"who@mail.example")
    assert names_person(before + b"zoe@mail.example" + after, ZOE)


def test_a_damaged_file_is_not_taken_for_clean() -> None:
    content = parquet(note=["other"])
    with pytest.raises(UnreadableError):
        names_person(content[:10] + b"\xff" * 100 + content[-8:], ZOE)


@pytest.mark.parametrize(("codec", "pack"), [(b"null", lambda block: block), (b"deflate", lambda block: zlib.compress(block)[2:-4])])
def test_bounds_in_avro_are_found_by_their_beginning(codec: bytes, pack: object) -> None:
    def bound(text: str) -> bytes:
        return avro(pack(b"\x08\x20" + text.encode() + b"\x00"), codec)  # type: ignore[operator]

    assert names_person(bound("zoe@mail.examplf"), ZOE)
    assert names_person(bound("zoe@mail.example"), ZOE)
    assert not names_person(bound("zoe@mail.other"), ZOE)


def test_avro_of_an_unknown_codec_is_not_taken_for_clean() -> None:
    with pytest.raises(WarehouseError, match="compressed by snappy, which cannot be searched"):
        names_person(avro(b"x", b"snappy"), ZOE)
