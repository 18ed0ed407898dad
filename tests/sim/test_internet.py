"""Whole swarms on links with a rate: what rounds and bytes come to, and what faults cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from p2pnet.core import events as ev
from p2pnet.core.exchange import LATE_BACKUP, LATE_PROPOSAL
from p2pnet.sim.internet import OVER_ROUNDS, Internet
from p2pnet.sim.member import Member
from p2pnet.sim.scenario import LinkClass, Scenario

SMALL = Scenario(members=5, rounds=4, params=10_000_000, train_s=10.0)


def play(**changed: Any) -> dict[str, Any]:
    return Internet(replace(SMALL, **changed)).play()


def test_without_faults_every_round_is_sealed_with_everybody_and_each_message_comes_once() -> None:
    found = play(members=12)
    assert found["rounds"] == {"asked": 4, "decided": 4, "sealed": 4, "void": 0, "stalled": 0, "later_views": 0}
    assert found["members_in_roster"] == 12
    assert found["gossip"]["steady"] < 1.02
    assert found["notes"] == {}
    assert found["dropped_messages"] == 0


def test_payload_and_result_travel_once_but_for_ones_own_share() -> None:
    found = play(members=8)
    bytes_ = found["bytes_per_peer_and_round"]
    assert bytes_["payload"] == pytest.approx(7 / 8 * found["payload_bytes"], rel=0.001)
    assert bytes_["result"] == pytest.approx(7 / 8 * found["result_bytes"], rel=0.001)


@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_what_all_members_send_is_received_or_lost_or_on_its_way(loss: float) -> None:
    found = play(loss=loss)
    total = found["bytes"]
    on_its_way = total["sent"] - total["received"] - total["lost"] - total["undelivered"]
    assert 0 <= on_its_way < 0.001 * total["sent"]
    assert total["lost"] == pytest.approx(loss * total["sent"], rel=0.5)
    assert found["rounds"]["sealed"] == 4


def test_who_is_cut_off_is_not_waited_for_without_end() -> None:
    found = play(members=6, partition=1 / 6, partition_s=10_000.0)
    assert found["rounds"]["sealed"] == found["rounds"]["decided"] == 4 + OVER_ROUNDS + 1
    assert found["behind"] == 1
    assert found["simulated_s"] < 1000
    assert play()["behind"] == 0


def test_no_member_sends_or_receives_faster_than_its_line() -> None:
    net = Internet(replace(SMALL, up=2_000_000, down=5_000_000))
    net.play()
    for station, _ in net.stations.values():
        assert station.up.carried_bytes <= 250_000 * net.now_s
        assert station.down.carried_bytes <= 625_000 * net.now_s


def test_the_same_seed_gives_the_same_json_in_any_process_and_another_seed_another() -> None:
    program = (
        "import json; from dataclasses import replace; from p2pnet.sim.internet import Internet\n"
        "from p2pnet.sim.scenario import Scenario\n"
        "for seed in (1, 2):\n"
        "    play = Scenario(members=6, rounds=4, params=10**7, loss=.01, nat=.3, churn=.2, freeze=.1, seed=seed)\n"
        "    print(json.dumps(Internet(play).play()))"
    )
    runs = []
    for salt in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": salt}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        runs.append(done.stdout)
    assert runs[0] == runs[1]
    first, second = (json.loads(line) for line in runs[0].splitlines())
    assert first != second


def test_an_exchange_takes_as_much_longer_as_the_bytes_need_on_a_slower_line() -> None:
    exchange_s = {}
    for mbit in (10, 20, 40):
        found = play(members=4, rounds=3, params=200_000_000, up=mbit * 10**6, down=mbit * 10**6)
        exchange_s[mbit] = found["exchange_s"]["median"]
    bits = 8 * 3 / 4 * (found["payload_bytes"] + found["result_bytes"])
    assert exchange_s[10] - exchange_s[20] == pytest.approx(bits / 10e6 - bits / 20e6, rel=0.15)
    assert exchange_s[20] - exchange_s[40] == pytest.approx(bits / 20e6 - bits / 40e6, rel=0.15)


@pytest.mark.parametrize(
    ("how", "after_s"),
    [("crash", 0.01), ("crash", 1.2), ("freeze", 0.01)],
    ids=["crash with the slices", "crash with the results, its digest told", "freeze"],
)
def test_a_reducer_that_falls_out_costs_a_round_at_most_its_deadline_and_the_next_nothing(
    how: str, after_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = replace(SMALL, members=7, rounds=5, params=100_000_000, up=20_000_000)
    net = Internet(scenario)
    victims: list[Member] = []
    perform = Member.perform

    def watched(member: Member, effect: ev.Effect) -> None:
        perform(member, effect)
        if isinstance(effect, ev.Scatter) and effect.round == 2 and not victims and effect.to != member.peer:
            proposer = member.rounds.state.proposer(0)
            if effect.to != proposer:  # a proposer costs its view besides
                victims.append(net.members[effect.to])
                net.at(after_s, getattr(net, how), effect.to)

    monkeypatch.setattr(Member, "perform", watched)
    found = net.play()
    assert victims
    assert found["rounds"]["sealed"] == 5
    rows = {row["round"]: row for row in found["per_round"]}
    assert rows[1]["exchange_s"] < 4
    assert rows[2]["exchange_s"] <= LATE_BACKUP * scenario.exchange_s + 3.0
    assert rows[4]["exchange_s"] <= rows[1]["exchange_s"] + 0.5


@pytest.mark.slow
def test_a_proposer_that_freezes_costs_its_view_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = replace(SMALL, members=7, rounds=4)
    net = Internet(scenario)
    frozen: list[Member] = []
    perform = Member.perform

    def watched(member: Member, effect: ev.Effect) -> None:
        perform(member, effect)
        if isinstance(effect, ev.Scatter) and effect.round == 1 and not frozen:
            frozen.append(net.members[member.rounds.state.proposer(0)])
            net.at(0.01, net.freeze, frozen[0].peer)

    monkeypatch.setattr(Member, "perform", watched)
    found = net.play()
    row = found["per_round"][1]
    assert row["view"] >= 1
    assert row["exchange_s"] <= 2 * LATE_PROPOSAL * scenario.exchange_s


@pytest.mark.parametrize(
    "faults",
    [
        {"churn": 0.2},
        {"crash": 0.2, "restart_s": 3.0},
        {"freeze": 0.2, "freeze_s": 12.0},
        {"partition": 0.25, "partition_s": 20.0},
        {"nat": 0.6},
        {"liars": 2},
    ],
    ids=str,
)
def test_rounds_go_on_through_faults_and_nobody_decides_otherwise(faults: dict[str, Any]) -> None:
    found = play(members=8, rounds=6, **faults)
    assert found["rounds"]["decided"] == 6
    assert found["rounds"]["sealed"] >= 5


@pytest.mark.slow
def test_a_night_in_which_two_fifths_of_the_voters_leave_within_an_hour_is_survived() -> None:
    found = play(members=10, rounds=16, train_s=300.0, night=0.4)
    assert found["faults"] == {"left for the night": 4}
    assert found["rounds"]["sealed"] >= 15
    assert found["per_round"][-1]["members"] == 6


def test_members_behind_nats_do_not_reduce_and_send_fewer_results() -> None:
    open_, hidden = LinkClass(share=0.5), LinkClass(share=0.5, nat=1.0)
    net = Internet(replace(SMALL, members=8, links=(open_, hidden)))
    net.play()
    sent = {True: [], False: []}  # type: dict[bool, list[int]]
    for station, is_private in net.stations.values():
        sent[is_private].append(station.up.carried_bytes)
    assert max(sent[True]) < min(sent[False])


def test_who_asks_in_an_exchange_that_only_takes_long_is_nobody() -> None:
    found = play(members=4, rounds=3, params=400_000_000, up=20_000_000, down=20_000_000)
    assert found["exchange_s"]["median"] > 2 * SMALL.grace_s
    assert found["bytes_per_peer_and_round"]["by_kind"].get("asks", 0.0) == 0.0
