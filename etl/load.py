"""Extract and take into core in one process, on sessions that are opened once: the whole load of one moment."""

from __future__ import annotations

import argparse

from etl import ops
from etl.extract import extract
from etl.log import logger, run_main
from etl.sql_server import session
from etl.tables import select_tables
from etl.transform import behind, transform


def main() -> None:
    """Parse the command line and load."""
    parser = argparse.ArgumentParser(prog="bash/load.sh", description=__doc__)
    parser.add_argument("kind", choices=("full", "incremental"))
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="declared tables; all of them by default")
    arguments = parser.parse_args()
    tables = select_tables(arguments.tables)
    with ops.run("load") as run:
        with session() as hive:
            published = extract(tables, arguments.kind, run, hive)
            # Where nothing was published, a killed run may still have left something to take.
            todo = tables if published else behind(hive, tables)
        # The largest first: the others fit beside it.
        rows = {batch.table: batch.row_count for batch in published}
        todo = sorted(todo, key=lambda table: rows.get(table.name, 0), reverse=True)
        taken = [one for one in transform(todo, run) if one.batches] if todo else []
        if not published and not taken:
            logger.info("nothing new")


if __name__ == "__main__":
    run_main(main)
