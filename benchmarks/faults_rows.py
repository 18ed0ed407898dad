"""The faults of `faults.py`, each at a named moment of a round and on one role."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One fault, at one moment, of one role."""

    name: str
    role: str
    phase: str
    fault: str
    where: str = "loopback"  # or "lab", "disk", "clocks": the rows of one place share a swarm
    act: str = ""  # what this process does while the struck one waits; of a split, who is on the far side
    back: str = "start"  # how the struck one comes back: start, continue, mend, nothing


ROWS = (
    Row("member killed after its commit", "other", "commit", "kill"),
    Row("proposer killed before its roster", "proposer", "roster", "kill"),
    Row("proposer killed before its proposal", "proposer", "proposal", "kill"),
    Row("reducer killed in scatter", "reducer", "scatter", "kill"),
    Row("reducer frozen in reduce", "reducer", "reduce", "freeze", back="continue"),
    Row("reducer frozen in scatter", "reducer", "scatter", "freeze", back="continue"),
    Row("proposer frozen before its proposal", "proposer", "proposal", "freeze", back="continue"),
    Row("voter frozen in seal", "other", "seal", "freeze", back="continue"),
    Row("peer killed in apply", "other", "apply", "kill"),
    Row("daemon killed in gather", "other", "gather", "daemon", back="nothing"),
    Row("peer restarted in the round", "reducer", "reduce", "kill", act="restart", back="nothing"),
    Row("disk full in seal", "anybody", "seal", "wait", "disk", "fill", "space"),
    Row("one NaN among its values", "anybody", "", "nan", back="nothing"),
    Row("clock an hour ahead, another's an hour behind", "", "", "", "clocks", back="nothing"),
    Row("link of 1 Mbit/s", "anybody", "scatter", "wait", "lab", "throttle", "mend"),
    Row("one-way link: nothing it says arrives", "anybody", "scatter", "wait", "lab", "mute", "mend"),
    Row("half-open: cut, and nobody is told", "anybody", "scatter", "wait", "lab", "cut", "mend"),
    Row("two of four killed in scatter", "two others", "scatter", "kill"),
    Row("cut in two, three and one", "side", "", "split", "lab", "3"),
    Row("cut in two, two and two", "side", "", "split", "lab", "2 3"),
)
VICTIM = 2  # where the role is anybody's
