"""Many sessions at once, on either SQL server."""

from __future__ import annotations

import threading
import time
from typing import Literal

import pytest

from etl import sql_server


@pytest.mark.parametrize("server", ["loads", "readers"])
def test_many_sessions_at_once_are_all_opened_answered_and_closed(server: Literal["loads", "readers"]) -> None:
    answers: list[object] = []

    def one(number: int) -> None:
        with sql_server.session(server, user="reader") as session:
            answers.append(session.run("SHOW DATABASES LIKE 'raw'" if number % 2 else f"SELECT {number}"))

    # As daemons: a session that hangs must not keep the tests from ending.
    threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in range(40)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    assert not [thread for thread in threads if thread.is_alive()]
    assert sorted(map(str, answers)) == sorted(["[('raw',)]" if number % 2 else f"[({number},)]" for number in range(40)])
