"""Connections to Postgres: the source `bank` and the warehouse's own records."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg2

from etl.errors import RefusedError, UnavailableError
from etl.settings import Role, settings

if TYPE_CHECKING:
    from psycopg2.extensions import connection


def password(role: Role) -> str:
    """Return a role's password from the pgpass file.

    Raises
    ------
    RefusedError
        When the file has none for it.
    """
    path = settings().passfile
    for line in path.read_text().splitlines() if path.exists() else []:
        *_, user, secret = line.rsplit(":", 2)
        if user == role:
            return secret
    raise RefusedError(
        f"{path} has no password of the role {role}; bash/stack.sh up writes one for the local servers",
    )


def connect(role: Role, dbname: str, application_name: str = "warehouse") -> connection:
    """Open a connection with UTC as its time zone; the caller closes it.

    Raises
    ------
    UnavailableError
        When the server does not answer or refuses the role.
    """
    try:
        opened = psycopg2.connect(settings().dsn(role, dbname, application_name), connect_timeout=10)
    except psycopg2.OperationalError as error:
        raise UnavailableError(
            f"Postgres database {dbname} at {settings().postgres_host}:{settings().port('postgres')} refused role "
            f"{role}: {str(error).strip().splitlines()[-1]}; start it with bash/stack.sh up or correct the settings"
        ) from error
    with opened.cursor() as cursor:
        cursor.execute("SET TIME ZONE 'UTC'")
    opened.commit()
    return opened


@contextmanager
def opened(role: Role, dbname: str, application_name: str = "warehouse") -> Iterator[connection]:
    """Open a connection, commit at the end, roll back on an error, close in any case."""
    session = connect(role, dbname, application_name)
    try:
        with session:
            yield session
    finally:
        session.close()
