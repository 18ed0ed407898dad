"""Four processes in two groups, one of them killed and back: every round has one result, the same for all."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from p2pnet.config import SwarmConfig
from p2pnet.core.decided import split_listings
from p2pnet.demo import DemoSettings, bootstrap_command, peer_command, prepare
from p2pnet.ledger.log import FILE_NAME
from p2pnet.ledger.reader import LedgerReader
from p2pnet.manifests import swarm_folder
from p2pnet.schema import load_file
from p2pnet.wire.round import WideOutcome, decode_value
from tests.processes.runs import Event, Run, is_final_round

PEERS, SIZE, ROUNDS = 4, 3, 14
KILLED = 3


@dataclass
class Story:
    """What happened."""

    folder: Path
    ends: list[Event] = field(default_factory=list)
    told: list[list[Event]] = field(default_factory=list)  # by each peer's last process
    statuses: list[int] = field(default_factory=list)


@pytest.fixture(scope="module")
def story(small: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("groups")
    config = load_file(SwarmConfig, small)
    config = replace(config, policy=replace(config.policy, group_size_max=SIZE))
    with ExitStack() as stack:
        bootstrap = stack.enter_context(Run(bootstrap_command(folder), folder / "bootstrap.log"))
        addrs = json.loads(bootstrap.wait_line(lambda line: "addrs" in line))["addrs"]
        link = replace(prepare(DemoSettings(PEERS, ROUNDS, folder, text, config))[0], bootstrap=tuple(addrs))

        def start(index: int) -> Run:
            command = peer_command(link, folder / f"peer-{index}", ROUNDS, text, "--held-out-rounds", "0")
            return stack.enter_context(Run(command, folder / f"peer-{index}.log"))

        runs = [start(index) for index in range(PEERS)]
        runs[0].wait_round(1)
        runs[KILLED].kill()
        runs[KILLED] = start(KILLED)
        ends = [run.wait_for(lambda event: event["event"] == "end") for run in runs]
        for run in runs:
            assert run.process.stdin is not None
            run.process.stdin.close()  # the lifelines
        statuses = [run.wait() for run in runs]
        return Story(swarm_folder(folder / "peer-0", link.swarm), ends, [run.events for run in runs], statuses)


def test_all_end_bit_identical(story: Story) -> None:
    assert len({(end["rounds"], end["lineage"], end["state_sha256"]) for end in story.ends}) == 1
    assert story.ends[0]["rounds"] == ROUNDS
    assert story.statuses == [0] * PEERS


def test_rounds_have_results_of_two_groups(story: Story) -> None:
    with LedgerReader(story.folder / FILE_NAME) as ledger:
        entries = ledger.entries(0, ROUNDS)
    outcomes = [decode_value(entry.outcome) for entry in entries]
    assert sum(outcome.void for outcome in outcomes) <= 1  # the one in which a peer was killed
    assert all(isinstance(outcome, WideOutcome) for outcome in outcomes if not outcome.void)
    pairs = zip(outcomes, entries, strict=True)
    groups = [len(split_listings(one, entry.commits)[0]) for one, entry in pairs if isinstance(one, WideOutcome)]
    assert set(groups) == {2}


def test_the_killed_one_has_what_was_decided_without_it(story: Story) -> None:
    rounds = [event["round"] for event in story.told[KILLED] if is_final_round(event)]
    assert rounds == list(range(ROUNDS - len(rounds), ROUNDS))  # those that it was there for, perhaps none
    assert [event["event"] for event in story.told[KILLED]][-1] == "end"
