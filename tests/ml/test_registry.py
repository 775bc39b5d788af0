"""Model files in a folder, and what is told of secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from etl.settings import settings
from ml import registry
from ml.registry import SUM, ModelStoreError, Version, files_sum, read_files, write_files

FILES = {"model.json": b"{}", "part/data/part-00000.parquet": b"PAR1"}


@pytest.fixture
def version(tmp_path: Path) -> Version:
    source = (tmp_path / "a folder" / "model").as_uri()
    write_files(source, FILES)
    return Version("card_fraud", 1, source, "run", {SUM: files_sum(FILES)})


def test_files_come_back_as_they_were_written(version: Version):
    assert read_files(version) == FILES


@pytest.mark.parametrize("path", ["model.json", "part/extra.pkl"])
def test_a_changed_or_added_file_is_refused(version: Version, tmp_path: Path, path: str):
    (tmp_path / "a folder" / "model" / path).write_bytes(b"changed")
    with pytest.raises(ModelStoreError, match="are not those that were registered"):
        read_files(version)


def test_missing_files_are_refused(version: Version):
    gone = Version(version.name, 1, version.source + "-gone", "run", version.tags)
    with pytest.raises(ModelStoreError, match="are not those that were registered"):
        read_files(gone)


def test_only_folders_and_hdfs_are_read():
    with pytest.raises(ModelStoreError, match="only folders and HDFS"):
        read_files(Version("card_fraud", 1, "s3://bucket/model", "run", {}))


def test_the_sum_tells_names_and_contents_apart():
    assert files_sum({"a": b"bc"}) != files_sum({"ab": b"c"})
    assert files_sum({"a": b"1", "b": b"2"}) == files_sum({"b": b"2", "a": b"1"})


def test_no_password_stands_in_the_tracking_address():
    uri = registry.tracking_uri()
    assert uri.startswith("postgresql+psycopg2://mlflow@")
    assert uri.endswith(f"?passfile={settings().secrets_dir / 'pgpass'}")


def test_code_that_is_not_in_a_clone_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert len(registry.git_commit().removesuffix("-dirty")) == 40
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    assert registry.git_commit() == "unknown"
