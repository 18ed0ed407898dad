"""Take commands from the user of this machine: JSON over a local socket, found through a file in the state directory.

A question is one line, {"command": "status"}; the answer is one JSON object, and the end. The socket lies in a folder
of mode 0700: who is not this user cannot connect. It has threads of its own, so it answers whatever the node does.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from p2pnet.errors import ConfigError, P2pnetError, remedy
from p2pnet.net.process import NODE_SOCKET, runtime_folder
from p2pnet.net.sockets import close_in_children, let_children_have

log = logging.getLogger(__name__)

POINTER_NAME: Final = "node.json"
QUESTION_BYTES_MAX: Final = 1024
ANSWER_BYTES_MAX: Final = 4 << 20
TIMEOUT_S: Final = 5.0
ASKERS_MAX: Final = 8  # at once

Facts = dict[str, Any]


class CommandSocket:
    """Answers commands from `with` to its end."""

    def __init__(self, folder: Path, answers: Mapping[str, Callable[[], Facts]]) -> None:
        """folder: the swarm's on this machine.   answers: by command; called in threads, and may raise P2pnetError."""
        self._pointer, self._answers = folder / POINTER_NAME, answers
        self._free = threading.Semaphore(ASKERS_MAX)
        self._closing = threading.Event()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._path = stack.enter_context(runtime_folder()) / NODE_SOCKET
            self._listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            close_in_children(self._listener)
            stack.callback(let_children_have, self._listener)
            self._listener.bind(str(self._path))
            self._listener.listen(ASKERS_MAX)
            try:
                self._pointer.write_text(json.dumps({"pid": os.getpid(), "socket": str(self._path)}))
            except OSError as error:
                raise ConfigError(f"state_dir: cannot write {self._pointer}: {remedy(error)}") from error
            stack.callback(self._pointer.unlink, missing_ok=True)
            thread = threading.Thread(target=self._serve, name="p2pnet-commands", daemon=True)
            thread.start()
            stack.callback(self._wake, thread)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _wake(self, thread: threading.Thread) -> None:
        """End the thread, which waits for somebody to connect."""
        self._closing.set()
        with suppress(OSError), socket.socket(socket.AF_UNIX) as last:
            last.connect(str(self._path))
        thread.join(TIMEOUT_S)

    def _serve(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError as error:  # no descriptors are left: a node does not end for that
                log.warning("cannot take a command: %s", error.strerror)
                self._closing.wait(1)
                continue
            if self._closing.is_set() or not self._free.acquire(blocking=False):
                client.close()
                continue
            close_in_children(client)
            threading.Thread(target=self._converse, args=(client,), name="p2pnet-command", daemon=True).start()

    def _converse(self, client: socket.socket) -> None:
        try:
            with client, suppress(OSError):  # who asked has gone, or does not read
                client.settimeout(TIMEOUT_S)
                client.sendall(json.dumps(self._answer(_read_line(client))).encode())
        finally:
            let_children_have(client)
            self._free.release()

    def _answer(self, question: bytes) -> Facts:
        try:
            asked = json.loads(question)
            answer = self._answers.get(asked["command"])
        except (ValueError, KeyError, TypeError, RecursionError):
            answer = None
        if answer is None:
            return {"error": f"this node takes the commands {', '.join(self._answers)}"}
        try:
            return answer()
        except P2pnetError as error:
            return {"error": str(error)}


def _read_line(client: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) <= QUESTION_BYTES_MAX and (chunk := client.recv(QUESTION_BYTES_MAX)):
        line += chunk
    return line


def ask_node(folder: Path, command: str) -> Facts:
    """Give the node that runs in a swarm's folder a command; returns what it answers.

    Raises ConfigError when none runs there, P2pnetError for what it refuses, or answers wrongly.
    """
    where = find_node(folder)[1]
    chunks: list[bytes] = []
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(TIMEOUT_S)
            client.connect(where)
            client.sendall(json.dumps({"command": command}).encode() + b"\n")
            while (chunk := client.recv(65536)) and sum(map(len, chunks)) < ANSWER_BYTES_MAX:
                chunks.append(chunk)
    except (OSError, ValueError) as error:  # ValueError: a path that no system has
        raise ConfigError(
            f"the node in {folder} does not answer ({error}): it has probably ended; `p2pnet join LINK` starts it again"
        ) from error
    try:
        facts = json.loads(b"".join(chunks))
        if not isinstance(facts, dict):
            raise ValueError(f"a {type(facts).__name__}")  # noqa: TRY004 - as what is no JSON
    except (ValueError, RecursionError) as error:
        raise P2pnetError(
            f"the node in {folder} answered something else than was asked; is it of this version?"
        ) from error
    if "error" in facts:
        raise P2pnetError(str(facts["error"]))
    return facts


def find_node(folder: Path) -> tuple[int, str]:
    """Return process and socket of the node that runs in a swarm's folder, or ran when it was killed.

    Raises ConfigError when there is none.
    """
    try:
        found = json.loads((folder / POINTER_NAME).read_text())
        return int(found["pid"]), str(found["socket"])
    except (OSError, ValueError, ArithmeticError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"no node runs in {folder}: start one with `p2pnet join LINK`") from error
