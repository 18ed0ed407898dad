"""A node with its daemon, from start to end, and whatever ends it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from p2pnet.config import NodeConfig
from p2pnet.core.events import Heard
from p2pnet.core.gossip import Verdict
from p2pnet.errors import ConfigError, P2pnetError
from p2pnet.identity import Identity
from p2pnet.node import bridge as br
from p2pnet.node.runner import KEY_NAME, Node, NodeSettings, _first
from p2pnet.wire.manifest import Link
from p2pnet.wire.round import Endorsement, Quorum, Vote
from p2pnet.wire.signing import sign_message

LOCAL = ("/ip4/127.0.0.1/tcp/0",)
LINK = Link(b"\1" * 32, ())


def make_node(folder: Path, **config: object) -> Node:
    return Node(NodeSettings(LINK, folder, NodeConfig(listen=LOCAL, **config)))  # type: ignore[arg-type]


def error_of(node: Node) -> BaseException | None:
    """What the node's thread says at its end."""
    node.start()
    item = node.bridge._to_user.get(timeout=30)
    assert isinstance(item, br.Closed)
    node.stop()
    assert not node.is_running()
    return item.error


def test_a_node_that_is_told_to_end_before_it_began_ends_and_starts_no_daemon(tmp_path: Path) -> None:
    node = make_node(tmp_path / "state")
    node.leave()
    assert error_of(node) is None
    assert not (tmp_path / "state").exists()


@pytest.mark.processes
def test_a_node_ends_with_its_daemon_and_lets_its_directory_go(tmp_path: Path) -> None:
    for _ in range(2):
        told: list[str] = []
        node = Node(
            NodeSettings(LINK, tmp_path, NodeConfig(listen=LOCAL), lambda kind, _, told=told: told.append(kind))
        )
        node.start()
        while "progress" not in told:  # it looks for the manifest
            assert node.is_running()
        pid = node.daemon_pid
        assert pid
        assert node.status()["phase"] == "opening"
        node.stop()
        assert not node.is_running()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        with pytest.raises(P2pnetError, match="has ended"):
            node.bridge.wait(5)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    Identity.load_or_create(tmp_path / KEY_NAME)
    (tmp_path / KEY_NAME).chmod(0o644)
    error = error_of(make_node(tmp_path))
    assert isinstance(error, ConfigError)
    assert KEY_NAME in str(error)


def test_a_key_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / KEY_NAME).write_bytes(b"-----BEGIN RSA PRIVATE KEY-----")
    (tmp_path / KEY_NAME).chmod(0o600)
    assert isinstance(error_of(make_node(tmp_path)), ConfigError)


def test_a_missing_daemon_names_the_command_that_brings_it(tmp_path: Path) -> None:
    error = error_of(make_node(tmp_path, daemon=tmp_path / "no-daemon"))
    assert isinstance(error, ConfigError)
    assert "daemon" in str(error)


@pytest.mark.processes
def test_a_port_in_use_is_the_operators_error(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        listen = (f"/ip4/127.0.0.1/tcp/{port}",)
        node = Node(NodeSettings(LINK, tmp_path / "1", NodeConfig(listen=listen)))
        assert isinstance(error_of(node), ConfigError)
        metrics = Node(NodeSettings(LINK, tmp_path / "2", NodeConfig(listen=LOCAL, metrics_port=port)))
        assert isinstance(error_of(metrics), ConfigError)


def test_of_many_errors_the_one_that_is_ours_by_design_is_told() -> None:
    ours = ConfigError("state_dir")
    group = BaseExceptionGroup("", [ValueError(), BaseExceptionGroup("", [KeyError(), ours])])
    assert _first(group) is ours
    assert isinstance(_first(BaseExceptionGroup("", [ValueError()])), ValueError)


def test_while_it_catches_up_a_node_passes_on_what_is_signed_and_so_is_not_offered_it_for_ever(tmp_path: Path) -> None:
    node, who = make_node(tmp_path), Identity.from_seed(b"\1" * 32)
    vote = sign_message(Vote(LINK.swarm, 3, 0, 1, b""), who.peer, who.sign)
    bundle = Quorum(LINK.swarm, 3, 0, 2, b"\1" * 32, (Endorsement(who.peer, b"\0" * 64),))
    assert node._judge(Heard(who.peer, vote)) is Verdict.ACCEPT
    assert node._judge(Heard(who.peer, bundle)) is Verdict.IGNORE  # nobody here knows the electorate yet
