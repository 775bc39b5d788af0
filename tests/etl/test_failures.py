"""Parts that fail, and parts that are done all the same."""

from __future__ import annotations

import threading

import psycopg2
import pytest

from etl import streams
from etl.errors import BusyError, ReconciliationError, RefusedError, UnavailableError, WarehouseError
from etl.failures import Failures, SeveralError


def run(*errors: Exception | None) -> list[int]:
    done, failures = [], Failures()
    for part, error in enumerate(errors):
        with failures.of(f"part {part}"):
            if error:
                raise error
            done.append(part)
    failures.raise_all()
    return done


def test_every_part_is_tried_and_the_one_failure_is_raised_as_it_is() -> None:
    assert run(None, None) == [0, 1]
    error, done, failures = RefusedError("no"), [], Failures()
    for part in range(3):
        with failures.of(str(part)):
            if part == 1:
                raise error
            done.append(part)
    assert done == [0, 2]
    with pytest.raises(RefusedError) as found:
        failures.raise_all()
    assert found.value is error


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ((UnavailableError("a"), BusyError("b")), 4),
        ((UnavailableError("a"), RefusedError("b"), BusyError("c")), 3),
        ((RefusedError("a"), ReconciliationError("b")), 5),
        ((ReconciliationError("a"), WarehouseError("b")), 1),
        ((psycopg2.OperationalError("a"), UnavailableError("b")), 6),
    ],
)
def test_of_several_failures_all_are_named_and_the_gravest_is_the_exit_code(errors: tuple[Exception, ...], code: int) -> None:
    with pytest.raises(SeveralError) as found:
        run(*errors)
    assert found.value.exit_code == code
    assert all(f"part {part}: " in str(found.value) for part in range(len(errors)))


def test_a_defect_keeps_its_own_error() -> None:
    with pytest.raises(ZeroDivisionError):
        run(RefusedError("no"), ZeroDivisionError())


def test_no_thread_loads_a_library_when_an_extract_that_was_refused_ends() -> None:
    before = set(threading.enumerate())
    with pytest.raises(RefusedError), streams.loading_libraries():
        raise RefusedError("no")
    assert set(threading.enumerate()) == before
