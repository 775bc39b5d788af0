"""Filters of the HQL templates, for sqlfluff (hive/.sqlfluff names this folder)."""

from etl.sql_server import literal

SQLFLUFF_JINJA_FILTERS = {"literal": literal}
