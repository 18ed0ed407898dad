"""The pure machines under messages that are well-formed and absurd, from members and strangers: they never raise.

The shell is played honestly, the rest of the world is not. One integer is one run.
"""

from __future__ import annotations

import hashlib
import math
import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from p2pnet.core import events as ev
from p2pnet.core import gossip as news
from p2pnet.core import membership as members
from p2pnet.core.certificates import bundle
from p2pnet.core.contact import Profile
from p2pnet.core.gossip import Gossip
from p2pnet.core.membership import Membership
from p2pnet.core.news import Verdict
from p2pnet.core.parts import Part
from p2pnet.core.rounds import Rounds
from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.sim import Setting, SimPeer, Simulation
from p2pnet.sim.signatures import fake_sign, fake_verify, open_message
from p2pnet.wire import gossip as gossip_wire
from p2pnet.wire.codec import decode, encode, pack, unpack
from p2pnet.wire.membership import VERSION, Hello, HelloAnswer, PeerRecord
from p2pnet.wire.round import SIGNED, Ask, Decision, Outcome, Phase, Quorum, Vote, outcome_digest, roster_digest
from p2pnet.wire.signing import sign_message
from tests.core.voters import SWARM, commit, context, genesis, peer, peers
from tests.fuzz.absurd import Pool, size_of
from tests.fuzz.material import fuzz_settings, mutate_tree, packed, unpacked

STRANGERS = [peer(100 + number) for number in range(3)]
EVENTS = 150
ROUNDS_ITEMS_MAX = 60_000  # of size_of; AHEAD_MAX messages of about 40 items, and what a round holds


class Shell:
    """A round machine with an honest shell around it, and a world that says what it likes."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.state = genesis(4)
        self.me, *self.others = peers(4)
        self.rounds = Rounds(context(self.me, audits=True), self.state, 0.0)
        self.now_s = 0.0
        self.signed: dict[bytes, bytes] = {}
        self.due: list[ev.Event] = [ev.Tick()]
        self.decided = 0
        voices = [*self.others[:1], *STRANGERS] if self.rng.random() < 0.5 else [*self.others, *STRANGERS]
        self.pool = Pool(voices, fake_sign)
        self._refill()

    def _refill(self) -> None:
        """Let messages be about what is going on."""
        state, pool, rng = self.rounds.state, self.pool, self.rng
        commits = sorted((commit(state, author) for author in pool.peers), key=lambda one: one.peer)
        raws = tuple(one.raw for one in commits[: rng.randint(1, len(commits))])
        outcome = state.outcome(b"", 0, (), (), b"")
        pool.digests = [
            SWARM,
            state.lineage,
            state.beacon,
            b"x" * 32,
            roster_digest(raws),
            outcome_digest(encode(outcome)),
        ]
        pool.raws = [*raws, encode(outcome)]
        pool.overrides = {
            "swarm": [SWARM, SWARM, SWARM, b"o" * 32],
            "round": [state.round, state.round, state.round, state.round + 1, state.round + 2, 2**32 - 1, 0],
            "view": [self.rounds.round.deciding.view, 0, 1, 2, 2**32 - 1],
            "lineage": [state.lineage, state.lineage, b"x" * 32],
            "commits": [raws, raws[::-1], raws * 2, ()],
            "electorate": [state.electorate, tuple(sorted(pool.peers))],
            "value": [*pool.digests, b""],
            "outcome": [encode(outcome), b"\x90", roster_digest(raws)],
            "phase": [1, 2],
            "part": [0, 1, 2, 63],
            "inputs": [(257,) * len(raws), (0,) * len(raws), (1,) * 64],
        }  # fmt: skip

    def message(self) -> Any:
        rng = self.rng
        kind = rng.choice((*SIGNED, *SIGNED, Quorum, Decision, Ask, Outcome))
        if kind is Outcome:  # something to refer to
            raw = encode(self.pool.make(rng, Outcome))
            self.pool.keep(rng, raw)
            self.pool.digests[5:] = [*self.pool.digests[5:][-6:], outcome_digest(raw)]
            return self.message()
        if kind in SIGNED:
            return self.pool.signed(rng, kind)
        if kind is Ask:
            return self.pool.make(rng, Ask)
        return self.quorum() if kind is Quorum else self.decision()

    def quorum(self, value: bytes | None = None, phase: Phase | None = None) -> Quorum:
        """A bundle of whoever signs anything: it is a quorum when enough members do."""
        rng, state = self.rng, self.rounds.state
        view, phase = rng.choice(self.pool.overrides["view"]), phase or Phase(rng.choice((1, 2)))
        value = value or rng.choice(self.pool.digests)
        vote = Vote(state.swarm, state.round, view, int(phase), value)
        signatures = {
            one: sign_message(vote, one, lambda data, one=one: fake_sign(one, data)).signature  # type: ignore[misc]
            for one in self.pool.peers
            if one in state.electorate or rng.random() < 0.1
        }
        return bundle(state, view, phase, value, signatures)

    def decision(self) -> Decision:
        made = self.pool.make(self.rng, Decision)
        return Decision(self.quorum(outcome_digest(made.outcome), Phase.SEAL), made.outcome, made.commits)

    def step(self) -> None:
        rng = self.rng
        self.now_s += rng.choice((0.0, 0.001, 0.01, 0.3, 5.0))
        if self.due and rng.random() < 0.6:
            event = self.due.pop(rng.randrange(len(self.due)))
        else:
            someone = rng.choice(self.pool.peers)
            event = rng.choice(
                (ev.PeerUp(someone), ev.PeerDown(someone), ev.Tick(), *[ev.Heard(someone, self.message())] * 9)
            )
        for effect in self.rounds.handle(event, self.now_s):
            self.perform(effect)
        deadline_s = self.rounds.deadline_s
        assert deadline_s is None or math.isfinite(deadline_s)

    def perform(self, effect: ev.Effect) -> None:
        rng, round_id = self.rng, self.rounds.state.round
        match effect:
            case ev.Train(number, _, state_wanted):
                self.due += [ev.Started(number, 7, b"h" * 32 if state_wanted else b"")]
                root = hashlib.sha256(self.me).digest()
                trained = ev.Encoded(number, root, 40, True, 1, 0, 0)
                self.due += [rng.choice((trained, ev.Skipped(number, "NaN")))]
            case ev.Persist(_, slot, raw):
                assert self.signed.setdefault(slot, raw) == raw, "two things signed for one slot"
            case ev.Exchange(number, view, commits, _, parts):
                for part in parts:
                    self.due += [ev.SliceArrived(number, view, part.index, one.peer) for one in commits]
            case ev.Reduce(number, view, part):
                exchange = self.rounds.round.exchanges.get(view)
                places = len(exchange.commits) if exchange else 1
                self.due += [ev.ReduceDone(number, view, part.index, (257,) * places, rng.randbytes(32), bytes(32))]
            case ev.Scatter(number, view, part, to):
                self.due += [ev.ScatterFailed(number, view, part.index, to)]
            case ev.Gather(number, root):
                self.due += [rng.choice((ev.Gathered(number, root), ev.GatherFailed(number, root)))]
            case ev.Audit(number, root=root):
                self.due += [ev.Audited(number, root, rng.random() < 0.5)]
            case ev.Decide(number):
                assert number == round_id
                self.decided += 1
                self.due += [ev.Applied(number)]
            case ev.Broadcast(raw) | ev.Send(raw=raw):
                decode((Ask, Quorum, Decision), raw) if not raw.startswith(b"\x93\xc4") and raw[1] < 0xC0 else None
                self.pool.keep(rng, raw)
            case _:
                pass
        if isinstance(effect, ev.Decide):
            self._refill()


@fuzz_settings(40)
@given(seed=st.integers(0, 2**32))
def test_the_round_machine_takes_whatever_members_and_strangers_say(seed: int) -> None:
    shell = Shell(seed)
    for number in range(EVENTS):
        shell.step()
        if number % 50 == 49:
            shell._refill()
    assert size_of(vars(shell.rounds)) < ROUNDS_ITEMS_MAX


def test_what_the_round_machine_keeps_of_a_flood_is_bounded() -> None:
    shell = Shell(1)
    sizes = []
    for _ in range(3):
        for _ in range(1500):
            heard = ev.Heard(shell.rng.choice(shell.pool.peers), shell.message())
            shell.rounds.handle(heard, shell.now_s)
        sizes.append(size_of(vars(shell.rounds)))
    assert sizes[-1] < ROUNDS_ITEMS_MAX, sizes


class Mangled(Simulation):
    """A simulated swarm in which one member also says damaged copies of whatever it hears, under its own key."""

    def __init__(self, seed: int) -> None:
        super().__init__(Setting(peers=5, founders=4, train_s=(0.1, 0.3)), seed, liars=0)
        self.mangling = random.Random(seed)
        self.liar = sorted(self.peers)[0]
        self.stranger = peer(999)
        self.mangled = 0

    def carry(self, sender: PeerId, to: PeerId, raw: bytes, signed: bool) -> None:
        super().carry(sender, to, raw, signed)
        if self.mangling.random() < 0.5:
            self._mangle(raw, signed)

    def scatter(self, sender: SimPeer, effect: ev.Scatter, part: Part, to: PeerId) -> None:
        if to in self.peers:
            super().scatter(sender, effect, part, to)
        else:  # a name that was made up, whose commit got into a roster: anybody may join
            self.at(0.1, lambda: sender.take(ev.ScatterFailed(effect.round, effect.view, part.index, to)))

    def gather(self, asker: SimPeer, number: int, root: bytes, sources: tuple[PeerId, ...]) -> None:
        super().gather(asker, number, root, tuple(source for source in sources if source in self.peers))

    def _mangle(self, raw: bytes, signed: bool) -> None:
        rng = self.mangling
        body = unpack(raw, 1 << 20)[0] if signed else raw
        for _ in range(rng.choice((1, 1, 2))):
            body = packed(mutate_tree(rng, unpacked(body)))
        if signed:
            author = rng.choice((self.liar, self.liar, self.stranger))
            body = pack([body, author, fake_sign(author, b"p2pnet/round/1\n" + body)])
        try:
            heard = ev.Heard(self.liar, open_message(body, signed))
        except WireError:
            return  # the handler would have refused it
        self.mangled += 1
        to = rng.choice([one for one in self.peers if one != self.liar])
        self.at(self.delay_s(self.liar, to), lambda: self.peers[to].take(heard))


@fuzz_settings(8)
@given(seed=st.integers(0, 2**32))
def test_a_swarm_goes_on_while_a_member_says_damaged_copies_of_all_it_hears(seed: int) -> None:
    swarm = Mangled(seed)
    swarm.peers[swarm.liar].honest = False
    swarm.start()
    assert swarm.run(lambda: swarm.rounds_done() >= 4, 600.0), "no progress"
    assert swarm.mangled
    assert max(size_of(vars(one.rounds)) for one in swarm.peers.values()) < ROUNDS_ITEMS_MAX


# Membership ---------------------------------------------------------------------------------------------------------


def a_membership(seed: int) -> tuple[Membership, Pool, random.Random]:
    rng = random.Random(seed)
    me = peers(4)[0]
    machine = Membership(
        me,
        SWARM,
        Profile(),
        bytes(8),
        rng.choice((0.0, 1.8e9, -1e9)),
        lambda data: fake_sign(me, data),
        fake_verify,
        rng,
    )
    pool = Pool([*peers(4), *STRANGERS], fake_sign)
    pool.digests = [SWARM, b"o" * 32]
    pool.overrides = {
        "swarm": [SWARM, SWARM, SWARM, b"o" * 32],
        "version": [VERSION, VERSION, 0, 65535],
        "addrs": [(), (b"\x04\x7f\0\0\1\x06\x0f\xa1",), (b"\xff" * 256,) * 16, (b"\0",)],
        "session": [bytes(8), b"12345678"],
        "seq": [0, 1, 2, 2**61, 2**62, 2**63 - 1],
    }  # fmt: skip
    return machine, pool, rng


def membership_event(pool: Pool, rng: random.Random) -> members.Event:
    who = rng.choice(pool.peers)
    raws = [pool.signed(rng, PeerRecord, who).raw, pool.signed(rng, PeerRecord).raw, b"", rng.randbytes(50)]
    pool.overrides["record"] = [raws[0], raws[0], *raws]
    pool.overrides["newer"] = raws
    pool.overrides["others"] = [(), tuple(raws[:2]), (raws[3],), tuple(pool.raws[:16])]
    return rng.choice(
        (
            members.Tick(),
            members.Connected(who),
            members.Disconnected(who),
            members.DialFailed(who),
            members.HelloReceived(who, pool.make(rng, Hello)),
            members.HelloAnswered(who, pool.make(rng, HelloAnswer)),
            members.RecordReceived(who, rng.choice(raws)),
            members.Found(who, rng.choice(pool.overrides["addrs"])),
            members.Misbehaved(who, "x-1/R1"),
        )
    )


@fuzz_settings(25)
@given(seed=st.integers(0, 2**32))
def test_membership_takes_whatever_hellos_and_records_say(seed: int) -> None:
    machine, pool, rng = a_membership(seed)
    now_s = 0.0
    for _ in range(EVENTS):
        now_s += rng.choice((0.0, 0.01, 1.0, 60.0, 1e6))
        event = membership_event(pool, rng)
        if isinstance(event, members.RecordReceived):
            assert machine.judge(event.peer, event.raw, now_s) in Verdict
        for effect in machine.handle(event, now_s):
            if isinstance(effect, members.Answer):
                encode(effect.answer)
            elif isinstance(effect, members.SendHello):
                encode(effect.hello)
        assert not math.isnan(machine.deadline_s)


def test_what_membership_keeps_of_a_flood_of_names_is_bounded() -> None:
    machine, pool, rng = a_membership(3)
    sizes = []
    for _ in range(2):
        for _ in range(2500):
            pool.peers = [PeerId(rng.randbytes(32)) for _ in range(3)]  # names are free
            machine.handle(membership_event(pool, rng), rng.random())
        sizes.append(size_of(vars(machine)))
    assert sizes[1] < 2 * sizes[0] + 20_000 < 1_500_000, sizes


# Gossip -------------------------------------------------------------------------------------------------------------


@fuzz_settings(60)
@given(seed=st.integers(0, 2**32))
def test_gossip_takes_whatever_neighbours_say(seed: int) -> None:
    rng = random.Random(seed)
    verdicts = list(Verdict)
    machine = Gossip(peers(4)[0], lambda _peer, _topic, _data: rng.choice(verdicts), rng)
    pool = Pool([*peers(4), *STRANGERS], fake_sign)
    pool.overrides["topic"] = ["round", "record", "x" * 64]
    now_s = 0.0
    for _ in range(EVENTS):
        now_s += rng.choice((0.0, 0.01, 0.5, 30.0))
        who = rng.choice(pool.peers)
        said = pool.make(rng, rng.choice(gossip_wire.MESSAGES))
        if isinstance(said, gossip_wire.Data):
            pool.raws.append(gossip_wire.message_id(said.topic, said.data))
        event = rng.choice(
            (
                news.PeerUp(who),
                news.PeerDown(who),
                news.Tick(),
                news.Publish("round", rng.randbytes(rng.choice((0, 40, 9000)))),
                *[news.Received(who, said)] * 8,
            )
        )
        for effect in machine.handle(event, now_s):
            if isinstance(effect, news.Send):
                encode(effect.message)
        assert machine.deadline_s is None or math.isfinite(machine.deadline_s)


def test_what_gossip_keeps_of_a_flood_is_bounded() -> None:
    rng = random.Random(5)
    machine = Gossip(peers(4)[0], lambda _peer, _topic, _data: rng.choice(list(Verdict)), rng)
    pool = Pool(peers(4), fake_sign)
    for who in pool.peers:
        machine.handle(news.PeerUp(who), 0.0)
    sizes = []
    for turn in range(2):
        for number in range(6000):
            said = rng.choice(
                (
                    gossip_wire.Data(rng.randrange(256), 0, "round", rng.randbytes(64)),
                    gossip_wire.Have(rng.randrange(2), tuple(rng.randbytes(20) for _ in range(20))),
                )
            )
            machine.handle(news.Received(rng.choice(pool.peers), said), turn + number / 6000)
        sizes.append(size_of(vars(machine)))
    assert sizes[1] < 1.5 * sizes[0] + 20_000, sizes
