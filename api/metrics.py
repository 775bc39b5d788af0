"""What Prometheus asks for. Labels are routes, statuses and kinds of fault, never anything that came in."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Counters of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter("fraud_api_requests", "Requests answered", ["route", "method", "status"], registry=self.registry)
        self._seconds = Histogram(
            "fraud_api_request_seconds", "From a request's head to its answer's end", ["route"], buckets=SECONDS, registry=self.registry
        )
        self.accepted = Counter("fraud_api_transactions_accepted", "Transactions that the broker acknowledged", registry=self.registry)
        self.rejected = Counter(
            "fraud_api_transactions_rejected",
            "Transactions that were not valid; a body that was refused as a whole counts as one",
            registry=self.registry,
        )
        self._depth = Gauge("fraud_api_queue_depth", "Messages whose acknowledgement is awaited", registry=self.registry)
        self._reached = Gauge("fraud_api_broker_reached", "1 when the broker answered the last time it was asked", registry=self.registry)
        self.lag = Gauge(
            "fraud_api_stream_lag", "Messages that a query of the stream job has still before it", ["query"], registry=self.registry
        )
        self._children: dict[tuple[str, str, int], tuple[Callable[[], None], Callable[[float], None]]] = {}

    def watch(self, depth: Callable[[], int], is_reached: Callable[[], bool]) -> None:
        """Read two gauges when they are asked for."""
        self._depth.set_function(depth)
        self._reached.set_function(is_reached)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answer; `route` is the path as it is declared."""
        child = self._children.get((route, method, status))
        if child is None:
            child = (self._requests.labels(route, method, str(status)).inc, self._seconds.labels(route).observe)
            self._children[route, method, status] = child
        child[0]()
        child[1](seconds)

    def text(self) -> bytes:
        """Return all of it in Prometheus's format."""
        return generate_latest(self.registry)
