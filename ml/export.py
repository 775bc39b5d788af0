"""Write a model version and its manifest into a folder, for the model image: what scores there is what was tested here."""

from __future__ import annotations

import argparse
from pathlib import Path

from etl.log import run_main
from ml import registry


def main() -> None:
    """Parse the command line, export, and print the version's number."""
    parser = argparse.ArgumentParser(prog="python -m ml.export", description=__doc__)
    parser.add_argument("folder", type=Path, help="an empty folder, or one that does not exist yet")
    parser.add_argument("--model-version", type=int, help="by default the champion's")
    arguments = parser.parse_args()
    version = registry.required_champion() if arguments.model_version is None else registry.registered(arguments.model_version)
    registry.export(version, arguments.folder)
    print(version.version)


if __name__ == "__main__":
    run_main(main)
