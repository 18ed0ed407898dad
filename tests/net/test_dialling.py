from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnet.identity import PeerId
from p2pnet.net.dialling import TARGETS_MAX, DialPolicy, Dials, Source, shorten_reason
from p2pnet.net.host import PeerAddrs

ME = PeerId(bytes(32))
POLICY = DialPolicy(wanted=4, at_once=2, retry_first_s=5, retry_max_s=60, jitter=0.0)


def peer(number: int) -> PeerId:
    return PeerId(number.to_bytes(32))


def at(number: int, *addrs: str) -> PeerAddrs:
    return PeerAddrs(peer(number), addrs or (f"/ip4/10.0.0.{number % 256}/tcp/1",))


def dials(policy: DialPolicy = POLICY) -> Dials:
    return Dials(ME, policy, Random(1))


def test_what_gossip_saw_last_comes_before_what_the_dht_remembers() -> None:
    known = dials(DialPolicy(at_once=9))
    known.hear(at(1), Source.DHT, 9)
    known.hear(at(2), Source.GOSSIP, 3)
    known.hear(at(3), Source.GOSSIP, 4)
    known.hear(at(4), Source.DHT, 1)
    assert known.take_due(10, []) == [at(3), at(2), at(1), at(4)]


def test_who_has_just_failed_comes_after_who_has_not_been_tried() -> None:
    known = dials()
    known.hear(at(1), Source.GOSSIP, 0)
    known.take_due(0, [])
    known.fail(peer(1), "gone", 0)
    known.hear(at(2), Source.DHT, 1)
    assert known.take_due(100, []) == [at(2), at(1)]


def test_no_more_are_dialled_at_once_than_allowed_and_none_twice() -> None:
    known = dials()
    for number in range(1, 6):
        known.hear(at(number), Source.DHT, number)
    assert known.take_due(10, []) == [at(5), at(4)]
    assert known.take_due(10, []) == []
    known.succeed(peer(5))
    assert known.take_due(10, [peer(5)]) == [at(3)]


def test_nobody_is_dialled_when_there_are_connections_enough() -> None:
    known = dials()
    known.hear(at(1), Source.GOSSIP, 0)
    assert known.take_due(0, [peer(number) for number in (2, 3, 4, 5)]) == []
    assert known.take_due(0, [peer(number) for number in (2, 3, 4)]) == [at(1)]


def test_neither_oneself_nor_who_is_connected_or_ignored_is_dialled() -> None:
    known = dials()
    for number in (0, 1, 2):
        known.hear(at(number), Source.GOSSIP, 0)
    known.ignore(peer(2))
    known.hear(at(2), Source.GOSSIP, 0)
    assert known.take_due(0, [peer(1)]) == []


def test_each_failure_doubles_the_wait_up_to_the_maximum_and_success_forgets_it() -> None:
    known, now_s, waits = dials(), 0.0, []
    known.hear(at(1), Source.DHT, now_s)
    for _ in range(6):
        assert known.take_due(now_s, []) == [at(1)]
        known.fail(peer(1), "no", now_s)
        due_s = known.next_s([])
        assert known.take_due(due_s - 0.001, []) == []
        waits.append(due_s - now_s)
        now_s = due_s
    assert waits == [5, 10, 20, 40, 60, 60]
    known.take_due(now_s, [])
    known.succeed(peer(1))
    known.take_due(now_s, [])
    known.fail(peer(1), "no", now_s)
    assert known.next_s([]) == now_s + 5


def test_a_peer_that_gossip_has_seen_again_is_tried_again_soon_but_not_at_once() -> None:
    known = dials()
    known.hear(at(1), Source.DHT, 0)
    for _ in range(4):
        known.take_due(1000, [])
        known.fail(peer(1), "no", 1000)
        known.targets[peer(1)].not_before_s = 1000
    known.take_due(1000, [])
    known.fail(peer(1), "no", 1000)
    known.hear(at(1), Source.DHT, 1001)
    assert known.next_s([]) == 1060
    known.hear(at(1), Source.GOSSIP, 1001)
    assert known.next_s([]) == 1005


def test_addresses_of_a_better_source_stay() -> None:
    known = dials()
    known.hear(at(1, "/old"), Source.DHT, 0)
    known.hear(at(1, "/new"), Source.GOSSIP, 1)
    known.hear(at(1, "/stale"), Source.DHT, 2)
    known.hear(PeerAddrs(peer(1), ()), Source.GOSSIP, 3)
    assert known.take_due(3, []) == [at(1, "/new")]


@given(st.integers(0, 200), st.randoms(use_true_random=False))
def test_retries_come_between_the_policys_wait_and_a_jitter_later(failures: int, rng: Random) -> None:
    known = Dials(ME, DialPolicy(), rng)
    known.hear(at(1), Source.DHT, 0)
    known.take_due(0, [])
    known.targets[peer(1)].failures = failures
    known.fail(peer(1), "no", 50)
    wait_s = min(300.0, 5.5 * 2.0 ** min(failures, 30))
    assert wait_s <= known.next_s([]) - 50 <= 1.25 * wait_s


def test_the_dht_cannot_fill_the_memory_nor_push_out_what_gossip_saw() -> None:
    known = dials()
    known.hear(at(1), Source.GOSSIP, 0)
    for number in range(2, TARGETS_MAX + 100):
        known.hear(at(number), Source.DHT, number)
    assert len(known.targets) == TARGETS_MAX
    assert peer(1) in known.targets


def test_without_targets_there_is_nothing_to_wait_for() -> None:
    assert dials().next_s([]) == math.inf


@pytest.mark.parametrize(
    ("reason", "short"),
    [
        (
            "dialling X: all dials failed * [/ip4/127.0.0.1/tcp/9] connection refused * [/x] dial backoff",
            "/ip4/127.0.0.1/tcp/9: connection refused",
        ),
        ("failed to dial: failed to dial X: dial backoff", ""),
        ("connecting to X: nothing within 5 s", "connecting to X: nothing within 5 s"),
        ("x" * 1000, "x" * 300),
    ],
)
def test_a_reason_is_cut_to_what_a_person_needs(reason: str, short: str) -> None:
    assert shorten_reason(reason) == short


def test_that_libp2p_did_not_even_try_does_not_hide_why_it_failed_before() -> None:
    known = dials()
    known.hear(at(1), Source.OPERATOR, 0)
    for reason in ("connection refused", "dial backoff"):
        known.take_due(1000, [])
        known.fail(peer(1), reason, 0)
    assert known.targets[peer(1)].reason == "connection refused"
