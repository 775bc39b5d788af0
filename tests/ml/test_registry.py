"""Model files in a folder, and what is told of secrets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from etl.errors import RefusedError
from etl.settings import settings
from ml import registry
from ml.registry import SUM, ModelStoreError, Version, files_sum, read_files, write_files

FILES = {"model.json": b"{}", "part/data/part-00000.parquet": b"PAR1"}


@pytest.fixture(autouse=True)
def _settings_read_anew() -> Iterator[None]:
    yield
    settings.cache_clear()


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


def test_an_exported_champion_is_the_champion_of_whoever_names_its_folder(
    version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    registry.export(version, tmp_path / "image")
    monkeypatch.setenv("WAREHOUSE_MODEL_DIR", str(tmp_path / "image"))
    settings.cache_clear()
    found = registry.champion()
    assert found is not None
    assert (found.name, found.version, found.run_id, found.tags) == (version.name, version.version, version.run_id, version.tags)
    assert read_files(found) == FILES


def test_a_folder_without_a_manifest_is_no_exported_model(tmp_path: Path):
    with pytest.raises(ModelStoreError, match=r"manifest.json is not the manifest of an exported model"):
        registry.exported(tmp_path)


def test_nothing_is_exported_over_another_model(version: Version, tmp_path: Path):
    registry.export(version, tmp_path / "image")
    with pytest.raises(RefusedError, match="is not empty"):
        registry.export(version, tmp_path / "image")


def test_only_folders_and_hdfs_are_read():
    with pytest.raises(ModelStoreError, match="only folders and HDFS"):
        read_files(Version("card_fraud", 1, "s3://bucket/model", "run", {}))


def test_the_sum_tells_names_and_contents_apart():
    assert files_sum({"a": b"bc"}) != files_sum({"ab": b"c"})
    assert files_sum({"a": b"1", "b": b"2"}) == files_sum({"b": b"2", "a": b"1"})


def test_no_password_stands_in_the_tracking_address():
    uri = registry.tracking_uri()
    assert uri.startswith("postgresql+psycopg2://mlflow@")
    assert uri.endswith(f"?passfile={settings().passfile}")


def test_code_that_is_not_in_a_clone_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert len(registry.git_commit().removesuffix("-dirty")) == 40
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    assert registry.git_commit() == "unknown"
