from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pnet.cli.log import describe_round
from p2pnet.errors import WireError
from p2pnet.identity import peer_id_text
from p2pnet.ledger.log import Ledger
from p2pnet.node.content import MANIFEST_NAME
from p2pnet.wire.merkle import leaf_hash
from p2pnet.wire.round import Exclusion
from tests.cli.conftest import Run
from tests.cli.decided import MEMBERS, SWARM, VOTERS, decide, decide_wide, open_ledger

NAMES = [peer_id_text(peer) for peer in VOTERS]


@pytest.fixture
def ledger(home: Path) -> Iterator[Ledger]:
    """Open in this process all the while, as a running node's is."""
    with open_ledger(home / "s" / SWARM.hex()[:16]) as opened:
        yield opened


def test_decided_rounds_are_listed_while_the_node_runs(run: Run, ledger: Ledger) -> None:
    entries = [decide(ledger), decide(ledger, void=True), decide(ledger, sealers=3)]
    found = run("log", "--state-dir", "s", "--json").json
    assert (found["swarm"], found["decided"]) == (SWARM.hex(), 3)
    rounds = found["rounds"]
    assert [(one["round"], one["decided"], one["view"], one["members"], one["voters"]) for one in rounds] == [
        (0, "sealed", 1, 3, 2),
        (1, "void", 1, 0, 2),
        (2, "sealed", 1, 3, 3),
    ]
    assert [one["lineage"] for one in rounds] == [entry.lineage.hex() for entry in entries]
    lines = run("log", "--state-dir", "s").out.splitlines()
    assert [line.split()[:5] for line in lines if line.strip() and line.split()[0].isdigit()] == [
        ["0", "sealed", "1", "3", "2"],
        ["1", "void", "1", "0", "2"],
        ["2", "sealed", "1", "3", "3"],
    ]
    assert entries[2].lineage.hex()[:12] in lines[-1]


def test_the_latest_rounds_are_shown_unless_all_are_asked_for(run: Run, ledger: Ledger) -> None:
    for _ in range(23):
        decide(ledger)

    def shown(*options: object) -> list[int]:
        return [one["round"] for one in run("log", "--state-dir", "s", "--json", *options).json["rounds"]]

    assert shown() == list(range(3, 23))
    assert shown("--last", 2) == [21, 22]
    assert shown("--last", 0) == list(range(23))


def test_a_round_says_whom_it_excludes_and_for_which_evidence(run: Run, ledger: Ledger) -> None:
    decide(ledger)
    decide(ledger, excluded=(Exclusion(VOTERS[1], b"\x07" * 32),))
    rounds = run("log", "--state-dir", "s", "--json").json["rounds"]
    assert [one["excluded"] for one in rounds] == [[], [{"peer": NAMES[1], "evidence": "07" * 32}]]
    assert f"{NAMES[1]}, evidence {'07' * 32}" in run("log", 1, "--state-dir", "s").out
    assert "excluded" not in run("log", 0, "--state-dir", "s").out
    assert f"round 1 excludes {NAMES[1]}" in run("log", "--state-dir", "s").err


def test_one_round_is_shown_in_full(run: Run, ledger: Ledger) -> None:
    first, entry = decide(ledger), decide(ledger, samples=17)
    facts = run("log", 1, "--state-dir", "s", "--json").json
    assert facts["lineage_before"] == first.lineage.hex()
    assert facts["leaf_sha256"] == leaf_hash(entry.leaf()).hex()
    assert (facts["electorate"], facts["sealed_by"]) == (NAMES, NAMES[:2])
    assert [one["peer"] for one in facts["commits"]] == NAMES
    assert {one["samples"] for one in facts["commits"]} == {17}
    assert facts["parts"] == [
        {
            "part": 0,
            "reducer": NAMES[0],
            "inputs": {NAMES[0]: 256, NAMES[1]: 100, NAMES[2]: None},
            "root": "02" * 32,
        }
    ]
    shown = run("log", 1, "--state-dir", "s").out
    for text in ("1, sealed in view 1", "2 of 3", "256 100 -", "public", entry.lineage.hex(), "every signature"):
        assert text in shown


def test_a_void_round_has_no_roster(run: Run, ledger: Ledger) -> None:
    decide(ledger, void=True)
    facts = run("log", 0, "--state-dir", "s", "--json").json
    assert (facts["decided"], facts["commits"], facts["parts"], facts["electorate"]) == ("void", [], [], None)
    assert "0, void in view 1" in run("log", 0, "--state-dir", "s").out


def test_a_signature_that_is_wrong_is_named(ledger: Ledger) -> None:
    entry = decide(ledger)
    forged = entry.commits[0][:-1] + bytes([entry.commits[0][-1] ^ 1])
    for lie in (
        dataclasses.replace(entry, commits=(forged, *entry.commits[1:])),
        dataclasses.replace(entry, certificate=entry.certificate[:-1] + bytes([entry.certificate[-1] ^ 1])),
        dataclasses.replace(entry, certificate=decide(ledger, samples=1).certificate),
    ):
        with pytest.raises(WireError):
            describe_round(lie, None)
    with pytest.raises(WireError, match="was no voter"):
        describe_round(entry, (MEMBERS[0].peer,))


def test_the_founders_vote_in_the_first_round(run: Run, ledger: Ledger, home: Path) -> None:
    decide(ledger)
    assert "of voters that are not known here" in run("log", 0, "--state-dir", "s").out
    (ledger.path.parent / MANIFEST_NAME).write_bytes(b"another swarm")
    done = run("log", 0, "--state-dir", "s")
    assert (done.status, "not a valid manifest" in done.err) == (2, True)


def test_what_is_not_there_is_said(run: Run, ledger: Ledger, home: Path) -> None:
    assert "no round is decided yet" in run("log", "--state-dir", "s").out
    done = run("log", 7, "--state-dir", "s")
    assert (done.status, "round 7: not decided here" in done.err) == (2, True)
    done = run("log")
    assert (done.status, "no ledger there" in done.err) == (2, True)
    assert run("log", "--", "-1").status == 2


def test_a_round_of_many_groups_is_shown_with_its_groups_and_without_its_void_parts(run: Run, ledger: Ledger) -> None:
    entries = [decide(ledger), decide_wide(ledger)]
    short = run("log", "--state-dir", "s", "--json").json["rounds"]
    assert [(one["decided"], one["members"], one["voters"]) for one in short] == [("sealed", 3, 2), ("sealed", 3, 3)]
    found = run("log", 1, "--state-dir", "s", "--json").json
    assert (found["groups"], len(found["commits"])) == (2, 3)
    [part] = found["parts"]
    assert (part["reducer"], part["inputs_root"], part["root"]) == (NAMES[0], "06" * 32, "02" * 32)
    assert "reduced over 2 groups" in run("log", 1, "--state-dir", "s").out
    groups, column = entries[1].commits[:2], entries[1].commits[2]
    for wrong in ((*groups[::-1], column), (groups[0], column, column)):
        with pytest.raises(WireError):
            describe_round(dataclasses.replace(entries[1], commits=wrong), None)
