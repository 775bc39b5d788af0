"""Commits that other writers win."""

from __future__ import annotations

import pytest

from etl import sql_server
from etl.sql_server import Session, StatementError

LOST = StatementError("org.apache.iceberg.exceptions.CommitFailedException: Table metadata refresh is required")


class Answers(Session):
    """A session that answers each statement with the next of some answers."""

    def __init__(self, *answers: StatementError | list[tuple[int]]) -> None:
        self.answers = list(answers)

    def run(self, statement: str) -> list[tuple[int]]:
        answer = self.answers.pop(0)
        if isinstance(answer, StatementError):
            raise answer
        return answer


def test_a_lost_commit_is_tried_again() -> None:
    session = Answers(LOST, LOST, [(1,)])
    assert session.commit("CALL x") == [(1,)]
    assert not session.answers


def test_a_commit_lost_again_and_again_is_an_error() -> None:
    session = Answers(*[LOST] * sql_server.ATTEMPTS, [(1,)])
    with pytest.raises(StatementError, match="refresh is required"):
        session.commit("CALL x")
    assert session.answers == [[(1,)]]


def test_another_error_is_not_tried_again() -> None:
    session = Answers(StatementError("PERMISSION DENIED"), [(1,)])
    with pytest.raises(StatementError, match="PERMISSION"):
        session.commit("CALL x")
    assert len(session.answers) == 1
