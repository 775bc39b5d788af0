"""`bash/demo.sh --realtime`: replay transactions through the API and show what became of them, and how fast.

Times are those of who reads the topics: from the moment the broker took a transaction to that in which its prediction, or its
alert, was read here.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
from confluent_kafka import Consumer, TopicPartition
from rich.table import Table as Screen

from api import broker
from api.lag import lags
from etl.errors import WarehouseError
from etl.log import run_main
from etl.screens import console
from etl.settings import ROOT, settings

PATIENCE_SECONDS = 300


class BehindError(WarehouseError):
    """The lane did not come to the end in time."""


class Watch(threading.Thread):
    """Reads predictions and alerts from now on, and how long each was under way."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seconds: dict[str, list[float]] = {broker.PREDICTIONS: [], broker.ALERTS: []}
        self._consumer = Consumer(broker.consumer("demo"))
        places = [
            TopicPartition(topic, partition)
            for topic in self.seconds
            for partition in self._consumer.list_topics(topic, 30).topics[topic].partitions
        ]
        for place in places:
            place.offset = self._consumer.get_watermark_offsets(place, 30)[1]
        self._consumer.assign(places)
        self._stop_now = threading.Event()

    def run(self) -> None:
        """Read until `end`."""
        while not self._stop_now.is_set():
            for message in self._consumer.consume(1000, 0.1):
                value = message.value()
                if value and not message.error():
                    received = dt.datetime.fromisoformat(json.loads(value)["received_at"])
                    self.seconds[str(message.topic())].append((dt.datetime.now(dt.UTC) - received).total_seconds())
        self._consumer.close()

    def end(self) -> None:
        """Stop reading."""
        self._stop_now.set()
        self.join()


def measures() -> dict[str, float]:
    """Return what the stream job tells Prometheus, by name with labels."""
    url = f"http://127.0.0.1:{settings().port('stream_metrics')}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}


def gained(before: dict[str, float], after: dict[str, float], name: str) -> int:
    """Return by how much a counter grew."""
    return int(after.get(name, 0) - before.get(name, 0))


def quantile_bound(before: dict[str, float], after: dict[str, float], name: str, share: float) -> str:
    """Return the bound of a histogram's bucket below which a share of what was observed in between lies."""
    buckets = {text.split('le="')[1].split('"')[0]: gained(before, after, text) for text in after if text.startswith(f"{name}_bucket")}
    total = gained(before, after, f"{name}_count")
    bound = next((bound for bound, count in buckets.items() if count >= share * total), "+Inf") if total else "-"
    return f"{'below ' if bound not in ('-', '+Inf') else ''}{bound}"


def wait_until_written() -> None:
    """Wait until all that arrived is told and in the tables.

    Raises
    ------
    BehindError
        When that takes too long.
    """
    until = time.monotonic() + PATIENCE_SECONDS
    while behind := sum(one.messages for one in lags()):
        if time.monotonic() > until:
            raise BehindError(f"{behind:,} messages are not in the tables after {PATIENCE_SECONDS} s; look at bash/stack.sh logs stream")
        time.sleep(0.5)


def show(before: dict[str, float], after: dict[str, float], watch: Watch) -> None:
    """Print what became of the transactions and how long it took."""
    rows = "fraud_stream_rows_total"
    screen = Screen(title="the real-time lane", title_justify="left")
    for column in ("", "transactions", "p50 s", "p95 s", "p99 s"):
        screen.add_column(column, justify="left" if not column else "right")
    outcomes = {name: gained(before, after, f'{rows}{{outcome="{name}"}}') for name in ("scored", "unscored", "rejected", "duplicate")}
    screen.add_row("arrived", f"{sum(outcomes.values()):,}", "", "", "")
    for label, topic in (("scored: message read", broker.PREDICTIONS), ("alerted: message read", broker.ALERTS)):
        seconds = watch.seconds[topic]
        quantiles = [f"{value:.2f}" for value in np.quantile(seconds, [0.5, 0.95, 0.99])] if seconds else ["-"] * 3
        screen.add_row(label, f"{len(seconds):,}", *quantiles)
    name = "fraud_stream_tables_latency_seconds"
    bounds = [quantile_bound(before, after, name, share) for share in (0.5, 0.95, 0.99)]
    screen.add_row("in the tables", f"{gained(before, after, f'{name}_count'):,}", *bounds)
    screen.add_row("known already", f"{outcomes['duplicate']:,}", "", "", "")
    screen.add_row("rejected", f"{outcomes['rejected']:,}", "", "", "")
    screen.add_row("left to batch scoring", f"{outcomes['unscored']:,}", "", "", "")
    console().print(screen)


def main() -> None:
    """Parse the command line, replay, and print the table."""
    parser = argparse.ArgumentParser(prog="bash/demo.sh --realtime", description=__doc__)
    parser.add_argument("--stream", type=Path, default=settings().data_dir / "demo" / "input" / "stream.csv", help="the stream CSV")
    parser.add_argument("--rate", type=float, default=200, help="transactions a second (200)")
    parser.add_argument("--to", choices=("api", "kafka"), default="api", help="where they go in (api)")
    parser.add_argument("--count", type=int, default=6000, help="at most so many (6000)")
    arguments = parser.parse_args()
    if not (settings().data_dir / "demo" / "progress.json").exists():
        subprocess.run([sys.executable, "-m", "etl.demo"], check=True)
    subprocess.run([ROOT / "bash" / "stack.sh", "up", "--realtime"], check=True)
    source = [str(arguments.stream)] if arguments.stream.exists() else ["--generate"]
    watch, before = Watch(), measures()
    watch.start()
    options = ["--rate", str(arguments.rate), "--to", arguments.to, "--count", str(arguments.count)]
    ran = subprocess.run([ROOT / "bash" / "stream_csv.sh", *source, *options], check=False)
    if ran.returncode:
        raise WarehouseError(f"bash/stream_csv.sh ended with exit code {ran.returncode}; its own sentence stands above")
    wait_until_written()
    watch.end()
    show(before, measures(), watch)


if __name__ == "__main__":
    run_main(main)
