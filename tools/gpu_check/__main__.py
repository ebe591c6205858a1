"""``python -m tools.gpu_check``; see the package."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from helpers.base import LabError
from tools.gpu_check import run_check, run_piece
from tools.gpu_check.pieces import PIECES


def main() -> int:
    """Read the options, run the check; 1 when a piece failed, 2 refused."""
    parser = argparse.ArgumentParser(
        description="Measure on a GPU what only a GPU can tell."
    )
    parser.add_argument("--piece", action="append", choices=list(PIECES))
    parser.add_argument("--shape", choices=("true", "tiny"), default="true")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--force", action="store_true", help="run all again")
    parser.add_argument("--here", action="store_true", help="in this process")
    given = parser.parse_args()
    pieces = given.piece or []
    try:
        if given.here:
            for name in pieces:
                run_piece(name, given.out, given.shape)
            return 0
        failed = run_check(given.out, given.shape, pieces, force=given.force)
    except LabError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
