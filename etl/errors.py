"""The base of this project's errors: one sentence that says what happened, to what, and what to do next."""

from __future__ import annotations


class WarehouseError(Exception):
    """Something that a person has to know; its text names what, where and what to do."""

    exit_code = 1


class RefusedError(WarehouseError):
    """A precondition does not hold; nothing was read or written."""

    exit_code = 3


class BusyError(RefusedError):
    """Another run holds this table."""

    exit_code = 4


class ReconciliationError(WarehouseError):
    """Source and warehouse differ."""

    exit_code = 5


class UnavailableError(WarehouseError):
    """A server does not answer; the same command can be run again."""

    exit_code = 6
