"""Labelled cases and benchmarks that are kept outside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from helpers.base import REPO_ROOT


def outside(part: str) -> Path:
    """Return a folder of outside data, or skip with the reason."""
    root = os.environ.get("MATHSLM_SHARED")
    base = Path(root) if root else REPO_ROOT.parent / "shared"
    folder = base / part
    if not folder.is_dir():
        pytest.skip(f"no {part} in MATHSLM_SHARED or beside the repository")
    return folder
