"""MLflow: runs, model versions, and the champion. A version's files are read as data, checked by their sum, never run.

The backend is the Postgres database `mlflow`; its password stays in the pgpass file. Files lie under the setting
`models_path`: a folder, or HDFS. MLflow's own loaders unpickle; they are not used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from etl.databases import opened
from etl.errors import RefusedError, WarehouseError
from etl.log import logger
from etl.settings import ROOT, settings
from etl.storage import storage
from ml.params import params

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

CHAMPION = "champion"
SUM = "files_sha256"


class NoChampionError(RefusedError):
    """No version is the champion yet."""


class ModelStoreError(WarehouseError):
    """A version's files are missing or are not those that were registered."""


@dataclass(frozen=True)
class Version:
    """A registered model version."""

    name: str
    version: int
    source: str
    run_id: str
    tags: dict[str, str]

    def __str__(self) -> str:
        return f"{self.name} version {self.version} ({self.tags.get('model', '?')})"


def tracking_uri() -> str:
    """Return the address of MLflow's backend; the password is in the file that it names."""
    here = settings()
    passfile = quote(str(here.passfile), safe="/")
    return f"postgresql+psycopg2://mlflow@{here.postgres_host}:{here.port('postgres')}/mlflow?passfile={passfile}"


@cache
def client() -> MlflowClient:
    """Connect to MLflow; the first call in a new database makes its tables.

    Raises
    ------
    UnavailableError
        When Postgres does not answer.
    """
    with opened("mlflow", "mlflow"):
        # Says in one sentence what SQLAlchemy says in fifty lines.
        pass
    # MLflow reports its use to its makers unless told not to, and looks for git by itself.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["GIT_PYTHON_REFRESH"] = "quiet"
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri(), tracking_uri())


@contextmanager
def tracked(run_name: str, tags: Mapping[str, object]) -> Iterator[str]:
    """Record an MLflow run; one that raises is marked as failed. Gives the run's id."""
    experiment = client().get_experiment_by_name(params().name)
    experiment_id = (
        experiment.experiment_id if experiment else client().create_experiment(params().name, artifact_location=settings().models_uri)
    )
    run = client().create_run(experiment_id, run_name=run_name, tags={key: str(value) for key, value in tags.items()})
    try:
        yield run.info.run_id
    except BaseException:
        try:
            client().set_terminated(run.info.run_id, "FAILED")
        except Exception as unrecorded:
            # What failed first is what somebody has to know.
            logger.warning("MLflow does not say that the run failed", reason=str(unrecorded))
        raise
    client().set_terminated(run.info.run_id)


def log(run_id: str, parameters: Mapping[str, object], metrics: Mapping[str, float]) -> None:
    """Write parameters and metrics of a run."""
    from mlflow.entities import Metric, Param
    from mlflow.utils.time import get_current_time_millis

    now = get_current_time_millis()
    client().log_batch(
        run_id,
        metrics=[Metric(key, value, now, 0) for key, value in metrics.items()],
        params=[Param(key, str(value)) for key, value in parameters.items()],
    )


def register(run_id: str, files: Mapping[str, bytes], tags: Mapping[str, object]) -> Version:
    """Store a run's model files and register them as a new version."""
    name = params().name
    source = f"{client().get_run(run_id).info.artifact_uri}/model"
    write_files(source, files)
    from mlflow.exceptions import MlflowException

    try:
        client().get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client().create_registered_model(name, description="Probability that a card transaction is fraud.")
    told = {key: str(value) for key, value in tags.items()} | {SUM: files_sum(files)}
    return _version(client().create_model_version(name, source, run_id, tags=told, await_creation_for=0))


def champion() -> Version | None:
    """Return the champion, or None; with the setting `model_dir`, the exported one, whatever the registry says by now.

    From MLflow's tables: to import its client takes three times as long as Spark needs to begin.
    """
    if folder := settings().model_dir:
        return exported(folder)
    with opened("mlflow", "mlflow") as session, session.cursor() as cursor:
        cursor.execute("SELECT to_regclass('registered_model_aliases')")
        if cursor.fetchall() == [(None,)]:
            # Nothing was ever tracked: `client` makes the tables.
            return None
        cursor.execute(_CHAMPION, {"name": params().name, "alias": CHAMPION})
        row = cursor.fetchone()
    return Version(*row) if row else None


_CHAMPION = """
SELECT v.name, v.version, v.source, v.run_id, coalesce(json_object_agg(t.key, t.value) FILTER (WHERE t.key IS NOT NULL), '{}')
FROM registered_model_aliases a
JOIN model_versions v USING (workspace, name, version)
LEFT JOIN model_version_tags t USING (workspace, name, version)
WHERE name = %(name)s AND a.alias = %(alias)s
GROUP BY 1, 2, 3, 4
"""


MANIFEST = "manifest.json"


def export(version: Version, folder: Path) -> None:
    """Write a version's files and its manifest into an empty folder; the manifest comes last."""
    files = read_files(version)
    if folder.exists() and any(folder.iterdir()):
        raise RefusedError(f"{folder} is not empty; name another folder, or remove it")
    write_files((folder / "files").resolve().as_uri(), files)
    (folder / MANIFEST).write_text(json.dumps(asdict(version), indent=1) + "\n")


def exported(folder: Path) -> Version:
    """Return the version that `export` wrote into a folder.

    Raises
    ------
    ModelStoreError
        When it holds none.
    """
    try:
        told = json.loads((folder / MANIFEST).read_text())
        return Version(**{**told, "source": (folder / "files").resolve().as_uri()})
    except (OSError, ValueError, TypeError) as error:
        raise ModelStoreError(f"{folder / MANIFEST} is not the manifest of an exported model: {error}; build the image again") from error


def required_champion() -> Version:
    """Return the champion.

    Raises
    ------
    NoChampionError
        When there is none.
    """
    found = champion()
    if found is None:
        raise NoChampionError(f"no version of model {params().name} is the champion yet; train one with bash/train.sh")
    return found


def registered(number: int) -> Version:
    """Return a version by its number.

    Raises
    ------
    RefusedError
        When there is none.
    """
    from mlflow.exceptions import MlflowException

    try:
        return _version(client().get_model_version(params().name, str(number)))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise RefusedError(f"model {params().name} has no version {number}; bash/status.sh names the champion") from error


def promote(version: Version) -> None:
    """Make a version the champion."""
    client().set_registered_model_alias(version.name, CHAMPION, str(version.version))


def _version(found: ModelVersion) -> Version:
    return Version(found.name, int(found.version), str(found.source), str(found.run_id), dict(found.tags))


def git_commit() -> str:
    """Return the commit of this code, `-dirty` where files were changed after it, `unknown` outside a clone."""
    if settings().git_commit:
        return settings().git_commit
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or "unknown"


# --- files -----------------------------------------------------------------------------------------------------------


def files_sum(files: Mapping[str, bytes]) -> str:
    """Return one SHA-256 over all paths and contents."""
    total = hashlib.sha256()
    for path, content in sorted(files.items()):
        total.update(f"{len(content)} {path}\n".encode())
        total.update(content)
    return total.hexdigest()


def _place(uri: str) -> tuple[str, str]:
    """Split an address into its kind (`file` or `hdfs`) and path."""
    parts = urlsplit(uri)
    if parts.scheme not in ("file", "hdfs", ""):
        raise ModelStoreError(f"model files at {uri}: only folders and HDFS are read; correct the setting models_path")
    return parts.scheme or "file", unquote(parts.path)


def write_files(uri: str, files: Mapping[str, bytes]) -> None:
    """Write files below a folder of this machine or of HDFS."""
    kind, folder = _place(uri)
    for path, content in files.items():
        if kind == "hdfs":
            storage().write(f"{folder}/{path}", content, overwrite=True)
        else:
            target = Path(folder, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def read_files(version: Version) -> dict[str, bytes]:
    """Read a version's files.

    Raises
    ------
    ModelStoreError
        When they are not those that were registered.
    """
    kind, folder = _place(version.source)
    files: dict[str, bytes] = {}
    if kind == "hdfs":
        if storage().status(folder, strict=False):
            for at, _, names in storage().walk(folder):
                for name in names:
                    with storage().read(f"{at}/{name}") as reader:
                        files[f"{at}/{name}".removeprefix(folder + "/")] = reader.read()
    else:
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
    if files_sum(files) != version.tags.get(SUM):
        raise ModelStoreError(
            f"the files of {version} at {version.source} are not those that were registered; restore them or train again with bash/train.sh"
        )
    return files
