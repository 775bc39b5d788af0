"""A readers server with LDAP, TLS and small limits: who gets in, by what client, and what it ends."""

from __future__ import annotations

import os
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from pyhive import hive

from etl import sql_server
from etl.errors import RefusedError
from etl.settings import ROOT, settings
from etl.sql_server import StatementError
from etl.stack import jars, machine
from tests.ldap import USER_DN, ldap_server
from tests.readers import ENDLESS, environment, given, started

pytestmark = pytest.mark.slow

FOR_EVER_IN_ROWS = "SELECT a.id FROM range(100000000) AS a CROSS JOIN range(20000) AS b WHERE a.id * b.id % 7 = 30"
# Forty parts of about a second, each fetched by a job of its own.
FOR_EVER_IN_PARTS = "SELECT id FROM range(0, 40000000, 1, 40) WHERE sha2(cast(id AS string), 512) = 'x'"
TOO_LARGE = "SELECT id FROM range(100000000)"
COUNT = "SELECT count(*) FROM ops.access"


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One table on the stack, and a readers server of our own; yield the folder of certificates."""
    with sql_server.session() as loads:
        loads.run("CREATE TABLE IF NOT EXISTS ops.access (a int) USING iceberg")
        loads.run("INSERT OVERWRITE ops.access VALUES (1), (2), (3)")
    folder = tmp_path_factory.mktemp("access")
    certificates = folder / "certificates"
    subprocess.run([ROOT / "bash" / "certificates.sh", "readers", certificates], env=environment(), check=True, capture_output=True)
    password = folder / "password"
    password.write_text("correct-horse\n")
    with (
        ldap_server(folder, certificates / "readers.pem") as url,
        given(
            readers_authentication="ldap", readers_ldap_url=url, readers_ldap_user_dn=USER_DN,
            readers_ldap_ca_file=certificates / "ca.pem", readers_user="ana", readers_password_file=password,
            readers_tls_file=certificates / "readers.pem", readers_ca_file=certificates / "ca.pem",
            readers_query_seconds=5, readers_result_mb=1,
        ) as own,
        started(own),
    ):  # fmt: skip
        yield certificates
    with sql_server.session() as loads:
        loads.run("DROP TABLE ops.access")


@pytest.fixture
def password_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[object]:
    def become(user: str, password: str) -> None:
        (tmp_path / "other").write_text(password)
        monkeypatch.setenv("WAREHOUSE_READERS_USER", user)
        monkeypatch.setenv("WAREHOUSE_READERS_PASSWORD_FILE", str(tmp_path / "other"))
        settings.cache_clear()

    yield become
    monkeypatch.undo()
    settings.cache_clear()


def beeline(folder: Path, password: Path, *arguments: str, store: str) -> subprocess.CompletedProcess[str]:
    url = f"jdbc:hive2://localhost:{settings().port('readers')}/;ssl=true;sslTrustStore={store};trustStorePassword=certificates"
    return subprocess.run(
        [jars.SPARK_HOME / "bin" / "beeline", "-u", url, "-n", "ana", "-w", password, "--outputformat=csv2", "--silent=true", *arguments],
        env={**os.environ, "JAVA_HOME": str(machine.java_home()), "SPARK_HOME": str(jars.SPARK_HOME)},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_a_user_of_ldap_gets_in_by_bash_query() -> None:
    told = subprocess.run(
        [ROOT / "bash" / "query.sh", COUNT, "--format", "csv"], env=environment(), capture_output=True, text=True, check=False
    )
    assert (told.returncode, told.stdout.split()) == (0, ["count(1)", "3"]), told.stderr


def test_a_user_of_ldap_makes_a_table_of_their_own() -> None:
    with sql_server.session("readers") as readers:
        readers.run(f"CREATE TABLE sandbox.ana.access AS {COUNT}")
        assert readers.run("SELECT * FROM sandbox.ana.access") == [(3,)]
        readers.run("DROP TABLE sandbox.ana.access")


@pytest.mark.parametrize(
    ("user", "password"), [("ana", "wrong"), ("nobody", "correct-horse"), ("ana,ou=people", "correct-horse"), ("ana", "")]
)
def test_nobody_else_gets_in(password_of: object, user: str, password: str) -> None:
    password_of(user, password)  # type: ignore[operator]
    with pytest.raises(RefusedError, match=rf"does not let in {user}: LDAP knows no such user"), sql_server.session("readers"):
        pass


def test_a_client_without_tls_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Exception, match=r"TSocket|closed|reset|0 bytes"), sqlalchemy.create_engine(
        f"hive://ana:x@localhost:{settings().port('readers')}/", connect_args={"auth": "LDAP"}
    ).connect():  # fmt: skip
        pass


def test_another_servers_certificate_is_not_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    subprocess.run([ROOT / "bash" / "certificates.sh", "readers", tmp_path], env=environment(), check=True, capture_output=True)
    monkeypatch.setenv("WAREHOUSE_READERS_CA_FILE", str(tmp_path / "ca.pem"))
    settings.cache_clear()
    with pytest.raises(RefusedError, match=r"certificate of the readers SQL server at .* is not trusted"), sql_server.session("readers"):
        pass
    monkeypatch.undo()
    settings.cache_clear()


def test_a_statement_that_would_run_for_ever_is_ended_and_says_why() -> None:
    # All but the first one work while rows are fetched, where Spark's own time limit does not reach.
    for statement in (ENDLESS, FOR_EVER_IN_ROWS, FOR_EVER_IN_PARTS):
        for lifted in ({}, {"spark.sql.thriftServer.queryTimeout": "0s"}):
            with sql_server.session("readers", configuration=lifted) as readers, pytest.raises(
                StatementError, match=r"ran longer than 5 s \(readers_query_seconds\); ask for less"
            ):  # fmt: skip
                readers.run(statement)


def test_an_answer_that_is_too_large_is_ended_and_says_why() -> None:
    said = r"the answer is larger than 1 MB a task \(readers_result_mb\); ask for less"
    for collected in ("true", "false"):
        asked = {"spark.sql.thriftServer.incrementalCollect": collected}
        with sql_server.session("readers", configuration=asked) as readers, pytest.raises(StatementError, match=said):
            readers.run(TOO_LARGE)
    with sql_server.session("readers") as readers:
        assert readers.run(COUNT) == [(3,)]


def test_no_statement_reads_the_key_of_tls() -> None:
    store = settings().data_dir / "conf" / "readers_tls" / "readers.p12"
    for kind in ("binaryFile", "text"):
        with sql_server.session("readers") as readers, pytest.raises(StatementError, match=r"access denied|denied"):
            readers.run(f"CREATE TEMPORARY VIEW store USING {kind} OPTIONS (path 'file:{store}')")


def test_beeline_gets_in_over_tls(server: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "trust.p12")
    subprocess.run(
        [
            machine.java_home() / "bin" / "keytool", "-importcert", "-noprompt", "-alias", "readers", "-file", server / "ca.pem",
            "-keystore", store, "-storetype", "PKCS12", "-storepass", "certificates",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    assert settings().readers_password_file is not None
    told = beeline(server, settings().readers_password_file, "-e", COUNT, store=store)
    assert "count(1)\n3\n" in told.stdout, told.stderr[-2000:]
    (tmp_path / "wrong").write_text("wrong\n")
    assert "Error validating the login" in beeline(server, tmp_path / "wrong", "-e", COUNT, store=store).stderr


def test_sqlalchemy_gets_in_over_tls(server: Path) -> None:
    context = ssl.create_default_context(cafile=server / "ca.pem")

    def connect() -> hive.Connection:
        transport = sql_server.sasl_transport("localhost", settings().port("readers"), "ana", "correct-horse", context)
        return hive.connect(thrift_transport=transport, username="ana")

    engine = sqlalchemy.create_engine("hive://", creator=connect)
    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text(COUNT)).all() == [(3,)]
