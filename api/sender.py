"""Messages to the broker from an event loop: sent is what the broker has acknowledged on every replica.

Acknowledgements are taken up in the loop itself, every millisecond while any is awaited. A thread of their own would take the
interpreter from the loop for each of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from api import broker
from api.problems import unavailable
from etl.log import logger

WAIT_MS = 5_000
"""How long a message may wait for its acknowledgement."""

MOST_WAITING = 50_000
"""Messages under way; more are refused, so that a slow broker does not fill the memory."""

POLL_SECONDS = 0.001
PROBE_SECONDS = 1.0
PROBE_WAIT_SECONDS = 3.0


class _Delivery:
    """The acknowledgements that one request awaits."""

    __slots__ = ("_sender", "at_ms", "done", "is_failed", "left")

    def __init__(self, count: int, sender: Sender) -> None:
        self.left, self.is_failed, self._sender, self.at_ms = count, False, sender, 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self.is_failed = True
        else:
            self.at_ms = max(self.at_ms, message.timestamp()[1])
        self._sender.depth -= 1
        self.left -= 1
        if not self.left and not self.done.done():
            self.done.set_result(None)


class Sender:
    """A producer of one topic."""

    def __init__(self, topic: str, configuration: dict[str, Any] | None = None) -> None:
        self._topic = topic
        self._loop = asyncio.get_running_loop()
        self._is_polling = False
        self.is_reached = False
        """Whether the broker answered the last time it was asked."""
        self.depth = 0
        """Messages whose acknowledgement is awaited."""
        self._configuration = {
            **broker.producer(),
            "linger.ms": 2,
            "message.timeout.ms": WAIT_MS,
            "queue.buffering.max.messages": 2 * MOST_WAITING,
            "queue.buffering.max.kbytes": 64 * 1024,
            "reconnect.backoff.max.ms": 1_000,
            "error_cb": self._note,
            **(configuration or {}),
        }
        self._producer = Producer(self._configuration)
        self._probing = self._loop.create_task(self._probe_for_ever())

    def _note(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._set_reached(False, error.name())

    def _set_reached(self, is_reached: bool, reason: str = "") -> None:
        if is_reached != self.is_reached:
            self.is_reached = is_reached
            if is_reached:
                logger.info("the broker answers", broker=broker.address())
            else:
                logger.warning("the broker is away; requests are refused until it answers", broker=broker.address(), reason=reason)

    async def probe(self) -> None:
        """Ask the broker for the topic."""
        try:
            told = await asyncio.to_thread(self._producer.list_topics, self._topic, PROBE_WAIT_SECONDS)
            topic = told.topics.get(self._topic)
            reason = "it does not know the topic yet" if topic is None else topic.error.name() if topic.error else ""
        except KafkaException as failed:
            reason = failed.args[0].name()
        self._set_reached(not reason, reason)

    async def _probe_for_ever(self) -> None:
        while True:
            try:
                await self.probe()
                self._take_up()
            except Exception as error:
                # Without it nobody would notice that the broker is back.
                logger.error("asking the broker failed: a defect", error=type(error).__name__)
            await asyncio.sleep(PROBE_SECONDS)

    def _start_polling(self) -> None:
        if not self._is_polling:
            self._is_polling = True
            self._loop.call_later(POLL_SECONDS, self._poll)

    def _take_up(self) -> None:
        """Take up acknowledgements, and another producer when this one is at its end."""
        try:
            self._producer.poll(0)
        except KafkaException as failed:
            # Fatal errors are raised here and nowhere else: a broker that lost the end of its log has other sequence numbers
            # than this producer, which takes nothing from then on.
            logger.error("the producer came to an end, another takes its place", reason=failed.args[0].name())
            self.is_reached = False
            lost, self._producer = self._producer, Producer(self._configuration)
            lost.purge()
            # Whoever waits is told that nothing was acknowledged; of what was purged nothing needs the broker.
            lost.flush(PROBE_WAIT_SECONDS)

    def _poll(self) -> None:
        self._take_up()
        self._is_polling = self.depth > 0
        if self._is_polling:
            self._loop.call_later(POLL_SECONDS, self._poll)

    async def send(self, messages: Sequence[tuple[bytes, bytes]]) -> int:
        """Send messages and return when the broker has acknowledged all of them.

        Parameters
        ----------
        messages
            Key and value.

        Returns
        -------
        int
            When the broker took the last of them, milliseconds since 1970: the time that it, and nobody else, gives them.

        Raises
        ------
        ProblemError
            503 when the broker is away or slow. Some of the messages may have been written, so whoever sends them
            again must be able to do so.
        """
        if not self.is_reached:
            raise unavailable("the broker is away; nothing was taken, send the same again")
        if self.depth + len(messages) > MOST_WAITING:
            raise unavailable("too much is waiting for the broker; nothing was taken, send the same again")
        delivery = _Delivery(len(messages), self)
        produce, topic = self._producer.produce, self._topic
        try:
            for key, value in messages:
                produce(topic, value, key, on_delivery=delivery)
                self.depth += 1
        except (BufferError, KafkaException):
            self._start_polling()
            raise unavailable("the broker is slow; not all was acknowledged, send the same again") from None
        self._start_polling()
        await delivery.done
        if delivery.is_failed:
            raise unavailable("the broker did not acknowledge in time; send the same again")
        return delivery.at_ms

    async def close(self) -> None:
        """Send what is under way, then stop."""
        self._probing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._probing
        if left := await asyncio.to_thread(self._producer.flush, WAIT_MS / 1000):
            logger.error("messages that no one was told about were not acknowledged", messages=left)
