"""The demo's folder; the demo itself is in tests/processes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from p2pnet.cli.demo import PREFIX, _folder
from p2pnet.ledger.lock import StateLock


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def left(temporary: Path, name: str, age_s: float) -> Path:
    folder = temporary / f"{PREFIX}{name}"
    (folder / "peer-0").mkdir(parents=True)
    then = folder.stat().st_mtime - age_s
    os.utime(folder, (then, then))
    return folder


def test_what_a_killed_demo_has_left_is_removed_by_the_next_one(temporary: Path) -> None:
    old, new, other = (
        left(temporary, "killed01", 100),
        left(temporary, "starts01", 0),
        left(temporary, "ownnames1", 100),
    )
    running = left(temporary, "runsnow1", 0)
    with StateLock(running):
        os.utime(running, (0, 0))
        with _folder(None) as made:
            assert made.name.startswith(PREFIX)
            assert [folder.exists() for folder in (old, new, other, running)] == [False, True, True, True]
    assert not made.exists()
