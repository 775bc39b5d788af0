"""Write the champion and its manifest into a folder, for the model image: what scores there is what was tested here."""

from __future__ import annotations

import argparse
from pathlib import Path

from etl.log import run_main
from ml import registry


def main() -> None:
    """Parse the command line, export, and print the version's number."""
    parser = argparse.ArgumentParser(prog="python -m ml.export", description=__doc__)
    parser.add_argument("folder", type=Path, help="an empty folder, or one that does not exist yet")
    folder = parser.parse_args().folder
    champion = registry.required_champion()
    registry.export(champion, folder)
    print(champion.version)


if __name__ == "__main__":
    run_main(main)
