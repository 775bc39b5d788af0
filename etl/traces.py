"""Find what names a person in texts and in files: values of Parquet and the statistics beside them, bounds in Avro, anything else.

A person is named by the personal columns of a declared table. Values that somebody else has as well (a namesake, a shop), and very
short ones, prove nothing in a text: they are looked for in the person's own rows only.
"""

from __future__ import annotations

import functools
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from etl.errors import WarehouseError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SHORTEST = 5
"""Characters from which on a value is looked for in texts; shorter ones are part of too many words."""
BOUND = 15
"""So many characters of a text stand unchanged in Iceberg's bounds: it cuts them at 16 and may raise the last."""


class UnreadableError(Exception):
    """A file says that it is Parquet and is damaged."""


@dataclass(frozen=True)
class Subject:
    """Whose data are looked for in the files of one declared table.

    Attributes
    ----------
    key
        Name of the key's column, a whole number.
    identity
        The person's key.
    personal
        Names of the personal columns.
    erased
        What stands in place of an erased value that may not be NULL.
    """

    key: str
    identity: int
    personal: tuple[str, ...]
    erased: str


@dataclass(frozen=True)
class Words:
    """Values that name one person and nobody else; none of them is ever written anywhere.

    Attributes
    ----------
    values
        Looked for in texts, in whole words.
    parts
        Those that are no part of what others have, looked for in bytes of no known order.
    beginnings
        Of those values, as bounds have them, that nobody else's begin with.
    """

    values: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    beginnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Iterable[str], others: Others) -> Words:
        """Return of some values those that can be looked for in texts."""
        own = sorted(value for value in values if len(value) >= SHORTEST and value not in others.values)
        return cls(
            tuple(own),
            tuple(value for value in own if value not in others.parts),
            tuple(sorted({value[:BOUND] for value in own} - others.beginnings)),
        )

    @functools.cached_property
    def _wanted(self) -> tuple[str, ...]:
        return tuple({form.lower() for value in self.values for form in forms(value)})

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        found = sorted({form for value in self.values for form in forms(value)}, key=len, reverse=True)
        return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, found))})(?!\w)" if found else r"(?!)", re.IGNORECASE)

    @property
    def likes(self) -> list[str]:
        """Return patterns of LIKE that find, among others, each text that names the person; for texts in lower case."""
        # What lower() makes of other letters than ASCII's depends on the database's locale: any letter will do there.
        return [
            "%" + "".join(f"\\{one}" if one in "\\%_" else one.lower() if one.isascii() else "_" for one in form) + "%"
            for value in self.values
            for form in forms(value)
        ]

    def are_in(self, text: str) -> bool:
        """Tell whether a text names the person, in whole words."""
        # The pattern is slow, and nearly every text names nobody.
        small = text.lower()
        return any(form in small for form in self._wanted) and self._pattern.search(text) is not None

    def are_in_bytes(self, content: bytes) -> bool:
        """Tell whether bytes of no known order name the person; whatever stands before and after."""
        small = content.decode(errors="replace").lower()
        return any(form.lower() in small for value in self.parts for form in forms(value))

    def begin_in(self, content: bytes) -> bool:
        """Tell whether bytes hold the beginning of a value, as bounds do."""
        text = content.decode(errors="replace")
        return any(beginning in text for beginning in self.beginnings)

    def masked(self, text: str, erased: str) -> str:
        """Return a text without what names the person."""
        return self._pattern.sub(lambda _: erased, text)


@dataclass
class Others:
    """Which of some values somebody else has as well: whole, as a part of a longer one, or their beginning."""

    values: set[str] = field(default_factory=set)
    parts: set[str] = field(default_factory=set)
    beginnings: set[str] = field(default_factory=set)

    def add(self, texts: Iterable[str], values: Iterable[str]) -> None:
        """Take in texts of others."""
        words = {value: Words((value,)) for value in values}
        for text in texts:
            small = text.lower()
            self.values |= {value for value, own in words.items() if own.are_in(text)}
            self.parts |= {value for value in words if value.lower() in small}
            self.beginnings |= {value[:BOUND] for value in words if text.startswith(value[:BOUND])}


def forms(value: str) -> set[str]:
    """Return how a value may stand in a text: as it is, or within a string of JSON."""
    return {value, json.dumps(value, ensure_ascii=False)[1:-1], json.dumps(value)[1:-1]}


# Files -----------------------------------------------------------------------------------------------------------


def is_parquet(content: bytes) -> bool:
    """Tell whether a file is Parquet."""
    return content[:4] == b"PAR1" and content[-4:] == b"PAR1"


def names_person(content: bytes, words: Words) -> bool:
    """Tell whether a file names the person, whatever kind of file it is."""
    if is_parquet(content):
        return any(words.are_in("\0".join(texts)) for texts in _texts(content)) or words.are_in_bytes(_after_data(content))
    if content[:4] == b"Obj\x01":
        return any(words.are_in_bytes(block) or words.begin_in(block) for block in _blocks(content))
    return words.are_in_bytes(content)


def rows_of(content: bytes, subject: Subject) -> tuple[int, list[str]]:
    """Return how many rows of a Parquet file are the person's, and which values in them are not erased."""
    rows = _personal(content, subject)
    if rows is None:
        return 0, []
    import pyarrow.compute as pc

    own = rows.filter(pc.equal(rows[subject.key], subject.identity))
    cells = [cell for name in own.column_names if name != subject.key for cell in own[name].to_pylist()]
    return own.num_rows, [cell for cell in cells if cell is not None and cell != subject.erased]


def texts_of_others(content: bytes, subject: Subject, values: Iterable[str]) -> Iterator[str]:
    """Yield the personal values of everybody else in a Parquet file, as far as they hold the beginning of one of some values."""
    rows = _personal(content, subject)
    if rows is None:
        return
    import pyarrow as pa
    import pyarrow.compute as pc

    others = rows.filter(pc.not_equal(rows[subject.key], subject.identity))
    for name in others.column_names:
        if name != subject.key and pa.types.is_string(others[name].type):
            texts = pc.unique(others[name])
            for value in values:
                yield from texts.filter(pc.match_substring(texts, value[:BOUND], ignore_case=True)).to_pylist()


def _opened(content: bytes) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        raise UnreadableError from error


def _personal(content: bytes, subject: Subject) -> pa.Table | None:
    """Return key and personal columns of a Parquet file; None where it has none, as a file of deletes."""
    if not is_parquet(content):
        return None
    opened = _opened(content)
    names = [name for name in (subject.key, *subject.personal) if name in opened.schema_arrow.names]
    return opened.read(columns=names) if subject.key in names and len(names) > 1 else None


def _texts(content: bytes) -> Iterator[list[str]]:
    """Yield the texts of a Parquet file, bytes as if they were UTF-8; each once a row group."""
    opened = _opened(content)
    leaves = [opened.schema.column(at) for at in range(len(opened.schema))]
    paths = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type != "DECIMAL"]
    for group in range(opened.num_row_groups if paths else 0):
        for column in opened.read_row_group(group, columns=paths).columns:
            for chunk in column.chunks:
                for array in _flat(chunk):
                    yield [
                        value.decode(errors="replace") if isinstance(value, bytes) else value
                        for value in array.unique().to_pylist()
                        if value is not None
                    ]


def _flat(array: pa.Array) -> Iterator[pa.Array]:
    """Yield the arrays of texts in a nested one."""
    import pyarrow as pa

    if pa.types.is_map(array.type):
        yield from _flat(array.keys)
        yield from _flat(array.items)
    elif pa.types.is_nested(array.type):
        parts = array.flatten()
        for part in parts if isinstance(parts, list) else [parts]:
            yield from _flat(part)
    else:
        yield array


def _after_data(content: bytes) -> bytes:
    """Return what stands behind the pages of a Parquet file: their lowest and highest values, uncompressed."""
    found = _opened(content).metadata
    end = 4
    for group in (found.row_group(at) for at in range(found.num_row_groups)):
        for chunk in (group.column(at) for at in range(group.num_columns)):
            first = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
            end = max(end, first + chunk.total_compressed_size)
    return content[end:]


def _blocks(content: bytes) -> Iterator[bytes]:
    """Yield the blocks of an Avro container file, decompressed (Avro's specification, object container files)."""
    at = 4

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = content[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return (value >> 1) ^ -(value & 1)

    def some(length: int) -> bytes:
        nonlocal at
        at += length
        return content[at - length : at]

    header: dict[bytes, bytes] = {}
    while count := number():
        if count < 0:
            count = -count
            number()
        for _ in range(count):
            name = some(number())
            header[name] = some(number())
    codec = header.get(b"avro.codec", b"null").decode()
    if codec not in ("null", "deflate", "zstandard"):
        raise WarehouseError(f"an Avro file is compressed by {codec}, which cannot be searched; set write.avro.compression-codec to gzip")
    some(16)
    while at < len(content):
        number()
        block = some(number())
        some(16)
        if codec == "deflate":
            yield zlib.decompress(block, -15)
        elif codec == "zstandard":
            import pyarrow as pa

            yield pa.input_stream(pa.BufferReader(block), compression="zstd").read()
        else:
            yield block
