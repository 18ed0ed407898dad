"""Two threads: the user's, which trains, and the node's."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import pytest
import trio

from p2pnet.errors import ConfigError, NetworkError, P2pnetError
from p2pnet.node import bridge as br


def in_thread(what: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=what, daemon=True)
    thread.start()
    return thread


def test_what_the_node_says_comes_in_order() -> None:
    bridge = br.Bridge()
    assert bridge.poll() is None
    tasks = [br.RoundTask(number, b"\0" * 32, False) for number in range(3)]
    for task in tasks:
        bridge.give(task)
    assert [bridge.wait(), bridge.poll(), bridge.wait(1)] == tasks


def test_what_the_user_says_is_taken_in_order_in_the_nodes_thread() -> None:
    bridge, ready, taken = br.Bridge(), threading.Event(), []

    async def node() -> None:
        bridge.bind()
        ready.set()
        taken.extend([await bridge.take() for _ in range(500)])

    thread = in_thread(lambda: trio.run(node))
    assert ready.wait(10)
    said: list[br.ToNode] = [br.Skipped(number, "") for number in range(500)]
    for item in said:
        bridge.tell(item)
    thread.join(10)
    assert taken == said


def test_the_loop_that_waits_gets_the_error_of_a_node_that_dies() -> None:
    bridge = br.Bridge()
    dying = threading.Timer(0.05, lambda: bridge.give(br.Closed(ConfigError("state_dir: in use"))))
    dying.start()
    for _ in range(3):  # and whoever asks later, too
        with pytest.raises(ConfigError, match="in use"):
            bridge.wait()
    with pytest.raises(ConfigError, match="in use"):
        bridge.poll()


def test_an_error_that_nobody_planned_says_what_it_was() -> None:
    bridge = br.Bridge()
    bridge.give(br.Closed(ZeroDivisionError("round")))
    with pytest.raises(P2pnetError, match=r"the node failed: ZeroDivisionError\('round'\)"):
        bridge.wait()


def test_a_node_that_has_ended_says_so_instead_of_keeping_the_loop() -> None:
    bridge = br.Bridge()
    bridge.give(br.Closed(None))
    with pytest.raises(P2pnetError, match="has ended"):
        bridge.wait()
    with pytest.raises(P2pnetError, match="has ended"):
        bridge.poll()


def test_waiting_ends_after_its_time() -> None:
    with pytest.raises(NetworkError, match=r"nothing from the swarm within 0\.01 s"):
        br.Bridge().wait(0.01)


def test_telling_a_node_that_has_ended_does_nothing() -> None:
    bridge = br.Bridge()

    async def node() -> None:
        bridge.bind()

    trio.run(node)
    bridge.tell(br.Leave())


def test_telling_a_node_that_was_never_there_is_our_mistake() -> None:
    with pytest.raises(ValueError, match="not ready"):
        br.Bridge().tell(br.Leave())


def test_ctrl_c_ends_the_waiting() -> None:
    bridge = br.Bridge()
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - it must not come before
        threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        bridge.wait()
