"""Current state by key: which batches core holds (its mark), and the commits that take the next ones.

A commit carries the batch's number and run in the summary of its Iceberg snapshot, so that content and mark cannot
part: the mark is read from the snapshots, never from a second place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from etl.errors import WarehouseError
from etl.log import logger
from etl.settings import settings
from etl.sql_server import ATTEMPTS, Session, StatementError, is_conflict, literal
from etl.tables import Table, declared_tables, personal_of

SOURCE_TEMPLATES = "hive/source"
PROPERTY = "spark.sql.iceberg.snapshot-property"


@dataclass(frozen=True)
class Mark:
    """The newest batch that a core table holds, and the snapshot whose summary says so."""

    batch: int
    run_id: str
    snapshot_id: int


@dataclass(frozen=True)
class Target:
    """A core table that takes batches of a declared source table.

    Attributes
    ----------
    name
        Name in `core`.
    table
        The declared source table.
    columns
        Names of the columns that it takes from the batch.
    """

    name: str
    table: Table
    columns: tuple[str, ...]

    @property
    def is_streamed(self) -> bool:
        """Tell whether rows of the stream lane live here too."""
        return self.table.streamed


def targets(table: Table, columns: list[str]) -> list[Target]:
    """Return the core tables of a source table: its own, and one for its personal columns where it has any."""
    public = tuple(name for name in columns if name not in table.personal)
    found = [Target(table.name, table, public)]
    if table.personal:
        own = (*table.key, *table.personal, table.cursor)
        found.append(Target(personal_of(table.name), table, tuple(name for name in columns if name in own)))
    return found


def target_names(table: Table) -> list[str]:
    """Return the names of a source table's core tables."""
    return [table.name, *([personal_of(table.name)] if table.personal else [])]


def lock_name(database: str, name: str) -> str:
    """Return the name of the lock under which an Iceberg table is written: personal columns are under that of their table's."""
    owner = next((table.name for table in declared_tables().values() if database == "core" and name in target_names(table)), name)
    return f"{database}.{owner}"


def existing(hive: Session, database: str = "core") -> set[str]:
    """Return the names of a database's tables."""
    return {str(row[1]) for row in hive.run(f"SHOW TABLES IN {database}")}


def marks(hive: Session, names: list[str]) -> dict[str, Mark]:
    """Return the marks of core tables by name; a table that holds no batch yet has none."""
    present = existing(hive)
    # The newest commit that names a batch counts, not the highest number: a rebuild may start from an older full batch.
    parts = [
        f"(SELECT {literal(name)} AS name, CAST(summary['batch'] AS BIGINT) AS batch, summary['run'] AS run, snapshot_id "
        f"FROM core.{name}.snapshots WHERE summary['batch'] IS NOT NULL ORDER BY committed_at DESC LIMIT 1)"
        for name in names
        if name in present
    ]
    if not parts:
        return {}
    return {row[0]: Mark(int(row[1]), str(row[2]), int(row[3])) for row in hive.run(" UNION ALL ".join(parts))}


def mark(hive: Session, table: Table) -> Mark | None:
    """Return the mark up to which all core tables of a source table hold its batches, or None."""
    found = marks(hive, target_names(table))
    if len(found) < len(target_names(table)):
        return None
    return min(found.values(), key=lambda one: one.batch)


def highest_mark(hive: Session, table: Table) -> int:
    """Return the highest batch number that any core table of a source table holds, or 0."""
    return max((one.batch for one in marks(hive, target_names(table)).values()), default=0)


def ensure_table(hive: Session, target: Target, columns: dict[str, dict[str, Any]]) -> None:
    """Create a core table, or add the columns that the source has gained.

    Parameters
    ----------
    columns
        By name: `type` (HiveQL) and `comment` of every column of the batch.
    """
    wanted = [
        {"name": name, "type": columns[name]["type"], "comment": columns[name].get("comment") or name.replace("_", " ")}
        for name in target.columns
    ]
    if target.is_streamed:
        wanted.append({"name": "lane", "type": "string", "comment": "batch or stream: through which lane the row came"})
    if target.name not in existing(hive):
        hive.run_file(
            f"{SOURCE_TEMPLATES}/create_core.hql.j2",
            name=target.name,
            definitions=wanted,
            comment=f"Current state of {target.table.source}, by {', '.join(target.table.key)}",
            location=f"{settings().hdfs_uri}{settings().warehouse_path}/core/{target.name}",
        )
        return
    present = {str(row[0]) for row in hive.run(f"DESCRIBE core.{target.name}")}
    for column in wanted:
        if column["name"] not in present:
            logger.warning("new column", table=f"core.{target.name}", column=column["name"], type=column["type"])
            hive.run(f"ALTER TABLE core.{target.name} ADD COLUMN `{column['name']}` {column['type']} COMMENT {literal(column['comment'])}")


def has_streamed(hive: Session, target: Target) -> bool:
    """Tell whether a core table holds rows of the stream lane; it stays so while the table's lock is held."""
    return target.is_streamed and bool(hive.run(f"SELECT 1 FROM core.{target.name} WHERE lane = 'stream' LIMIT 1"))


def commit(hive: Session, target: Target, template: str, number: int, run_id: str, **parameters: object) -> None:
    """Run one statement whose Iceberg commit records the batch.

    A commit lost to another writer is tried again, after a look whether it was not ours that got through.

    Raises
    ------
    WarehouseError
        When the statement fails for another reason, or is lost again and again.
    """
    for attempt in range(1, ATTEMPTS + 1):
        hive.run(f"SET `{PROPERTY}.batch`={number}")
        hive.run(f"SET `{PROPERTY}.run`={run_id}")
        try:
            hive.run_file(
                f"{SOURCE_TEMPLATES}/{template}",
                name=target.name,
                published=target.table.name,
                key=list(target.table.key),
                columns=list(target.columns),
                is_streamed=target.is_streamed,
                **parameters,
            )
        except StatementError as error:
            found = marks(hive, [target.name]).get(target.name)
            if found and found.batch == number and found.run_id == run_id:
                break
            if attempt == ATTEMPTS or not is_conflict(error):
                raise WarehouseError(f"core.{target.name} did not take batch {number} and is as it was: {error}") from error
            logger.warning("commit lost to another writer, trying again", table=f"core.{target.name}", batch=number)
        else:
            break
        finally:
            hive.run(f"RESET `{PROPERTY}.batch`")
            hive.run(f"RESET `{PROPERTY}.run`")
