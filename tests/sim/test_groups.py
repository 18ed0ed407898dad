"""Swarms of many groups on links with a rate: what they decide, and what a peer sends, whatever their size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from p2pnet.sim.flood import Flood
from p2pnet.sim.internet import Internet
from p2pnet.sim.scenario import Scenario

SMALL = Scenario(members=12, rounds=4, params=100_000_000, train_s=10.0, group_size_max=4)


def play(**changed: Any) -> dict[str, Any]:
    return Internet(replace(SMALL, **changed)).play()


@pytest.mark.parametrize(("members", "size"), [(12, 4), (30, 8)])
def test_every_round_is_sealed_with_everybody_in_the_first_view(members: int, size: int) -> None:
    found = play(members=members, group_size_max=size)
    assert found["rounds"] == {"asked": 4, "decided": 4, "sealed": 4, "void": 0, "stalled": 0, "later_views": 0}
    assert found["members_in_roster"] == members
    assert found["notes"] == {}


def test_a_peer_sends_two_payloads_and_a_result_however_many_groups_there_are() -> None:
    ratios = []
    for members in (16, 32, 64):
        found = play(members=members, group_size_max=8, rounds=3)
        bytes_ = found["bytes_per_peer_and_round"]
        ratios.append((bytes_["payload"] + bytes_["result"]) / (2 * found["payload_bytes"] + found["result_bytes"]))
    print(ratios)
    assert all(0.8 < ratio < 1.1 for ratio in ratios)


@pytest.mark.parametrize(
    "faults",
    [{"churn": 0.1}, {"crash": 0.1, "restart_s": 3.0}, {"freeze": 0.1, "freeze_s": 12.0}, {"nat": 0.3}, {"loss": 0.02}],
    ids=str,
)
def test_rounds_of_groups_go_on_through_faults(faults: dict[str, Any]) -> None:
    found = play(members=20, group_size_max=6, rounds=6, **faults)
    assert found["rounds"]["decided"] == 6
    assert found["rounds"]["sealed"] >= 5


def test_where_gossip_is_played_a_round_comes_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    gossiped = play()
    monkeypatch.setattr("p2pnet.sim.internet.PLAYED_FROM", 8)
    net = Internet(SMALL)
    played = net.play()
    assert all(isinstance(member.contacts, Flood) for member in net.members.values())
    for name in ("sealed", "void", "later_views"):
        assert played["rounds"][name] == gossiped["rounds"][name]
    assert played["members_in_roster"] == 12
    for kind in ("payload", "result"):
        had, has = (found["bytes_per_peer_and_round"][kind] for found in (gossiped, played))
        assert has == pytest.approx(had, rel=0.01)
    assert played["exchange_s"]["median"] == pytest.approx(gossiped["exchange_s"]["median"], abs=0.5)


def test_the_same_seed_plays_the_same_run_in_groups() -> None:
    runs = [play(churn=0.1, rounds=3) for _ in range(2)]
    assert runs[0] == runs[1]
