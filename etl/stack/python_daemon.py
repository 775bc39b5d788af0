"""Starts PySpark's worker daemon without archives on Python's path.

Spark puts its own zip and jar files on the path of its workers. Each task lets Python forget what it knows of the path,
and Python 3.11 reads an archive's directory again at once, for every package that came from it: 0.4 s a task. The same
modules lie in the environment, as files.
"""

import os
import sys

ARCHIVES = (".zip", ".jar")


def forget_archives() -> None:
    """Take archives off the path of this process, and of those that it starts."""
    sys.path[:] = [path for path in sys.path if not path.endswith(ARCHIVES)]
    for path in [path for path in sys.path_importer_cache if any(archive in path for archive in ARCHIVES)]:
        del sys.path_importer_cache[path]
    kept = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if not path.endswith(ARCHIVES)]
    os.environ["PYTHONPATH"] = os.pathsep.join(kept)


if __name__ == "__main__":
    forget_archives()
    from pyspark import daemon

    daemon.manager()
