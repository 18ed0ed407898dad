"""One swarm of four through kill -9 of two peers at once, of one, and their return."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from p2pnet.config import SwarmConfig
from p2pnet.demo import DemoSettings, bootstrap_command, peer_command, prepare
from p2pnet.schema import load_file
from tests.processes.runs import Event, Run, is_final_round

PEERS, ROUNDS = 4, 30
KILLED = (2, 3)  # at once, and later the second of them again


@dataclass
class Story:
    """What happened."""

    names: list[str] = field(default_factory=list)  # peer ids
    orphans: list[str] = field(default_factory=list)  # what outlived a killed peer
    stalled: list[Event] = field(default_factory=list)  # notes of the two that were left
    branched: list[Event] = field(default_factory=list)  # rounds of the branch in which they went on
    rejoined: list[Event] = field(default_factory=list)  # of it, after one of the two was killed and started again
    resumed: list[Event] = field(default_factory=list)
    without: list[Event] = field(default_factory=list)  # a round of the three that were left, the second time
    told: dict[int, list[Event]] = field(default_factory=dict)  # by each peer's last process
    ends: list[Event] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)


@pytest.fixture(scope="module")
def story(small: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    with contextlib.ExitStack() as stack:
        return tell(stack, small, text, tmp_path_factory.mktemp("crashes"))


def tell(stack: contextlib.ExitStack, small: Path, text: Path, folder: Path) -> Story:
    story = Story()
    bootstrap = stack.enter_context(Run(bootstrap_command(folder), folder / "bootstrap.log"))
    addrs = json.loads(bootstrap.wait_line(lambda line: "addrs" in line))["addrs"]
    settings = DemoSettings(PEERS, ROUNDS, folder, text, load_file(SwarmConfig, small))
    link = replace(prepare(settings)[0], bootstrap=tuple(addrs))

    def start(index: int) -> Run:
        command = peer_command(link, folder / f"peer-{index}", ROUNDS, text, "--held-out-rounds", "0")
        return stack.enter_context(Run(command, folder / f"peer-{index}.log"))

    runs = [start(index) for index in range(PEERS)]
    story.names = [run.wait_for(is_event("listening"))["peer"] for run in runs]
    runs[0].wait_round(2)
    kill_two(story, runs, start)
    kill_one(story, runs, start)
    story.ends = [run.wait_for(is_event("end")) for run in runs]
    for run in runs:
        assert run.process.stdin is not None
        run.process.stdin.close()  # the lifelines
    story.statuses = [run.wait() for run in runs]
    story.told = {index: run.events for index, run in enumerate(runs)}
    return story


def kill_two(story: Story, runs: list[Run], start: Callable[[int], Run]) -> None:
    """Two of four voters go at once: the others wait for one of them, and say so."""
    for index in KILLED:
        runs[index].process.kill()
    story.orphans = [left for index in KILLED for left in runs[index].left_after(3.0)]
    left = [run for index, run in enumerate(runs) if index not in KILLED]
    story.stalled = [run.wait_for(stalls_over(2)) for run in left]
    first = left[0].wait_for(in_branch)["round"]
    story.branched = [
        run.wait_for(lambda event, number=number: in_branch(event) and event["round"] == number)  # type: ignore[misc]
        for run in left
        for number in (first, first + 1)
    ]
    runs[0].kill()
    runs[0] = start(0)
    again = runs[0].wait_for(in_branch)
    same = "branch", "round"  # the other may have gone on alone meanwhile, in another branch from there
    story.rejoined = [
        again,
        runs[1].wait_for(lambda event: [event.get(key) for key in same] == [again[key] for key in same]),
    ]
    left = runs[:2]
    for index in KILLED:
        runs[index].wait()
        runs[index] = start(index)
    home = story.stalled[0]["round"]
    story.resumed = [
        run.wait_for(lambda event: is_note("branch-left")(event) and event["round"] == home) for run in left
    ]
    for run in runs:
        run.wait_for(is_whole)


def kill_one(story: Story, runs: list[Run], start: Callable[[int], Run]) -> None:
    """One goes: the others decide without it, and it catches up."""
    again = KILLED[-1]
    runs[again].kill()
    others = [run for run in runs if run is not runs[again]]
    goes_on = max(run.last_round for run in runs) + 3  # the round in which it died may still have it
    story.without = [run.wait_round(goes_on) for run in others]
    for run in others:
        run.process.send_signal(signal.SIGSTOP)  # or all rounds would be over before it is back
    runs[again] = start(again)
    runs[again].wait_for(is_event("ready"))
    for run in others:
        run.process.send_signal(signal.SIGCONT)


def in_branch(event: Event) -> bool:
    return bool(event["event"] == "round" and event["branch"])


def is_whole(event: Event) -> bool:
    return is_final_round(event) and event["credited"] and event["members"] == PEERS


def is_event(name: str) -> Callable[[Event], bool]:
    return lambda event: event["event"] == name


def is_note(kind: str) -> Callable[[Event], bool]:
    return lambda event: event["event"] == "note" and event["kind"] == kind


def stalls_over(count: int) -> Callable[[Event], bool]:
    return lambda event: is_note("stalled")(event) and len(event["peers"]) == count


def rounds_of(story: Story, index: int) -> Iterator[Event]:
    """The rounds of the final chain."""
    return filter(is_final_round, story.told[index])


def test_nothing_outlives_a_killed_peer(story: Story) -> None:
    assert story.orphans == []


def test_three_of_four_go_on_deciding_without_the_killed_one(story: Story) -> None:
    assert [(event["members"], event["void"]) for event in story.without] == [(3, False)] * 3
    assert all(event["credited"] for event in story.without)


def test_two_of_four_say_that_the_round_is_stalled_and_who_is_missing(story: Story) -> None:
    missing = {story.names[index] for index in KILLED}
    assert [set(event["peers"]) for event in story.stalled] == [missing] * 2
    assert all("3 are needed" in event["detail"] for event in story.stalled)


def test_they_go_on_by_themselves_in_one_branch_with_the_same_result(story: Story) -> None:
    one, other = story.branched[:2], story.branched[2:]
    assert [event["branch"] for event in one] == [event["branch"] for event in other]
    assert [event["lineage"] for event in one] == [event["lineage"] for event in other]
    assert [event["members"] for event in story.branched] == [2] * 4
    assert all(event["credited"] for event in story.branched)


def test_who_is_killed_in_the_branch_goes_on_in_it(story: Story) -> None:
    again, other = story.rejoined
    assert (again["branch"], again["lineage"]) == (story.branched[0]["branch"], other["lineage"])
    assert again["round"] > story.branched[0]["round"]


def test_the_stalled_round_goes_on_when_they_are_back(story: Story) -> None:
    assert [event["round"] for event in story.resumed] == [event["round"] for event in story.stalled]


@pytest.mark.parametrize("index", KILLED)
def test_a_restarted_peer_replays_what_it_missed_and_takes_part_again(story: Story, index: int) -> None:
    rounds = list(rounds_of(story, index))
    assert any(event["steps"] and event["credited"] for event in rounds)
    assert [event["round"] for event in rounds] == list(range(rounds[0]["round"], ROUNDS))
    assert story.told[index][0]["event"] == "listening"
    assert story.told[index][0]["peer"] == story.names[index]  # the same key


def test_no_round_is_decided_twice_in_different_ways(story: Story) -> None:
    lineages: dict[int, set[str]] = {}
    for index in story.told:
        for event in rounds_of(story, index):
            lineages.setdefault(event["round"], set()).add(event["lineage"])
    assert lineages.keys() == set(range(ROUNDS))
    assert all(len(found) == 1 for found in lineages.values())


def test_nobody_finds_that_another_started_from_other_parameters(story: Story) -> None:
    notes = [event for told in story.told.values() for event in told if event["event"] == "note"]
    assert not [note for note in notes if note["kind"] == "diverged"]


def test_all_end_bit_identical(story: Story) -> None:
    assert len({(end["rounds"], end["lineage"], end["state_sha256"]) for end in story.ends}) == 1
    assert story.ends[0]["rounds"] == ROUNDS
    assert story.statuses == [0] * PEERS
