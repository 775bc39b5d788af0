"""What the stream job tells Prometheus, on `stream_metrics_port`."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from etl.databases import opened
from etl.errors import RefusedError
from etl.settings import settings
from etl.tables import declared_tables

ROWS = Counter("fraud_stream_rows_total", "Messages on the topic transactions by what became of them", ["outcome"])
ALERTS = Counter("fraud_stream_alerts_total", "Alerts told")
BATCH_SECONDS = Histogram(
    "fraud_stream_batch_seconds", "Time of a micro-batch from reading to telling", buckets=(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
)
LATENCY_SECONDS = Histogram(
    "fraud_stream_latency_seconds",
    "Time of a transaction from arrival to its messages",
    buckets=(0.1, 0.2, 0.5, 1, 1.5, 2, 3, 5, 10, 30, 60, 300),
)
TABLES_SECONDS = Histogram(
    "fraud_stream_tables_latency_seconds",
    "Time of a transaction from arrival to the tables",
    buckets=(1, 2, 5, 10, 12, 15, 20, 25, 30, 45, 60, 120, 300, 900),
)
TABLES_AT = Gauge("fraud_stream_tables_committed_timestamp_seconds", "When the tables last held all that was told until then")
LAG = Gauge("fraud_stream_lag", "Messages on the topic transactions that are not told yet")
GAPS = Counter("fraud_stream_gaps_total", "Gaps: the broker removed messages before a query read them", ["query", "topic"])
LOST = Counter("fraud_stream_lost_offsets_total", "Offsets within gaps, marks of transactions counted in", ["query", "topic"])
WATERMARK_AGE = Gauge("fraud_watermark_age_seconds", "Age of the moment up to which a table of the source is loaded", ["table"])


def serve() -> None:
    """Answer Prometheus in a thread of this process.

    Raises
    ------
    RefusedError
        When the port is taken.
    """
    here = settings()
    try:
        start_http_server(here.port("stream_metrics"), here.api_host)
    except OSError as error:
        raise RefusedError(
            f"port {here.port('stream_metrics')} (stream_metrics) cannot be opened: {error.strerror}; "
            "is another stream job at work? stop it, or set WAREHOUSE_PORT_OFFSET to shift every port of this stack"
        ) from error


def look_at_watermarks() -> None:
    """Read from the records of runs when the newest load of each table began that succeeded.

    Not from the batches: a load that finds nothing new publishes none, and a table that is seldom written would look neglected.
    """
    tables = list(declared_tables())
    with opened("etl", "warehouse") as session, session.cursor() as cursor:
        # The arguments of a run name its tables, all when they name none.
        cursor.execute(
            "WITH loads AS (SELECT started_at, string_to_array(arguments, ' ') AS words FROM ops.runs "
            "WHERE verb IN ('extract', 'load') AND state = 'succeeded') "
            "SELECT name, extract(epoch FROM clock_timestamp() - max(started_at))::float8 FROM unnest(%s) name JOIN loads "
            "ON words[1] IN ('full', 'incremental') AND (name = ANY(words) OR NOT words && %s) GROUP BY name",
            (tables, tables),
        )
        for table, age in cursor.fetchall():
            WATERMARK_AGE.labels(table).set(age)
