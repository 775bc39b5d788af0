"""Jars: fetched once by the Ivy that ships inside PySpark, checked against their committed sums."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from etl.errors import RefusedError
from etl.log import logger, run_main
from etl.screens import progress
from etl.settings import settings
from etl.stack import machine

HERE = Path(__file__).parent
SUMS = HERE / "jars.sha256"


def _spark_home() -> Path:
    # Found without importing it: that takes half a second.
    spec = importlib.util.find_spec("pyspark")
    if spec is None or spec.origin is None:
        # An image of Hadoop or the metastore has only those of PySpark's jars that it needs.
        return settings().jars_dir / "pyspark"
    return Path(spec.origin).parent


SPARK_HOME = _spark_home()
PYSPARK_JARS = SPARK_HOME / "jars"
NOT_FOR_READERS = (
    # Embedded databases, and what opens a database.
    "derby*", "leveldbjni*", "rocksdbjni*", "datanucleus*", "HikariCP*", "commons-dbcp*", "hive-jdbc*",
    # Ways to other servers and to other code.
    "hive-beeline*", "kubernetes-*", "spark-kubernetes*", "spark-connect*",
)  # fmt: skip
"""Jars of PySpark that are not on the readers server's class path: SQL must not find them, should it ever get to load a class."""


def listed(sums: Path = SUMS) -> dict[str, str]:
    """Return the committed sums by path below `jars_dir`."""
    return {path: digest for digest, path in (line.split() for line in sums.read_text().splitlines() if line)}


def ensure() -> None:
    """Fetch what is missing, unpack the metastore, compile what is our own; whatever it finds, every sum is computed again.

    Raises
    ------
    RefusedError
        When a file cannot be fetched or is not the one whose sum is committed.
    """
    folder = settings().jars_dir
    if missing := [path for path in listed() if not (folder / path).is_file()]:
        logger.info("jars: fetching", missing=len(missing), folder=str(folder))
        with progress("jars"):
            fetch(folder)
    verify(folder)
    if not readers_guard().is_dir():
        _compile("readers", [PYSPARK_JARS / "*", folder / "spark" / "*"], readers_guard())
    if not readers_home().is_dir():
        _link_readers_home(readers_home())
    if not loads_login().is_dir():
        _compile("loads", [PYSPARK_JARS / "*"], loads_login())
    if not hadoop_checks().is_dir():
        _compile("hadoop", hadoop_class_path(), hadoop_checks())
    unpacked = folder / "metastore" / "unpacked"
    if not unpacked.is_dir():
        archive = next((folder / "metastore").glob("*.tar.gz"))
        partial = unpacked.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(archive) as tar:
            # Python 3.11 has the filter from 3.11.4 on; the archive's sum is checked anyway.
            tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _path: member)
            tar.extractall(partial)  # noqa: S202
        # The folder appears whole or not at all, so a killed set-up is simply run again.
        partial.rename(unpacked)
    if not metastore_main().is_dir():
        _compile("metastore", metastore_class_path(), metastore_main())


def fetch(folder: Path, declaration: Path = HERE / "ivy.xml", sums: Path = SUMS) -> None:
    """Fetch what an Ivy file declares into a folder.

    Raises
    ------
    RefusedError
        When something that `sums` lists did not come.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ivy = next(PYSPARK_JARS.glob("ivy-*.jar"))
    pattern = f"{folder}/[conf]/[artifact]-[revision](-[classifier]).[ext]"
    ran = subprocess.run(
        [machine.java_home() / "bin" / "java", "-jar", ivy, "-ivy", declaration, "-retrieve", pattern],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ran.returncode or any(not (folder / path).is_file() for path in listed(sums)):
        (folder / "ivy.log").write_text(ran.stdout + ran.stderr)
        raise RefusedError(f"jars could not be fetched from Maven's central repository; see {folder / 'ivy.log'}, then run again")


def verify(folder: Path, sums: Path | None = None) -> None:
    """Compare jars with their committed sums, what is unpacked with its archive, and PySpark's with the sums of its wheel.

    Raises
    ------
    RefusedError
        Naming the files that are others, and those that nobody put there: a class path takes every jar of a folder.
    """
    known = {folder / path: bytes.fromhex(digest) for path, digest in listed(sums or SUMS).items()}
    _compare(known, folder)
    if sums is None:
        # Not before the archive itself is known to be the right one.
        of_packages = {**dict(_unpacked(folder)), **dict(of_wheel())}
        _compare(of_packages, folder)
        known |= of_packages
    if strange := [str(jar) for one in sorted({path.parent for path in known}) for jar in sorted(one.glob("*.jar")) if jar not in known]:
        raise RefusedError(f"{', '.join(strange)}: not listed, and every jar of that folder would be loaded; remove it")


def _compare(known: dict[Path, bytes], folder: Path) -> None:
    with ThreadPoolExecutor() as pool:
        computed = pool.map(digest, known)
        wrong = [path for path, one in zip(known, computed, strict=True) if one != known[path]]
    if wrong:
        again = " and ".join(sorted({str(_home(path, folder)) for path in wrong}))
        raise RefusedError(f"{', '.join(map(str, wrong))}: not the file whose sum is known; remove {again}, and run bash/setup.sh")


def _home(path: Path, folder: Path) -> Path:
    """Return what setup fetches, unpacks or installs again once it is gone."""
    if path.parent == PYSPARK_JARS:
        return Path(sys.prefix)
    return folder / "metastore" / "unpacked" if "unpacked" in path.parts else path


def _unpacked(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield path and sum of each jar of the archive that stands unpacked."""
    unpacked = folder / "metastore" / "unpacked"
    if unpacked.is_dir():
        with tarfile.open(next((folder / "metastore").glob("*.tar.gz"))) as tar:
            for member in tar:
                if member.name.endswith(".jar") and (content := tar.extractfile(member)) is not None:
                    yield unpacked / member.name, hashlib.sha256(content.read()).digest()


def of_wheel() -> Iterator[tuple[Path, bytes]]:
    """Yield path and sum of each jar of the installed PySpark; images leave out some of them, or the package."""
    try:
        files = importlib.metadata.files("pyspark") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        path = Path(str(file.locate()))
        if path.parent == PYSPARK_JARS and path.exists() and file.hash is not None:
            yield path, base64.urlsafe_b64decode(file.hash.value + "=")


def readers_guard() -> Path:
    """Folder of the readers server's limits, compiled: the name has the sum of their source and Spark's version."""
    return settings().jars_dir / "readers" / _compiled("guard", "readers", next(PYSPARK_JARS.glob("spark-core_*.jar")).name)


def readers_home() -> Path:
    """SPARK_HOME of the readers server: links to PySpark's programs and to the jars that the server needs."""
    chosen = f"{SPARK_HOME} {NOT_FOR_READERS} {next(PYSPARK_JARS.glob('spark-core_*.jar')).name}"
    return settings().jars_dir / "readers" / f"spark-{hashlib.sha256(chosen.encode()).hexdigest()[:12]}"


def _link_readers_home(target: Path) -> None:
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "jars").mkdir(parents=True)
    (partial / "bin").symlink_to(SPARK_HOME / "bin")
    for jar in PYSPARK_JARS.glob("*.jar"):
        if not any(jar.match(name) for name in NOT_FOR_READERS):
            (partial / "jars" / jar.name).symlink_to(jar)
    partial.rename(target)


def loads_login() -> Path:
    """Folder of the loads server's log-in, compiled; as `readers_guard`."""
    version = next(PYSPARK_JARS.glob("spark-core_*.jar")).name
    return settings().jars_dir / "loads" / _compiled("login", "loads", version)


def hadoop_checks() -> Path:
    """Folder of the checks before the calls of Hadoop's servers, compiled; as `readers_guard`."""
    version = next(PYSPARK_JARS.glob("hadoop-client-api-*.jar")).name
    return settings().jars_dir / "hadoop" / _compiled("checks", "hadoop", version)


def metastore_main() -> Path:
    """Folder of the program that starts a Hive Metastore, compiled; as `readers_guard`."""
    return settings().jars_dir / "metastore" / _compiled("main", "metastore", metastore_home().name)


def _sources(program: str) -> list[Path]:
    shared = ("peers",) if program in ("hadoop", "metastore") else ()
    folders = [HERE / "scala" / name for name in (*shared, program)]
    return [source for folder in folders for source in sorted(folder.glob("*.scala"))]


def _compiled(name: str, program: str, version: str) -> str:
    content = b"".join(source.read_bytes() for source in _sources(program))
    return f"{name}-{hashlib.sha256(content + version.encode()).hexdigest()[:12]}"


def _compile(program: str, class_path: list[Path], target: Path) -> None:
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    # The compiler comes with Spark, for its shell.
    compiler = os.pathsep.join(str(jar) for name in ("compiler", "reflect", "library") for jar in PYSPARK_JARS.glob(f"scala-{name}-*.jar"))
    ran = subprocess.run(
        [
            machine.java_home() / "bin" / "java", "-Xss4m", "-cp", compiler, "scala.tools.nsc.Main",
            "-cp", os.pathsep.join(map(str, class_path)), "-d", partial, *_sources(program),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ran.returncode:
        raise RefusedError(f"etl/stack/scala/{program} could not be compiled: {(ran.stdout + ran.stderr).strip()[-500:]}")
    partial.rename(target)


def copy_of_pyspark(server: str, folder: Path) -> None:
    """Copy the jars of PySpark that `hadoop` or `metastore` needs, for an image without PySpark."""
    wanted = hadoop_class_path() if server == "hadoop" else metastore_class_path()
    (folder / "jars").mkdir(parents=True)
    for jar in wanted:
        if jar.is_relative_to(PYSPARK_JARS):
            shutil.copy(jar, folder / "jars")


def digest(path: Path) -> bytes:
    """Return the SHA-256 of a file, and nothing for one that is not there."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except FileNotFoundError:
        return b""


def hadoop_class_path() -> list[Path]:
    """Class path of HDFS and YARN servers: our checks, the mini-cluster jar, client and logging jars of PySpark."""
    names = (
        "hadoop-client-api",
        "hadoop-client-runtime",
        "log4j-api",
        "log4j-core",
        "log4j-1.2-api",
        "log4j-slf4j2-impl",
        "slf4j-api",
        "jcl-over-slf4j",
        "scala-library",
    )
    return [
        hadoop_checks(),
        *(settings().jars_dir / "hadoop").glob("*.jar"),
        *(jar for name in names for jar in PYSPARK_JARS.glob(f"{name}-[0-9]*.jar")),
    ]


def metastore_home() -> Path:
    """Folder of the unpacked Hive Metastore.

    Raises
    ------
    RefusedError
        When it is not unpacked yet.
    """
    unpacked = settings().jars_dir / "metastore" / "unpacked"
    if not unpacked.is_dir():
        raise RefusedError(f"the jars in {settings().jars_dir} are not there yet; run bash/setup.sh")
    return next(unpacked.iterdir())


def metastore_class_path() -> list[Path]:
    """Class path of the Hive Metastore."""
    names = (
        "hadoop-client-api",
        "hadoop-client-runtime",
        "jcl-over-slf4j",
        "commons-cli",
        "commons-io",
        "commons-codec",
        "commons-configuration2",
        "commons-text",
        "scala-library",
    )
    own = settings().jars_dir / "metastore"
    return [
        metastore_main(),
        *own.glob("*.jar"),
        *(metastore_home() / "lib").glob("*.jar"),
        *(jar for name in names for jar in PYSPARK_JARS.glob(f"{name}-[0-9]*.jar")),
    ]


def spark_class_path() -> list[Path]:
    """Jars that Spark's drivers and executors need beside their own (never in `spark.jars`: see docs/operations)."""
    return sorted((settings().jars_dir / "spark").glob("*.jar"))


def kafka_class_path() -> list[Path]:
    """Class path of the Kafka broker and its tools."""
    return sorted((settings().jars_dir / "kafka").glob("*.jar"))


def stream_class_path() -> list[Path]:
    """Jars of Spark's Kafka source: on the class path of the stream job's driver, beside `spark_class_path`."""
    return sorted((settings().jars_dir / "stream").glob("*.jar"))


def main() -> None:
    """Fetch the jars; with `copy SERVER FOLDER`, copy those of PySpark that a server needs."""
    match sys.argv[1:]:
        case []:
            ensure()
        case ["copy", "hadoop" | "metastore" as server, folder]:
            copy_of_pyspark(server, Path(folder))
        case _:
            raise RefusedError("usage: python -m etl.stack.jars [copy hadoop|metastore FOLDER]")


if __name__ == "__main__":
    run_main(main)
