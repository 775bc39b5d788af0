"""The local Postgres: its cluster, roles, databases, and the schemas under `sql/`."""

from __future__ import annotations

import re
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import psycopg2.extensions
from psycopg2 import sql

from etl.databases import connect, password
from etl.errors import RefusedError
from etl.files import write
from etl.settings import ROOT, Role, settings
from etl.stack import machine

ROLES: tuple[Role, ...] = get_args(Role)
OWNERS: dict[str, Role] = {"bank": "bank", "metastore": "metastore", "warehouse": "etl", "mlflow": "mlflow"}


def folder() -> Path:
    """Data folder of the cluster."""
    return settings().data_dir / "postgres"


def ensure_secrets() -> None:
    """Write a password for each role that has none into the pgpass file: all of them at first, later those that are new."""
    path = settings().passfile
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    known = path.read_text() if path.exists() else ""
    if new := [role for role in ROLES if f":{role}:" not in known]:
        write(path, known + "".join(f"*:*:*:{role}:{secrets.token_urlsafe(24)}\n" for role in new), private=True)


def initialise() -> None:
    """Make the cluster where there is none; as root, it belongs to `postgres_os_user`.

    Raises
    ------
    RefusedError
        When initdb fails, with its own sentence.
    """
    data = folder()
    if (data / "PG_VERSION").exists() and (data / "postgresql.auto.conf").exists() and (data / "ready").exists():
        return
    # A cluster whose making was killed has no mark and holds nothing yet.
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True, mode=0o700)
    drop: dict[str, object] = {}
    if machine.is_root():
        user = settings().postgres_os_user
        machine.ensure_os_user(user)
        shutil.chown(data, user, user)
        if not machine.can_enter(user, data.parent):
            raise RefusedError(
                f"{data.parent} is out of reach for the system user {user}, as whom Postgres runs; "
                "set WAREHOUSE_DATA_DIR to a folder that every user may enter"
            )
        drop = {"user": user, "group": user, "extra_groups": []}
    # initdb reads the superuser's password from a file, which must be its own user's.
    password_file = data.with_name("postgres.password")
    write(password_file, password("postgres") + "\n", private=True)
    if machine.is_root():
        shutil.chown(password_file, settings().postgres_os_user)
    made = subprocess.run(
        [machine.postgres_bin() / "initdb", "-D", data, "-U", "postgres", "--auth=scram-sha-256",
         f"--pwfile={password_file}", "--encoding=UTF8", "--locale=C", "--data-checksums"],
        capture_output=True, text=True, check=False, cwd="/", **drop,  # type: ignore[call-overload]
    )  # fmt: skip
    password_file.unlink()
    if made.returncode:
        raise RefusedError(f"initdb failed in {data}: {made.stderr.strip().splitlines()[-1] if made.stderr else made.returncode}")
    with (data / "postgresql.auto.conf").open("a") as file:
        for name, value in PARAMETERS.items():
            file.write(f"{name} = '{value}'\n")
    with (data / "pg_hba.conf").open("a") as file:
        # Which addresses there are, the setting `host` says; whoever reaches one needs a password, the superuser comes from this machine.
        file.write("host all postgres samehost scram-sha-256\nhost all postgres all reject\nhost all all all scram-sha-256\n")
    (data / "ready").touch()


PARAMETERS = {
    "unix_socket_directories": "",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    # No replica follows the local server; minimal WAL loads faster.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_prepared_transactions": "10",
    # Each of the metastores holds up to forty.
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "jit": "off",
    "random_page_cost": "1.1",
    "password_encryption": "scram-sha-256",
}


def ensure_databases() -> None:
    """Make roles, databases and schemas where they are missing."""
    session = connect("postgres", "postgres")
    session.autocommit = True
    with session.cursor() as cursor:
        for role in ROLES[1:]:
            cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,))
            if cursor.fetchone() is None:
                cursor.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
            # Only the verifier travels, so no log of the server can hold the password.
            verifier = psycopg2.extensions.encrypt_password(password(role), role, session, "scram-sha-256")
            cursor.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(verifier)))
        for database, owner in OWNERS.items():
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database,))
            if cursor.fetchone() is None:
                cursor.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(database), sql.Identifier(owner)))
                cursor.execute(sql.SQL("REVOKE CONNECT, TEMPORARY ON DATABASE {} FROM PUBLIC").format(sql.Identifier(database)))
        cursor.execute("GRANT CONNECT ON DATABASE metastore TO metastore_reader")
        cursor.execute("GRANT CONNECT ON DATABASE bank TO extractor")
    session.close()
    apply_folder("bank")
    apply_folder("warehouse")


def apply_folder(database: str) -> None:
    """Run every file of `sql/<database>/` in the order of their names' prefix, as the role that its header names.

    A header line `-- Role: NAME` names the role; without it, the database's owner runs the file.
    """
    for path in sorted((ROOT / "sql" / database).glob("*.sql")):
        text = path.read_text(encoding="utf-8")
        named = re.search(r"^-- Role: +(\w+)", text, re.MULTILINE)
        role: Role = named[1] if named else OWNERS[database]  # type: ignore[assignment]
        session = connect(role, database)
        try:
            with session, session.cursor() as cursor:
                cursor.execute(text)
        finally:
            session.close()


def grant_metastore_reader() -> None:
    """Let the readers' metastore read the tables of the other one, and nothing else."""
    session = connect("metastore", "metastore")
    with session, session.cursor() as cursor:
        cursor.execute("GRANT USAGE ON SCHEMA public TO metastore_reader")
        cursor.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO metastore_reader")
    session.close()
