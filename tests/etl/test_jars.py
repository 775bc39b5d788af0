"""Sums of jars, computed on a copy of the folder."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest

from etl.errors import RefusedError
from etl.stack import jars

CONTENT = b"a jar"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of jars with sums, an unpacked archive and a PySpark of its own."""
    folder = tmp_path / "jars"
    for name in ("kafka/broker.jar", "metastore/a.jar"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(CONTENT)
    library = tmp_path / "hive" / "lib" / "hive.jar"
    library.parent.mkdir(parents=True)
    library.write_bytes(CONTENT)
    with tarfile.open(folder / "metastore" / "hive.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "hive", "hive")
    shutil.copytree(tmp_path / "hive", folder / "metastore" / "unpacked" / "hive")
    sums = tmp_path / "jars.sha256"
    names = ("kafka/broker.jar", "metastore/a.jar", "metastore/hive.tar.gz")
    sums.write_text("".join(f"{jars.digest(folder / name).hex()}  {name}\n" for name in names))
    monkeypatch.setattr(jars, "SUMS", sums)
    return folder


def test_jars_as_they_were_fetched_are_accepted(folder: Path) -> None:
    jars.verify(folder)


@pytest.mark.parametrize("name", ["kafka/broker.jar", "metastore/a.jar", "metastore/hive.tar.gz", "metastore/unpacked/hive/lib/hive.jar"])
def test_a_jar_that_changed_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(CONTENT + b"!")
    with pytest.raises(RefusedError, match=rf"{name}: not the file whose sum is known; remove .*, and run bash/setup.sh"):
        jars.verify(folder)


def test_a_jar_that_is_gone_is_named(folder: Path) -> None:
    (folder / "kafka/broker.jar").unlink()
    with pytest.raises(RefusedError, match=r"kafka/broker.jar: not the file"):
        jars.verify(folder)


def test_a_jar_that_nobody_listed_is_named(folder: Path) -> None:
    (folder / "kafka" / "extra.jar").write_bytes(CONTENT)
    with pytest.raises(RefusedError, match=r"kafka/extra.jar: not listed"):
        jars.verify(folder)


def test_a_jar_of_pyspark_that_changed_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = dict(jars.of_wheel())
    changed = next(iter(original))
    monkeypatch.setattr(jars, "of_wheel", lambda: iter({**original, changed: b"another"}.items()))
    with pytest.raises(RefusedError, match=rf"{changed.name}: not the file whose sum is known; remove .*, and run bash/setup.sh"):
        jars.verify(folder)
