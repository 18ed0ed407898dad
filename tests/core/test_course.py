"""The final chain and its branches at one peer; whole swarms are in tests/sim/test_branches.py."""

from __future__ import annotations

from dataclasses import replace

from p2pnet.core import events as ev
from p2pnet.core.course import EARLY_MAX, KNOWN_MAX, Course, Resumed, Tagged
from p2pnet.core.gossip import Verdict
from p2pnet.core.passing import judge_course
from p2pnet.core.slots import Context
from p2pnet.core.state import Member, SwarmState
from p2pnet.identity import PeerId
from p2pnet.wire.branch import Branch, BranchCertificate, write_hears
from p2pnet.wire.round import Ask, Vote
from p2pnet.wire.signing import Signed
from tests.core.voters import context, genesis, peer, peers, signed

VOTERS = peers(4)
ME, *OTHERS = VOTERS
MEMBERS = {voter: Member(b"t" * 32, 3, 0, 2) for voter in VOTERS}
STATE = replace(genesis(4), round=3, members=MEMBERS)
LATE_S = 200.0


def course(state: SwarmState = STATE, me: PeerId = ME) -> Course:
    def context_of(_swarm: bytes) -> Context:
        return context(me)

    return Course(context_of, [Resumed(state)], 0.0)


def of(found: list[Tagged], kind: type) -> list[ev.Effect]:
    return [effect for _, effect in found if isinstance(effect, kind)]


def stalled() -> tuple[Course, list[Tagged]]:
    """A peer that has trained its round, and that nobody answers for long."""
    made, found = course(), list[Tagged]()
    made.handle(ev.Tick(), 0.0)
    made.handle(ev.Started(3, 7, b""), 0.0, STATE.swarm)
    made.handle(ev.Encoded(3, b"p" * 32, 40, True, 1, 0, 0), 0.1, STATE.swarm)
    for step in range(1, 200):
        found += made.handle(ev.Tick(), float(step))
    return made, found


def certificate(*voters: PeerId, state: SwarmState = STATE, nonce: bytes = b"\0" * 8) -> BranchCertificate:
    listed, each = tuple(sorted(voters)), list[Signed[Branch]]()
    for voter in listed:
        bits = write_hears(state.electorate, frozenset(voters))
        each.append(signed(Branch(state.swarm, state.round, state.lineage, listed, bits, nonce), voter))
    return BranchCertificate(
        state.swarm, state.round, state.lineage, listed, tuple(one.message.hears for one in each),
        tuple(one.message.nonce for one in each), tuple(one.signature for one in each),
    )  # fmt: skip


def test_a_peer_that_nobody_answers_goes_on_alone_with_the_update_that_it_has() -> None:
    made, found = stalled()
    (fork,) = of(found, ev.Fork)
    assert isinstance(fork, ev.Fork)
    assert fork.started == ev.Started(3, 7, b"")
    assert fork.update is not None
    line = made.lines[-1]
    assert (len(made.lines), line.id, line.round) == (2, fork.branch, 3)
    exchange = next(effect for swarm, effect in found if swarm == fork.branch and isinstance(effect, ev.Exchange))
    assert [commit.message.payload_root for commit in exchange.commits] == [b"p" * 32]
    assert [effect.round for effect in of(found, ev.Train) if isinstance(effect, ev.Train)] == []  # it was trained


def test_in_the_first_round_nobody_goes_on_alone() -> None:
    made = course(genesis(4))
    for step in range(200):
        made.handle(ev.Tick(), float(step))
    assert len(made.lines) == 1


def test_what_the_learner_says_of_a_branch_that_is_left_is_not_heard() -> None:
    made, _ = stalled()
    assert made.handle(ev.About(b"?" * 32, ev.Started(3, 1, b"")), LATE_S) == []
    assert made.handle(ev.About(b"?" * 32, ev.Applied(3)), LATE_S) == []


def test_a_branch_of_more_voters_is_better_than_ones_own() -> None:
    made, _ = stalled()
    before = made.lines[-1].id
    larger = certificate(*OTHERS[:2])
    found = made.handle(ev.Heard(OTHERS[0], larger), LATE_S)
    assert [type(effect) for _, effect in found if isinstance(effect, ev.Leave | ev.Fork)] == [ev.Leave, ev.Fork]
    assert made.lines[-1].id == larger.branch_id()
    assert made.handle(ev.Heard(OTHERS[0], larger), LATE_S + 1) == []
    smaller = certificate(OTHERS[2])
    (shown,) = of(made.handle(ev.Heard(OTHERS[2], smaller), LATE_S + 2), ev.Send)
    assert isinstance(shown, ev.Send)
    assert shown.to == OTHERS[2]
    assert made.lines[-1].id == larger.branch_id()
    assert made.find(before) is None


def test_who_is_not_stalled_enters_no_branch_and_keeps_only_the_best() -> None:
    made = course()
    made.handle(ev.Tick(), 0.0)
    for number in range(KNOWN_MAX + 5):
        made.handle(ev.Heard(OTHERS[0], certificate(OTHERS[0], nonce=number.to_bytes(8, "big"))), 0.1)
    best = certificate(*OTHERS)
    made.handle(ev.Heard(OTHERS[0], best), 0.2)
    assert (len(made.lines), len(made._known)) == (1, KNOWN_MAX)
    assert best.branch_id() in made._known


def test_a_branch_from_a_round_that_is_over_is_not_entered() -> None:
    made = course()
    made.handle(ev.Tick(), 0.0)
    made.handle(ev.Heard(OTHERS[0], certificate(*OTHERS[:2])), 0.1)
    line = made.lines[0]
    line.rounds.state = replace(line.rounds.state, round=4, lineage=b"n" * 32)  # it was decided after all
    line.rounds.stall.gone = tuple(OTHERS)
    found = made.handle(ev.Tick(), 1.0)
    assert of(found, ev.Fork) == []


def test_who_asks_in_the_stalled_round_is_shown_the_branch_and_not_too_often() -> None:
    made, _ = stalled()
    ask = ev.Heard(OTHERS[0], Ask(STATE.swarm, 3, 0))
    shown = [
        effect
        for at_s in (0.0, 0.1, 0.2, 1.0)
        for swarm, effect in made.handle(ask, LATE_S + at_s)
        if isinstance(effect, ev.Send) and swarm == made.lines[-1].id and not effect.signed
    ]
    assert len(shown) == 2


def test_messages_of_lines_that_are_not_followed_do_nothing_and_are_kept_in_bounds() -> None:
    made, _ = stalled()
    for number in range(2 * EARLY_MAX):
        vote = signed(Vote(b"?" * 32, 3, number, 1, b""), OTHERS[0])
        assert of(made.handle(ev.Heard(OTHERS[0], vote), LATE_S), ev.Decide) == []
    assert len(made._early) <= EARLY_MAX


def test_gossip_passes_on_what_members_say_in_other_branches_and_what_nobody_knows_stays() -> None:
    made = course()
    member = signed(Vote(b"?" * 32, 3, 0, 1, b""), OTHERS[0])
    stranger = signed(Vote(b"?" * 32, 3, 0, 1, b""), peer(77))
    assert judge_course(ev.Heard(OTHERS[1], member), made) is Verdict.ACCEPT
    assert judge_course(ev.Heard(OTHERS[1], stranger), made) is Verdict.IGNORE
    right = certificate(*OTHERS[:2])
    assert judge_course(ev.Heard(OTHERS[1], right), made) is Verdict.ACCEPT
    assert judge_course(ev.Heard(OTHERS[1], replace(right, round=9)), made) is Verdict.IGNORE
    proposal = signed(Branch(STATE.swarm, 3, STATE.lineage, (ME,), b"\xff", b"\0" * 8), ME)
    assert judge_course(ev.Heard(ME, proposal), made) is Verdict.IGNORE


def test_a_branch_whose_results_nobody_has_is_left_for_good() -> None:
    made, _ = stalled()
    larger = certificate(*OTHERS[:2])
    made.handle(ev.Heard(OTHERS[0], larger), LATE_S)
    found = made.give_up(larger.branch_id())
    assert [type(effect) for effect in of(found, ev.Leave)] == [ev.Leave]
    made.handle(ev.Heard(OTHERS[0], larger), LATE_S + 1)
    assert made.find(larger.branch_id()) is None
    assert made.give_up(STATE.swarm) == []
