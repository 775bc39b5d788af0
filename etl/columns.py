"""Columns on their way from Postgres to Parquet, Hive and core: types, what cannot be held, and the row hash.

The row hash is one definition computed alike in Postgres, Spark SQL and DuckDB; docs/extract.md writes it down.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from etl.errors import RefusedError

if TYPE_CHECKING:
    import pyarrow as pa

Dialect = Literal["postgres", "spark", "duckdb"]
Kind = Literal["integer", "decimal", "timestamptz", "timestamp", "date", "uuid", "text", "boolean", "real", "double", "bytes"]

# Postgres' binary timestamps count microseconds from 2000-01-01, the others from 1970-01-01.
POSTGRES_EPOCH_MICROSECONDS = 946_684_800_000_000
FIRST_MICROSECOND = -62_135_596_800_000_000  # 0001-01-01
LAST_MICROSECOND = 253_402_300_799_999_999  # 9999-12-31 23:59:59.999999
MAX_PRECISION = 38
# A call of a Postgres function takes no more than 100 arguments.
MAX_ARGUMENTS = 90
# Begins bytes as Postgres prints them; Spark's literals read a backslash as an escape.
SPARK_PREFIX, DUCKDB_PREFIX = r"'\\x'", r"'\x'"
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
# Columns that raw and core add; a source column of that name would be lost in them.
RESERVED = ("batch", "lane")

_SIMPLE: dict[str, tuple[Kind, str]] = {
    "int2": ("integer", "smallint"),
    "int4": ("integer", "int"),
    "int8": ("integer", "bigint"),
    "timestamptz": ("timestamptz", "timestamp"),
    "timestamp": ("timestamp", "timestamp"),
    "date": ("date", "date"),
    "uuid": ("uuid", "string"),
    "text": ("text", "string"),
    "varchar": ("text", "string"),
    "bpchar": ("text", "string"),
    "name": ("text", "string"),
    "json": ("text", "string"),
    "jsonb": ("text", "string"),
    "bool": ("boolean", "boolean"),
    "float4": ("real", "float"),
    "float8": ("double", "double"),
    "bytea": ("bytes", "binary"),
}


@dataclass(frozen=True)
class Column:
    """A column of a source table, as Postgres has it and as Hive gets it.

    Attributes
    ----------
    source_type
        Type as Postgres writes it, such as `numeric(12,2)`.
    kind
        What it is on the way: decides the cast, the hash and what is rejected.
    hive_type
        Type in HiveQL.
    is_nullable
        Whether Postgres allows NULL.
    is_array
        Whether it is a Postgres array, which arrives as a JSON array in a string.
    is_declared
        Whether precision and scale come from `decimals` in etl/tables.yaml, not from the column.
    """

    name: str
    source_type: str
    kind: Kind
    hive_type: str
    is_nullable: bool
    comment: str = ""
    is_array: bool = False
    precision: int = 0
    scale: int = 0
    is_declared: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return it as a manifest holds it."""
        return asdict(self)


def column(
    table: str,
    name: str,
    *,
    source_type: str,
    base_type: str,
    type_modifier: int = -1,
    category: str = "",
    is_enum: bool = False,
    is_nullable: bool = True,
    comment: str | None = None,
    decimals: str | None = None,
) -> Column:
    """Decide how a Postgres column travels.

    Parameters
    ----------
    table
        Qualified name, for the message.
    source_type
        Type as `format_type` writes it.
    base_type
        `pg_type.typname`, domains resolved.
    type_modifier
        `atttypmod`, domains resolved; -1 where there is none.
    category
        `pg_type.typcategory`; `A` is an array.
    decimals
        What etl/tables.yaml declares for a numeric, such as `decimal(20,6)`.

    Raises
    ------
    RefusedError
        When the column's type or name has no place in Hive.
    """

    def refuse(why: str) -> RefusedError:
        return RefusedError(f"{table}.{name} is {source_type}, and {why}")

    def made(kind: Kind, hive_type: str, **more: Any) -> Column:
        return Column(name, source_type, kind, hive_type, is_nullable, comment or "", **more)

    if not _NAME.fullmatch(name):
        raise refuse("Hive cannot hold its name as it is; rename it to lower-case letters, digits and underscores")
    if name in RESERVED:
        raise refuse(f"the warehouse adds a column named {name} itself; rename it in the source")
    if category == "A":
        return made("text", "string", is_array=True)
    if is_enum:
        return made("text", "string")
    if base_type == "numeric":
        return _numeric(made, refuse, type_modifier, decimals)
    if base_type in _SIMPLE:
        return made(*_SIMPLE[base_type])
    raise refuse("this type has no place in Hive; drop it from the table or cast it there to a supported one")


def _numeric(made: Callable[..., Column], refuse: Callable[[str], RefusedError], type_modifier: int, decimals: str | None) -> Column:
    if decimals is not None:
        found = re.fullmatch(r"decimal\((\d+), *(\d+)\)", decimals)
        if not found:
            raise refuse(f"etl/tables.yaml declares it as {decimals!r}; write decimal(p,s)")
        precision, scale = int(found[1]), int(found[2])
    elif type_modifier >= 4:
        # As numeric.c packs it; the scale is an 11-bit number with a sign since Postgres 15.
        packed = type_modifier - 4
        precision, scale = packed >> 16, ((packed & 0x7FF) ^ 1024) - 1024
    else:
        raise refuse("it has no precision; declare it under decimals in etl/tables.yaml, such as decimal(20,6)")
    if not (1 <= precision <= MAX_PRECISION and 0 <= scale <= precision):
        raise refuse("Hive holds decimals of up to 38 digits with a scale between 0 and that; declare it under decimals")
    return made(
        "decimal",
        f"decimal({precision},{scale})",
        precision=precision,
        scale=scale,
        is_declared=decimals is not None,
    )


def quoted(dialect: Dialect, name: str, alias: str = "") -> str:
    """Return a column's name as a dialect quotes it; names are lower-case letters, digits and underscores."""
    if not _NAME.fullmatch(name):
        raise RefusedError(f"{name!r} is not a name of lower-case letters, digits and underscores")
    mark = "`" if dialect == "spark" else '"'
    return f"{alias}.{mark}{name}{mark}" if alias else f"{mark}{name}{mark}"


# Decimals of so many digits fit 64 bits.
LONG_DIGITS = 18


def select_expression(column: Column) -> str:
    """Return what COPY reads of a column, so that Arrow receives it exactly."""
    name = quoted("postgres", column.name)
    if column.is_array:
        return f"to_json({name})::text AS {name}"
    if column.kind == "decimal":
        value = f"round({name}, {column.scale})" if column.is_declared else name
        if column.precision <= LONG_DIGITS:
            # Its own bytes (`etl.numerics`); cheaper than text or a whole number for Postgres, and than ADBC's own numeric here.
            return f"numeric_send({value}) AS {name}"
        # Postgres' text has the column's scale and never an exponent.
        return f"{value}::text AS {name}"
    if column.kind in ("text", "uuid"):
        return f"{name}::text AS {name}"
    if column.kind == "timestamp":
        return f"{name} AT TIME ZONE 'UTC' AS {name}"
    return name


def cannot_be_held(column: Column) -> tuple[str, str] | None:
    """Return the Postgres predicate that finds values which Hive or Parquet cannot hold, and the reason; or None."""
    name = quoted("postgres", column.name)
    if column.kind in ("timestamp", "timestamptz", "date"):
        kind = column.kind
        after = "10000-01-01 UTC" if kind == "timestamptz" else "10000-01-01"
        before = "0001-01-01 UTC" if kind == "timestamptz" else "0001-01-01"
        return (
            f"({name} < {kind} '{before}' OR {name} >= {kind} '{after}')",
            f"{kind} is infinite or outside the years 0001 to 9999",
        )
    if column.kind == "decimal" and not column.is_array:
        if not column.is_declared:
            return f"({name} = 'NaN'::numeric)", "numeric is NaN"
        limit = f"1e{column.precision - column.scale}::numeric"
        # NaN is greater than every number, so the comparison of absolute values finds it and the infinities as well.
        return (
            f"(abs({name}) >= {limit} OR {name} <> round({name}, {column.scale}))",
            f"numeric does not fit {column.hive_type}, or is NaN or infinite",
        )
    return None


def is_rejected(columns: Iterable[Column]) -> str:
    """Return the Postgres predicate of rows that cannot be held; it is never NULL."""
    predicates = [found[0] for column in columns if (found := cannot_be_held(column))]
    return f"(({' OR '.join(predicates)}) IS TRUE)" if predicates else "false"


def hash_expression(dialect: Dialect, columns: Sequence[Column], alias: str | dict[str, str] = "") -> str:
    """Return the row hash, a whole number of 60 bits, as a dialect computes it.

    Parameters
    ----------
    columns
        In the order of their hash; every side of a comparison uses the same order.
    alias
        Of the table, or by column where they come from two.
    """
    fields: list[str] = []
    for column in columns:
        qualifier = alias if isinstance(alias, str) else alias.get(column.name, "")
        fields += _FIELDS[dialect](column, quoted(dialect, column.name, qualifier))
    while len(fields) > MAX_ARGUMENTS:
        fields = [_joined(fields[at : at + MAX_ARGUMENTS]) for at in range(0, len(fields), MAX_ARGUMENTS)]
    text = _joined(fields)
    if dialect == "postgres":
        return f"('x' || md5({text}))::bit(60)::bigint"
    if dialect == "spark":
        return f"CAST(conv(substr(md5({text}), 1, 15), 16, 10) AS BIGINT)"
    return f"CAST('0x' || substr(md5({text}), 1, 15) AS BIGINT)"


def content_hash(dialect: Dialect, row_hash: str, only: str = "") -> str:
    """Return the aggregate that folds row hashes into the order-independent hash of their set: their sum, as text.

    Parameters
    ----------
    row_hash
        The row hash or, in Spark, the column of a subquery that holds it: java_method, which reads the bits of a float,
        may not stand inside an aggregate.
    only
        A predicate; other rows are left out.
    """
    condition = f" FILTER (WHERE {only})" if only else ""
    if dialect == "spark":
        return f"coalesce(CAST(sum(CAST({row_hash} AS DECIMAL(20,0))){condition} AS STRING), '0')"
    return f"coalesce(sum({row_hash}){condition}, 0)::{'text' if dialect == 'postgres' else 'varchar'}"


def outline_columns(dialect: Dialect, columns: Sequence[Column]) -> str:
    """Return the aggregates of a set of rows' outline.

    How many rows; of each column how many values, and the lowest and the highest or, of texts and bytes, how many bytes in
    all. Cheap beside the row hash. Outlines of parts add up: `joined_outlines`.
    """
    found = ["count(*) AS row_count"]
    for at, column in enumerate(columns):
        name = quoted(dialect, column.name)
        found.append(f"count({name}) AS c{at}_count")
        if column.kind in _MEASURED:
            length = "strlen" if dialect == "duckdb" and column.kind != "bytes" else "octet_length"
            found.append(f"CAST(coalesce(sum({length}({name})), 0) AS BIGINT) AS c{at}_bytes")
            continue
        for function, which in (("min", "least"), ("max", "greatest")):
            extreme = f"{function}({name})"
            if column.kind in ("real", "double"):
                # Which of the zeros comes first is chance.
                extreme = f"CAST({extreme} AS DOUBLE) + CAST(0 AS DOUBLE)"
            found.append(f"{extreme} AS c{at}_{which}")
    return ", ".join(found)


def joined_outlines(columns: Sequence[Column]) -> str:
    """Return the aggregates that join the outlines of parts, in DuckDB."""
    found = ["sum(row_count) AS row_count"]
    for at, column in enumerate(columns):
        found.append(f"sum(c{at}_count) AS c{at}_count")
        if column.kind in _MEASURED:
            found.append(f"sum(c{at}_bytes) AS c{at}_bytes")
        else:
            found += [f"min(c{at}_least) AS c{at}_least", f"max(c{at}_greatest) AS c{at}_greatest"]
    return ", ".join(found)


def outline_text(dialect: Dialect, columns: Sequence[Column]) -> str:
    """Return an outline as a text, the same in every dialect; values are written as the row hash writes them."""
    fields: list[str] = []
    for at, column in enumerate(columns):
        numbers = ["count", "bytes"] if column.kind in _MEASURED else ["count"]
        own = [f"CAST(c{at}_{which} AS {'STRING' if dialect == 'spark' else 'VARCHAR'})" for which in numbers]
        if column.kind not in _MEASURED:
            extremes = [replace(column, name=f"c{at}_{which}", is_nullable=True) for which in ("least", "greatest")]
            own += [field for one in extremes for field in _FIELDS[dialect](one, quoted(dialect, one.name))]
        fields.append(f"concat('{column.name} ', {_joined(own)})")
    return _joined(fields)


# Of these an outline has the bytes: to compare texts is dear in Spark.
_MEASURED = ("text", "uuid", "bytes")


def key_expression(dialect: Dialect, key: Sequence[str], alias: str = "", separator: str = "','") -> str:
    """Return a row's key as text; `separator` is an expression."""
    parts = [f"CAST({quoted(dialect, name, alias)} AS {'STRING' if dialect == 'spark' else 'text'})" for name in key]
    return parts[0] if len(parts) == 1 else f"concat_ws({separator}, {', '.join(parts)})"


def _joined(fields: list[str]) -> str:
    return f"concat_ws('|', {', '.join(fields)})"


def _or_empty(column: Column, text: str) -> str:
    return f"coalesce({text}, '')" if column.is_nullable else text


def _postgres_fields(column: Column, name: str) -> list[str]:
    """Return the fields of a column; concat_ws leaves out NULL, so only a text after its length -1 may be NULL."""
    value = name
    if column.kind == "text":
        # json as to_json writes it; char(n) without its padding; enums by their label.
        text = f"to_json({name})::text" if column.is_array else f"{name}::text"
        length = f"octet_length({text})"
        return [f"coalesce({length}, -1)" if column.is_nullable else length, text]
    if column.kind == "decimal":
        value = f"round({name}, {column.scale})" if column.is_declared else name
    elif column.kind in ("timestamptz", "timestamp"):
        value = f"{column.kind}_send({name})"
    elif column.kind == "date":
        value = f"({name} - date '1970-01-01')"
    elif column.kind == "boolean":
        value = f"{name}::text"
    elif column.kind in ("real", "double"):
        value = f"float8send(CASE WHEN {name} = 'NaN' THEN float8 'NaN' ELSE {name} END)"
    return [f"coalesce({value}::text, '')"] if column.is_nullable else [value]


def _spark_fields(column: Column, name: str) -> list[str]:
    if column.kind == "text":
        return [_length(column, f"CAST(octet_length({name}) AS STRING)"), name]
    if column.kind in ("timestamptz", "timestamp"):
        text = _spark_bits(f"unix_micros({name}) - {POSTGRES_EPOCH_MICROSECONDS}")
    elif column.kind == "date":
        text = f"CAST(unix_date({name}) AS STRING)"
    elif column.kind in ("real", "double"):
        bits = f"CAST(java_method('java.lang.Double', 'doubleToLongBits', CAST({name} AS DOUBLE)) AS BIGINT)"
        text = f"CASE WHEN {name} IS NOT NULL THEN {_spark_bits(bits)} END"
    elif column.kind == "bytes":
        text = f"{SPARK_PREFIX} || lower(hex({name}))"
    else:
        text = f"CAST({name} AS STRING)"
    return [_or_empty(column, text)]


def _duckdb_fields(column: Column, name: str) -> list[str]:
    if column.kind == "text":
        return [_length(column, f"CAST(strlen({name}) AS VARCHAR)"), name]
    if column.kind in ("timestamptz", "timestamp"):
        text = _duckdb_bits(f"epoch_us({name}) - {POSTGRES_EPOCH_MICROSECONDS}")
    elif column.kind == "date":
        text = f"CAST({name} - DATE '1970-01-01' AS VARCHAR)"
    elif column.kind in ("real", "double"):
        number = f"CASE WHEN isnan({name}) THEN 'NaN'::DOUBLE ELSE {name}::DOUBLE END"
        text = _duckdb_bits(f"({number})::BIT::BIGINT")
    elif column.kind == "bytes":
        text = f"{DUCKDB_PREFIX} || lower(hex({name}))"
    else:
        text = f"CAST({name} AS VARCHAR)"
    return [_or_empty(column, text)]


def _length(column: Column, length: str) -> str:
    return f"coalesce({length}, '-1')" if column.is_nullable else length


def _spark_bits(number: str) -> str:
    """Return a 64-bit number as Postgres prints its eight bytes; `||`, unlike concat, keeps NULL."""
    return f"{SPARK_PREFIX} || lower(lpad(hex({number}), 16, '0'))"


def _duckdb_bits(number: str) -> str:
    return rf"printf('\x%016x', {number})"


_FIELDS: dict[Dialect, Callable[[Column, str], list[str]]] = {
    "postgres": _postgres_fields,
    "spark": _spark_fields,
    "duckdb": _duckdb_fields,
}


def arrow_type(column: Column) -> pa.DataType:
    """Return the Arrow type that Parquet gets."""
    import pyarrow as pa

    if column.kind == "decimal":
        return pa.decimal128(column.precision, column.scale)
    if column.kind == "integer":
        return {"smallint": pa.int16(), "int": pa.int32(), "bigint": pa.int64()}[column.hive_type]
    return {
        "timestamptz": pa.timestamp("us", tz="UTC"),
        "timestamp": pa.timestamp("us", tz="UTC"),
        "date": pa.date32(),
        "uuid": pa.string(),
        "text": pa.string(),
        "boolean": pa.bool_(),
        "real": pa.float32(),
        "double": pa.float64(),
        "bytes": pa.binary(),
    }[column.kind]


def drift(table: str, before: Sequence[Column], now: Sequence[Column]) -> list[Column]:
    """Return the columns that are new since the last batch, all of them nullable.

    Raises
    ------
    RefusedError
        When a column is gone, has another type, or is new and may not be NULL.
    """
    known = {column.name: column for column in before}
    present = {column.name for column in now}
    next_step = "change it back, or drop raw and core of this table and load it in full"
    if gone := [name for name in known if name not in present]:
        raise RefusedError(f"{table}.{', '.join(gone)} is gone or renamed since the last batch; {next_step}")
    new = []
    for column in now:
        old = known.get(column.name)
        if old is None:
            if not column.is_nullable:
                raise RefusedError(f"{table}.{column.name} is new and NOT NULL: older rows have no value for it; {next_step}")
            new.append(column)
        elif (old.kind, old.hive_type, old.is_array) != (column.kind, column.hive_type, column.is_array):
            raise RefusedError(
                f"{table}.{column.name} is now {column.source_type} and was {old.source_type} in the last batch; {next_step}"
            )
    return new
