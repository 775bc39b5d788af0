"""The runner of pipelines: Groovy and JUnit by Ivy, its classes compiled once, builds in a workspace.

Usage: python -m tests.jenkins.runner PIPELINE [NAME=VALUE...]   (builds PIPELINE in this checkout, without Jenkins)
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from etl.settings import ROOT, settings
from etl.stack import jars, machine

HERE = Path(__file__).parent
SUMS = HERE / "jars.sha256"
# A start of seconds: nothing here runs long enough for the second compiler.
JAVA = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto")


def class_path(classes: Path) -> list[Path]:
    """Fetch what the runner needs, compile it into a folder, and return the class path of both."""
    folder = settings().jars_dir
    needed = [folder / path for path in jars.listed(SUMS)]
    if not all(jar.is_file() for jar in needed):
        jars.fetch(folder, HERE / "ivy.xml", SUMS)
    jars.verify(folder, SUMS)
    needed += jars.PYSPARK_JARS.glob("snakeyaml-[0-9]*.jar")
    compiled = java(needed, "org.codehaus.groovy.tools.FileSystemCompiler", "-d", classes, *sorted((HERE / "groovy").glob("*.groovy")))
    assert compiled.returncode == 0, compiled.stdout
    return [*needed, classes]


def java(found: Sequence[Path], *arguments: str | Path, cwd: Path = ROOT, is_shown: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a Java program; what it says, errors too, is in `stdout`, or shown."""
    command = [machine.java_home() / "bin" / "java", *JAVA, f"-Dproject={ROOT}", "-cp", os.pathsep.join(map(str, found)), *arguments]
    output = None if is_shown else subprocess.PIPE
    return subprocess.run(command, cwd=cwd, stdout=output, stderr=subprocess.STDOUT, text=True, env=environment())


def environment() -> dict[str, str]:
    """What an agent has: this process's environment, and the Python that runs here."""
    return {**os.environ, "WAREHOUSE_VENV": sys.prefix}


@dataclass
class Build:
    """How a build ended: its console, and each stage's result in order."""

    is_success: bool
    console: str
    archive: Path

    @property
    def stages(self) -> dict[str, str]:
        """Results by stage."""
        return dict(re.findall(r"^stage (.+): (SUCCESS|FAILURE|ABORTED|NOT_BUILT)$", self.console, re.MULTILINE))

    @property
    def failure(self) -> str:
        """What the post step says of the failure."""
        return (self.archive / "reports" / "failure.txt").read_text().strip()


def workspace(folder: Path) -> Path:
    """Make a checkout of this repository of links: what a build writes stays in it."""
    folder.mkdir()
    for entry in ROOT.iterdir():
        if entry.name not in ("var", "reports", ".git", ".venv"):
            (folder / entry.name).symlink_to(entry)
    return folder


def main() -> None:
    """Build a pipeline in this checkout; passwords are the local stack's."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    path, *given = sys.argv[1:]
    credentials = [
        f"credential:warehouse-pgpass={settings().passfile}",
        f"credential:kubeconfig={os.environ.get('KUBECONFIG', Path.home() / '.kube' / 'config')}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        classes, archive = class_path(Path(folder) / "classes"), Path(folder) / "archive"
        sys.exit(java(classes, "Main", path, ROOT, archive, str(int(time.time())), *credentials, *given, is_shown=True).returncode)


if __name__ == "__main__":
    main()
