"""Settings: the file of passwords as libpq takes it, and the example that people copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from etl import databases
from etl.errors import RefusedError
from etl.settings import Settings
from etl.stack.servers import one_server


@pytest.mark.parametrize("mode", [0o644, 0o440, 0o604])
def test_a_mounted_secret_that_others_may_read_is_copied_for_its_user_alone(tmp_path: Path, mode: int):
    mounted = tmp_path / "mounted"
    mounted.write_text("*:*:*:etl:word\n")
    mounted.chmod(mode)
    used = Settings(data_dir=tmp_path / "data", pgpass_file=mounted).passfile
    assert used == tmp_path / "data" / "run" / "pgpass"
    assert (used.read_text(), used.stat().st_mode & 0o777) == ("*:*:*:etl:word\n", 0o600)


def test_a_private_file_is_used_as_it_is(tmp_path: Path):
    mounted = tmp_path / "mounted"
    mounted.write_text("*:*:*:etl:word\n")
    mounted.chmod(0o400)
    assert Settings(data_dir=tmp_path, pgpass_file=mounted).passfile == mounted


def test_a_role_without_a_password_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    given = tmp_path / "pgpass"
    given.write_text("*:*:*:etl:word\n")
    given.chmod(0o600)
    monkeypatch.setattr(databases, "settings", lambda: Settings(data_dir=tmp_path, pgpass_file=given))
    assert databases.password("etl") == "word"
    with pytest.raises(RefusedError, match="no password of the role bank"):
        databases.password("bank")


def test_a_server_that_does_not_exist_is_refused_with_the_names_of_those_that_do():
    with pytest.raises(RefusedError, match="there is no server namenod; servers are postgres, namenode"):
        one_server("namenod")
