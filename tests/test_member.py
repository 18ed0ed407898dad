"""Devices, disks and who is told what; whole memberships are in tests/processes."""

from __future__ import annotations

import signal
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from p2pnet.config import CustomTask, NodeConfig, Swarm, SwarmConfig
from p2pnet.errors import ConfigError
from p2pnet.hours import Hours
from p2pnet.identity import Identity
from p2pnet.ledger.lock import StateLock
from p2pnet.manifests import make_manifest, needed_bytes
from p2pnet.member import Member, MemberSettings, Tell, choose_device
from p2pnet.node.commands import ask_node
from p2pnet.wire.manifest import Link, ParameterRow

ALICE = Identity.from_seed(b"a" * 32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused_and_auto_takes_what_there_is() -> None:
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="no CUDA device"):
        choose_device("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_auto_takes_the_cuda_device() -> None:
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    assert choose_device("cpu") == torch.device("cpu")


def member_of(folder: Path, tell: Tell, **settings: Any) -> Member:
    config = NodeConfig(listen=("/ip4/127.0.0.1/tcp/0",), **settings)
    return Member(MemberSettings(Link(b"\xab" * 32, ()), folder, config), tell)


def test_who_is_paused_and_leaves_ends_in_peace_and_was_there_for_commands_all_the_time(tmp_path: Path) -> None:
    told: list[tuple[str, dict[str, Any]]] = []

    def tell(event: str, fields: dict[str, Any]) -> None:
        if event == "progress":  # how far it came before it was paused is a matter of timing
            return
        told.append((event, fields))
        if event == "listening":
            threading.Thread(target=ask_node, args=(tmp_path, "pause")).start()
        if event == "paused":
            threading.Thread(target=talk).start()

    def talk() -> None:
        facts = ask_node(tmp_path, "status")
        answers.append((facts["phase"], facts["paused"], facts["swarm"], "connected" in facts))
        ask_node(tmp_path, "leave")

    answers: list[tuple[str, bool, str, bool]] = []
    assert member_of(tmp_path, tell).run() == 0
    assert [event for event, _ in told] == ["listening", "paused"]
    assert answers == [("paused", True, "ab" * 32, False)]
    assert not (tmp_path / "node.json").exists()


def test_outside_its_hours_nothing_is_started_and_it_says_until_when(tmp_path: Path) -> None:
    hour = datetime.now().hour  # noqa: DTZ005 - the wall's
    told: list[tuple[str, dict[str, Any]]] = []

    def tell(event: str, fields: dict[str, Any]) -> None:
        told.append((event, fields))
        threading.Thread(target=ask_node, args=(tmp_path, "leave")).start()

    hours = Hours.parse(f"{(hour + 2) % 24}-{(hour + 4) % 24}")
    assert member_of(tmp_path, tell, hours=hours).run() == 0
    [(event, fields)] = told
    assert (event, fields["paused"], fields["hours"]) == ("paused", False, str(hours))
    assert fields["paused_until"].startswith(f"{(hour + 2) % 24:02}:00")
    assert {path.name for path in tmp_path.iterdir()} == {"lock"}


def test_a_paused_member_keeps_its_folder_from_others(tmp_path: Path) -> None:
    errors: list[str] = []

    def tell(event: str, _fields: dict[str, Any]) -> None:
        if event == "paused":
            try:
                StateLock(tmp_path)
            except ConfigError as error:
                errors.append(str(error))
            member.presence.leave()

    member = member_of(tmp_path, tell)
    member.presence.pause()
    assert member.run() == 0
    assert "in use by process" in errors[0]


def test_a_swarm_that_does_not_fit_on_the_disk_is_refused_with_what_it_needs(tmp_path: Path) -> None:
    rows = (ParameterRow("w", "float32", (1000, 4096), 1),)
    signed = make_manifest(SwarmConfig(Swarm("large"), CustomTask("custom")), rows, b"", ALICE, 1)
    needed = needed_bytes(signed.message, 64)
    assert needed > 52 * 1000 * 4096
    member = member_of(tmp_path, lambda _event, _fields: None, disk_bytes=100_000_000)
    with pytest.raises(ConfigError, match=r"disk: the swarm needs 0.2\d GB in .*, allowed are 0.10 GB; allow more"):
        member._build(signed.message)


def test_ctrl_c_while_the_swarm_is_looked_for_leaves_no_node_behind(tmp_path: Path) -> None:
    told: list[str] = []
    main = threading.main_thread().ident or 0

    def tell(event: str, _fields: dict[str, Any]) -> None:
        told.append(event)
        if event == "listening":
            signal.pthread_kill(main, signal.SIGINT)

    settings = MemberSettings(Link(b"\xab" * 32, ()), tmp_path, NodeConfig(listen=("/ip4/127.0.0.1/tcp/0",)))
    member = Member(settings, tell)
    with pytest.raises(SystemExit) as ended:
        member.run()
    assert ended.value.code == 130
    assert told[0] == "listening"
    assert not (tmp_path / "node.json").exists()
