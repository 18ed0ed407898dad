"""What `p2pnet status` and its like ask, and what they get."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2pnet.errors import ConfigError, P2pnetError
from p2pnet.node.commands import POINTER_NAME, QUESTION_BYTES_MAX, CommandSocket, ask_node, find_node


def always(**facts: Any) -> Callable[[], dict[str, Any]]:
    return lambda: facts


def test_the_node_that_runs_answers_and_leaves_no_trace_behind(tmp_path: Path) -> None:
    rounds = iter(range(100))
    with CommandSocket(tmp_path, {"status": lambda: {"round": next(rounds), "large": "x" * 1_000_000}}):
        assert ask_node(tmp_path, "status")["round"] == 0
        assert ask_node(tmp_path, "status")["round"] == 1
        pid, where = find_node(tmp_path)
        assert pid == os.getpid()
    assert not (tmp_path / POINTER_NAME).exists()
    assert not Path(where).parent.exists()
    with pytest.raises(ConfigError, match="no node runs in"):
        ask_node(tmp_path, "status")


def test_nobody_but_this_user_can_connect(tmp_path: Path) -> None:
    with CommandSocket(tmp_path, {}):
        assert stat.S_IMODE(Path(find_node(tmp_path)[1]).parent.stat().st_mode) == 0o700


def test_who_asks_and_does_not_read_or_does_not_ask_holds_up_nobody(tmp_path: Path) -> None:
    with CommandSocket(tmp_path, {"status": always(large="x" * 3_000_000)}):
        where = find_node(tmp_path)[1]
        with (
            socket.socket(socket.AF_UNIX) as deaf,
            socket.socket(socket.AF_UNIX) as dumb,
            socket.socket(socket.AF_UNIX) as gone,
        ):
            deaf.connect(where)
            deaf.sendall(b'{"command": "status"}\n')
            dumb.connect(where)
            gone.connect(where)
            gone.close()
            assert len(ask_node(tmp_path, "status")["large"]) == 3_000_000


@pytest.mark.parametrize(
    "question", [b"", b"\n", b"[]\n", b"{}\n", b'{"command": 3}\n', b'{"command": []}\n', b"[" * 900 + b"\n", b"\xff\n"]
)
def test_a_question_that_is_none_is_answered_with_what_can_be_asked(tmp_path: Path, question: bytes) -> None:
    with CommandSocket(tmp_path, {"status": always(), "leave": always()}), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(find_node(tmp_path)[1])
        client.sendall(question)
        client.shutdown(socket.SHUT_WR)
        assert json.loads(client.recv(1000)) == {"error": "this node takes the commands status, leave"}


def test_a_question_without_end_is_cut_off(tmp_path: Path) -> None:
    with CommandSocket(tmp_path, {"status": always()}), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(find_node(tmp_path)[1])
        client.sendall(b"x" * (QUESTION_BYTES_MAX + 1))
        assert b"error" in client.recv(1000)


def test_what_a_node_refuses_is_said(tmp_path: Path) -> None:
    def refuse() -> dict[str, Any]:
        raise P2pnetError("not while it rains")

    with CommandSocket(tmp_path, {"pause": refuse}):
        with pytest.raises(P2pnetError, match="not while it rains"):
            ask_node(tmp_path, "pause")
        with pytest.raises(P2pnetError, match="takes the commands pause"):
            ask_node(tmp_path, "status")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"socket": 3}', '{"pid": 1, "socket": "/nonexistent/s"}', "\0", "[" * 9999]
)
def test_a_pointer_to_nowhere_says_that_no_node_runs(tmp_path: Path, content: str) -> None:
    (tmp_path / POINTER_NAME).write_text(content)
    with pytest.raises(ConfigError, match="no node runs|has probably ended"):
        ask_node(tmp_path, "status")


@pytest.mark.parametrize("answer", [b"nonsense", b"[1]", b""])
def test_something_else_behind_the_pointer_is_said(tmp_path: Path, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        other.listen()
        (tmp_path / POINTER_NAME).write_text(json.dumps({"pid": 1, "socket": str(tmp_path / "s")}))

        def reply() -> None:
            client, _ = other.accept()
            with client:
                client.recv(100)
                client.sendall(answer)

        thread = threading.Thread(target=reply)
        thread.start()
        with pytest.raises(P2pnetError, match="something else than was asked"):
            ask_node(tmp_path, "status")
        thread.join()
