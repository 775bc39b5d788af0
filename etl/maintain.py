"""Maintenance: fold in small and delete files of the Iceberg tables, expire old snapshots; fold the stream's files of raw.events;
forget old notifications, remove old tables of the sandbox.

Snapshots that a tag names stay: the newest that took a batch, core's mark, is tagged before anything expires. A table to
which the stream writes has thousands of snapshots a day, each a line of the file that every commit writes anew: it keeps those of
the last hours, and of each day before the last one, by a tag.
"""

from __future__ import annotations

import argparse
import datetime as dt
import math

from etl import core, events, ops, sandbox
from etl.databases import opened
from etl.failures import Failures
from etl.log import logger, run_main
from etl.settings import settings
from etl.sql_server import Session, session

DATABASES = ("core", "feature", "mart")
NOTIFICATIONS = "ops.notifications"
PRUNE = """
DELETE FROM ops.notifications WHERE state IN ('sent', 'quiet') AND ended_at < clock_timestamp() - make_interval(secs => %s)
"""
STREAM_HOURS = 6.0
"""Age up to which all snapshots of a table stay to which the stream writes."""


def maintain(hive: Session, database: str, name: str, run: ops.Run, keep_days: float) -> None:
    """Compact one table and expire its snapshots older than `keep_days`, as its one writer."""
    full = f"{database}.{name}"
    now = dt.datetime.now(dt.UTC)
    before = now - dt.timedelta(days=keep_days)
    with ops.writer(core.lock_name(database, name), run, ops.WRITER_WAIT_SECONDS):
        if database == "core":
            tag(hive, name)
        if hive.run(f"SELECT 1 FROM {full}.snapshots WHERE summary['lane'] = 'stream' LIMIT 1"):
            before = max(before, now - dt.timedelta(hours=STREAM_HOURS))
            hive.run(f"ALTER TABLE {full} CREATE OR REPLACE TAG day_{now:%Y_%m_%d} RETAIN {max(1, math.ceil(keep_days))} DAYS")
        # The second option folds position deletes in even where no file is small.
        rewritten = hive.run(
            f"CALL spark_catalog.system.rewrite_data_files(table => '{full}', "
            "options => map('min-input-files', '5', 'delete-file-threshold', '1', 'partial-progress.enabled', 'false'))"
        )
        hive.run(f"CALL spark_catalog.system.rewrite_manifests(table => '{full}')")
        expired = hive.run(
            f"CALL spark_catalog.system.expire_snapshots(table => '{full}', "
            f"older_than => TIMESTAMP '{before:%Y-%m-%d %H:%M:%S}', retain_last => 3)"
        )
    logger.info(
        "maintained", table=full, files_rewritten=rewritten[0][0] if rewritten else 0, files_expired=expired[0][0] if expired else 0
    )


def tag(hive: Session, name: str) -> None:
    """Let the tag name the newest snapshot that took a batch; later ones of the stream or of compaction do not say it."""
    mark = core.marks(hive, [name]).get(name)
    if mark is not None:
        hive.run(f"ALTER TABLE core.{name} CREATE OR REPLACE TAG merged AS OF VERSION {mark.snapshot_id}")


def prune_notifications(keep_days: float) -> int:
    """Remove alerts that were sent, or kept quiet, so many days ago; dead letters stay for somebody to look at. Returns how many."""
    with opened("etl", "warehouse") as connection, connection.cursor() as cursor:
        cursor.execute(PRUNE, (keep_days * 86400,))
        return cursor.rowcount


def main() -> None:
    """Parse the command line and maintain every table; one that fails stops no other."""
    parser = argparse.ArgumentParser(prog="bash/maintain.sh", description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="DATABASE.TABLE", help="all by default")
    parser.add_argument("--keep-days", type=float, default=7.0, help="age up to which snapshots stay for time travel, days")
    arguments = parser.parse_args()
    failures = Failures()
    with ops.run("maintain") as run, session() as hive:
        for database in DATABASES:
            for name in sorted(core.existing(hive, database)):
                if not arguments.tables or f"{database}.{name}" in arguments.tables:
                    with failures.of(f"{database}.{name}"):
                        maintain(hive, database, name, run, arguments.keep_days)
        with failures.of(events.TABLE):
            if events.TABLE in (arguments.tables or [events.TABLE]) and events.TABLE.split(".")[1] in core.existing(hive, "raw"):
                events.maintain(hive, run)
        with failures.of(sandbox.CATALOG):
            if not arguments.tables:
                sandbox.expire(settings().sandbox_keep_days)
        with failures.of(NOTIFICATIONS):
            if NOTIFICATIONS in (arguments.tables or [NOTIFICATIONS]):
                logger.info("pruned", table=NOTIFICATIONS, rows=prune_notifications(settings().notifications_keep_days))
        failures.raise_all()


if __name__ == "__main__":
    run_main(main)
