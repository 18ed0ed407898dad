"""The cases under protocols/vectors/ for `pytest.mark.parametrize`: a JSON file each, invalid ones named by the lie."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

VECTORS = Path(__file__).resolve().parent.parent / "protocols" / "vectors"


def vectors(page: str, *kinds: str) -> list[ParameterSet]:
    """Return the cases of a page ("merkle-1"), of all kinds or of those named; the test's id is the file's name."""
    files = sorted((VECTORS / page).glob("*.json"))
    cases = [(file.stem, json.loads(file.read_text())) for file in files]
    found = [pytest.param(case, id=name) for name, case in cases if not kinds or case["kind"] in kinds]
    if not found:  # a test over nothing would pass for ever
        raise ValueError(f"no vectors of kind {kinds} under {VECTORS / page}")
    return found
