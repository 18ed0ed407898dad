"""What `p2pnet status` asks and gets."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pnet.errors import ConfigError, P2pnetError
from p2pnet.node.status import POINTER_NAME, read_status, serve_status
from tests.node.members import until


async def ask(folder: Path) -> dict[str, Any]:
    return await trio.to_thread.run_sync(read_status, folder)


async def test_the_node_that_runs_answers_and_leaves_no_pointer_behind(nursery: trio.Nursery, tmp_path: Path) -> None:
    rounds = iter(range(100))
    scope = trio.CancelScope()

    async def serve() -> None:
        with scope:
            await serve_status(tmp_path, lambda: {"round": next(rounds), "large": "x" * 1_000_000})

    nursery.start_soon(serve)
    await until((tmp_path / POINTER_NAME).exists)
    assert (await ask(tmp_path))["round"] == 0
    assert (await ask(tmp_path))["round"] == 1
    scope.cancel()
    await until(lambda: not (tmp_path / POINTER_NAME).exists())
    with pytest.raises(ConfigError, match="no node runs in"):
        await ask(tmp_path)


async def test_who_asks_and_does_not_read_holds_up_nobody(nursery: trio.Nursery, tmp_path: Path) -> None:
    nursery.start_soon(serve_status, tmp_path, lambda: {"large": "x" * 3_000_000})
    await until((tmp_path / POINTER_NAME).exists)
    with socket.socket(socket.AF_UNIX) as deaf, socket.socket(socket.AF_UNIX) as gone:
        where = json.loads((tmp_path / POINTER_NAME).read_text())["socket"]
        deaf.connect(where)
        gone.connect(where)
        gone.close()
        assert len((await ask(tmp_path))["large"]) == 3_000_000


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"socket": 3}', '{"socket": "/nonexistent/s"}', "\0"])
def test_a_pointer_to_nowhere_says_that_no_node_runs(tmp_path: Path, content: str) -> None:
    (tmp_path / POINTER_NAME).write_text(content)
    with pytest.raises(ConfigError, match="no node runs|has probably ended"):
        read_status(tmp_path)


async def test_something_else_behind_the_pointer_is_said(nursery: trio.Nursery, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        other.listen()
        (tmp_path / POINTER_NAME).write_text(json.dumps({"socket": str(tmp_path / "s")}))

        def answer() -> None:
            client, _ = other.accept()
            with client:
                client.sendall(b"nonsense")

        nursery.start_soon(trio.to_thread.run_sync, answer)
        with pytest.raises(P2pnetError, match="something else than its status"):
            await ask(tmp_path)
