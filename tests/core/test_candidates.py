from __future__ import annotations

from dataclasses import replace

import pytest

from p2pnet.core.candidates import Candidates
from p2pnet.core.events import Audit, Gather, Hold, Note
from p2pnet.errors import WireError
from p2pnet.wire.codec import encode
from p2pnet.wire.round import Exclusion, Outcome, Reduced, roster_digest
from p2pnet.wire.signing import Signed
from tests.core.voters import commit, context, genesis, peer, peers, signed

STATE = genesis(4)
VOTERS = peers(4)
COMMITS = tuple(commit(STATE, each) for each in VOTERS)
DIGEST = roster_digest(tuple(each.raw for each in COMMITS))
PARTS = STATE.parts(COMMITS, 0)


def reduced(place: int, **changed: object) -> Signed[Reduced]:
    part = PARTS[place]
    message = Reduced(
        STATE.swarm, 0, 0, part.index, part.start, part.stop, DIGEST, (257,) * 4, bytes([place]) * 32, b"n" * 32
    )
    return signed(replace(message, **changed), part.reducer)  # type: ignore[arg-type]


REDUCED = tuple(reduced(place).raw for place in range(len(PARTS)))
OUTCOME = STATE.outcome(DIGEST, 0, REDUCED, COMMITS, b"")


def candidates(audits: bool = True) -> Candidates:
    return Candidates(context(VOTERS[0], audits), STATE, 0.0)


def adopt(found: Candidates, outcome: Outcome, commits: tuple[Signed[object], ...] = COMMITS) -> object:
    return found.adopt(encode(outcome), outcome, commits)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lie", "rule"),
    [
        ({"swarm": b"?" * 32}, "R40"),
        ({"round": 1}, "R40"),
        ({"lineage": b"?" * 32}, "R40"),
        ({"roster": b"?" * 32}, "R41"),
        ({"roster": b""}, "R41"),
        ({"reduced": REDUCED[:-1]}, "R42"),
        ({"reduced": REDUCED[::-1]}, "R42"),
        ({"view": 1}, "R42"),
        ({"reduced": (signed(reduced(0).message, VOTERS[0] if PARTS[0].reducer != VOTERS[0] else VOTERS[1]).raw,
                      *REDUCED[1:])}, "R31"),
        ({"reduced": (reduced(0, inputs=(257,)).raw, *REDUCED[1:])}, "R32"),
        ({"reduced": (b"garbage", *REDUCED[1:])}, "wire-1"),
        ({"electorate": tuple(VOTERS[:1])}, "R43"),
        ({"beacon": b"?" * 32}, "R43"),
        ({"reduced": (reduced(0, stop=PARTS[0].stop + 1).raw, *REDUCED[1:])}, "R42"),
        ({"excluded": (Exclusion(VOTERS[1], b"e" * 32),)}, "R43"),  # the electorate would have to follow
        ({"excluded": (Exclusion(VOTERS[1], b"e" * 32), Exclusion(VOTERS[0], b"e" * 32))}, "R47"),
        ({"excluded": (Exclusion(VOTERS[1], b"e" * 32), Exclusion(VOTERS[1], b"f" * 32))}, "R47"),
        ({"excluded": (Exclusion(peer(99), b"e" * 32),)}, "R47"),
        ({"excluded": tuple(Exclusion(voter, b"e" * 32) for voter in VOTERS)}, "R47"),
    ],
)  # fmt: skip
def test_an_outcome_that_does_not_follow_is_refused(lie: dict[str, object], rule: str) -> None:
    if rule == "R31" and {PARTS[0].backup} & set(VOTERS[:2]):
        author = next(each for each in VOTERS if each not in (PARTS[0].reducer, PARTS[0].backup))
        lie = {"reduced": (signed(reduced(0).message, author).raw, *REDUCED[1:])}
    with pytest.raises(WireError, match=rule):
        adopt(candidates(), replace(OUTCOME, **lie))  # type: ignore[arg-type]


def test_void_has_no_view_and_no_parts() -> None:
    void = STATE.outcome(b"", 0, (), (), b"")
    assert adopt(candidates(), void, ())
    for lie in ({"view": 1}, {"reduced": REDUCED[:1]}):
        with pytest.raises(WireError):
            adopt(candidates(), replace(void, **lie), ())  # type: ignore[arg-type]


def test_what_is_missing_is_asked_for_once_and_again_after_a_failure() -> None:
    found = candidates()
    candidate = found.adopt(encode(OUTCOME), OUTCOME, COMMITS)
    gathers = found.gather(candidate, [], (), 0.0)
    assert [effect.root for effect in gathers if isinstance(effect, Gather)] == list(candidate.roots)
    assert all(VOTERS[0] not in effect.sources for effect in gathers if isinstance(effect, Gather))
    assert found.gather(candidate, [], (), 0.0) == []
    assert found.again_s(candidate, ()) is None
    found.gather_failed(candidate.roots[0], 2.0)
    assert found.again_s(candidate, ()) == 2.0
    assert found.gather(candidate, [], (), 1.9) == []
    assert len(found.gather(candidate, [], (), 2.0)) == 1


def test_a_part_that_nobody_has_is_lost_until_somebody_gives_it() -> None:
    found = candidates()
    candidate = found.adopt(encode(OUTCOME), OUTCOME, COMMITS)
    assert not found.lost(candidate)
    found.gather_failed(candidate.roots[0], 2.0)
    assert found.lost(candidate)
    found.hold(candidate.roots[0])
    assert not found.lost(candidate)


def test_what_comes_on_a_stream_of_ours_is_not_fetched_twice() -> None:
    found = candidates()
    candidate = found.adopt(encode(OUTCOME), OUTCOME, COMMITS)
    assert found.gather(candidate, [], candidate.roots, 0.0) == []
    assert found.again_s(candidate, candidate.roots) is None


def test_an_audit_draws_a_leaf_of_the_part_and_is_asked_for_once() -> None:
    found = candidates()
    candidate = found.adopt(encode(OUTCOME), OUTCOME, COMMITS)
    audit = found.audit(candidate)[0]
    assert isinstance(audit, Audit)
    assert 0 <= audit.leaf < audit.part.stop - audit.part.start
    assert found.audit(candidate) == []
    lies, effects = found.audited(audit.root, False)
    assert lies == [candidate]
    assert isinstance(effects[0], Note)
    assert effects[0].peers == (candidate.reduced[audit.part.index].peer,)
    assert not candidate.audited
    assert found.result() is None


def test_what_is_checked_is_held_with_all_that_it_takes_to_serve_it() -> None:
    found = candidates(audits=False)
    candidate = found.adopt(encode(OUTCOME), OUTCOME, COMMITS)
    for root in candidate.roots:
        found.hold(root)
    assert found.missing(candidate) == []
    assert found.check(candidate) == Hold(
        0, candidate.value, encode(OUTCOME), tuple(each.raw for each in COMMITS), candidate.roots
    )
    assert found.result() is candidate
