"""Tell a person how the running node fares: JSON over a local socket, found through a file in the state directory."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from p2pnet.errors import ConfigError, P2pnetError
from p2pnet.net.process import runtime_folder
from p2pnet.net.sockets import UnixSocket

log = logging.getLogger(__name__)

POINTER_NAME = "node.json"
STATUS_BYTES_MAX = 4 << 20
TIMEOUT_S = 5.0


async def serve_status(state_dir: Path, snapshot: Callable[[], dict[str, Any]]) -> None:
    """Answer every connection with the snapshot as one JSON object, until cancelled."""
    pointer = state_dir / POINTER_NAME
    with runtime_folder() as folder, UnixSocket.listen(folder / "s") as listener:
        pointer.write_text(json.dumps({"pid": os.getpid(), "socket": str(folder / "s")}))
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    try:
                        client = await listener.accept()
                    except OSError as error:  # no descriptors are left: a node does not end for that
                        log.warning("cannot take a question about the status: %s", error.strerror)
                        await trio.sleep(1)
                        continue
                    nursery.start_soon(_answer, client, snapshot)
        finally:
            pointer.unlink(missing_ok=True)


async def _answer(client: UnixSocket, snapshot: Callable[[], dict[str, Any]]) -> None:
    with client, trio.move_on_after(TIMEOUT_S):
        try:
            data = memoryview(json.dumps(snapshot()).encode())
            while data:
                data = data[await client.send_some(b"", data) :]
        except OSError:
            return  # who asked has gone


def read_status(state_dir: Path) -> dict[str, Any]:
    """Ask the node that runs in a state directory; raises ConfigError when none does."""
    pointer = state_dir / POINTER_NAME
    try:
        where = json.loads(pointer.read_text())["socket"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"no node runs in {state_dir}: start one with `p2pnet join LINK`") from error
    chunks: list[bytes] = []
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(TIMEOUT_S)
            client.connect(str(where))
            while (chunk := client.recv(65536)) and sum(map(len, chunks)) < STATUS_BYTES_MAX:
                chunks.append(chunk)
    except OSError as error:
        raise ConfigError(f"the node in {state_dir} does not answer ({error}): it has probably ended") from error
    try:
        status = json.loads(b"".join(chunks))
        if not isinstance(status, dict):
            raise ValueError(f"a {type(status).__name__}")
    except (ValueError, RecursionError) as error:
        raise P2pnetError(f"the node in {state_dir} answered something else than its status") from error
    return status
