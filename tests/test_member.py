"""Signals, devices and who is told what; whole memberships are in tests/processes."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from p2pnet.config import NodeConfig
from p2pnet.errors import ConfigError
from p2pnet.member import Member, MemberSettings, Stop, choose_device
from p2pnet.wire.manifest import Link


def test_a_signal_ends_the_process_while_there_is_nothing_to_save() -> None:
    with Stop(), pytest.raises(SystemExit) as ended:
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143


def test_later_a_signal_only_asks_the_loop_to_end() -> None:
    asked: list[str] = []
    with Stop() as stop:
        stop.defer(lambda: asked.append("leave"))
        signal.raise_signal(signal.SIGINT)
        assert (stop.signal, asked) == (signal.SIGINT, ["leave"])


def test_the_former_handlers_are_back_afterwards() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Stop():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


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
