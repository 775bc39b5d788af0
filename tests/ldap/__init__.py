"""A real LDAP server on this machine: UnboundID's, its people in memory."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from etl.settings import settings
from etl.stack import jars, machine

HERE = Path(__file__).parent
SUMS = HERE / "jars.sha256"
USER_DN = "uid=%s,ou=people,dc=bank,dc=example"
PEOPLE = """\
dn: dc=bank,dc=example
objectClass: domain
dc: bank

dn: ou=people,dc=bank,dc=example
objectClass: organizationalUnit
ou: people

dn: uid=ana,ou=people,dc=bank,dc=example
objectClass: inetOrgPerson
uid: ana
cn: Ana
sn: Lyst
userPassword: correct-horse
"""


@contextmanager
def ldap_server(folder: Path, certificate: Path) -> Iterator[str]:
    """Run a server with one user, ana, and a certificate (key and chain, PEM) for localhost; yield its address."""
    (jar,) = (settings().jars_dir / path for path in jars.listed(SUMS))
    if not jar.is_file():
        jars.fetch(settings().jars_dir, HERE / "ivy.xml", SUMS)
    jars.verify(settings().jars_dir, SUMS)
    people = folder / "people.ldif"
    people.write_text(PEOPLE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = folder / "ldap.p12"
    exported = ["openssl", "pkcs12", "-export", "-in", certificate, "-out", store, "-passout", "pass:certificates"]
    subprocess.run(exported, check=True, capture_output=True)
    main = "com.unboundid.ldap.listener.InMemoryDirectoryServerTool"
    command: list[str | Path] = [
        machine.java_home() / "bin" / "java",
        "-cp",
        jar,
        main,
        "--port",
        str(port),
        "--ldifFile",
        people,
        "--useDefaultSchema",
    ]
    command += ["--baseDN", "dc=bank,dc=example", "--noPropertiesFile"]
    command += ["--useSSL", "--keyStorePath", store, "--keyStorePassword", "certificates", "--keyStoreType", "PKCS12"]
    with (folder / "ldap.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            deadline = time.monotonic() + 60
            while not machine.answers("127.0.0.1", port):
                assert process.poll() is None, (folder / "ldap.log").read_text()[-2000:]
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield f"ldaps://localhost:{port}"
        finally:
            process.terminate()
