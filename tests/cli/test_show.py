from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from p2pnet.cli import show
from p2pnet.config import BytesLmTask, Swarm, SwarmConfig, Training
from p2pnet.identity import Identity, peer_id_text
from p2pnet.manifests import make_manifest
from p2pnet.net.bootstrap import BootstrapConfig, BootstrapStarted, run_bootstrap
from p2pnet.net.daemon import DaemonOptions
from p2pnet.net.discovery import Discovery
from p2pnet.net.libp2p import open_libp2p_host
from p2pnet.node.content import MANIFEST_NAME, Content
from p2pnet.node.download import PROTOCOL
from p2pnet.wire.manifest import Link, Manifest, ParameterRow, swarm_id
from p2pnet.wire.signing import Signed
from tests.cli.conftest import Run

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
DEFAULT = Training()
CREATOR = Identity.from_seed(b"c" * 32)
NOBODY = f"/ip4/127.0.0.1/tcp/1/p2p/{peer_id_text(Identity.from_seed(b'n' * 32).peer)}"


def make(name: str = "shown", training: Training = DEFAULT) -> Signed[Manifest]:
    table = (ParameterRow("w", "float32", (64, 64), 1),)
    config = SwarmConfig(Swarm(name), BytesLmTask("bytes-lm"), training)
    return make_manifest(config, table, b"initial", CREATOR, 1_700_000_000)


def test_what_ends_a_round_is_shown(run: Run, home: Path) -> None:
    for by_window, shown in ((False, "30 steps or 60 s"), (True, "60 s, 30 steps of an ordinary member")):
        training = Training(h_steps=30, window_s=60.0, by_window=by_window)
        (home / "a.bin").write_bytes(make(training=training).raw)
        assert f"{shown}, 240 samples for the full weight" in run("swarm", "show", "a.bin").out
        assert run("swarm", "show", "a.bin", "--json").json["policy"]["by_window"] == by_window


def test_a_manifest_that_was_changed_is_not_shown(run: Run, home: Path) -> None:
    signed = make()
    (home / "a.bin").write_bytes(signed.raw)
    assert run("swarm", "show", "a.bin", "--json").json["swarm"] == swarm_id(signed).hex()
    changed = replace(signed, body=signed.body.replace(b"shown", b"shewn"))
    for raw, rule in ((changed.raw, "wire-1/R6"), (signed.raw[:-1], "wire-1/R1"), (b"garbage", "wire-1")):
        (home / "a.bin").write_bytes(raw)
        done = run("swarm", "show", "a.bin")
        assert (done.status, done.out) == (2, "")
        assert "a.bin: not a valid manifest" in done.err
        assert rule in done.err


def test_the_manifest_of_another_swarm_is_not_shown(run: Run, home: Path) -> None:
    signed, other = make(), make("other")
    folder = home / "s" / swarm_id(signed).hex()[:16]
    folder.mkdir(parents=True)
    (folder / MANIFEST_NAME).write_bytes(other.raw)
    for what in ("s", folder, f"p2pnet://{swarm_id(signed).hex()}"):
        done = run("swarm", "show", what, "--state-dir", "s")
        assert done.status == 2
        assert f"hash is {swarm_id(other).hex()}" in done.err


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nothing.bin", "no such file or folder; a link starts with p2pnet://"),
        (".", "no swarm there"),
        ("p2pnet://abc", "64 hexadecimal digits"),
        (f"p2pnet://{'ab' * 32}", "names no bootstrap peer"),
        (f"p2pnet://{'ab' * 32}?bootstrap=/ip4/1.2.3.4/tcp/1", "ends in /p2p/"),
    ],
)
def test_what_is_no_manifest_is_said(run: Run, what: str, message: str) -> None:
    done = run("swarm", "show", what)
    assert done.status == 2
    assert message in done.err


def test_a_hostile_name_reaches_no_terminal() -> None:
    facts = show.describe_manifest(make("\x1b[2J"))
    assert facts["name"] == "\x1b[2J"  # JSON escapes it; `show_fields` does for people


@pytest.fixture
async def bootstrap(home: Path, nursery: trio.Nursery) -> AsyncIterator[str]:
    told: list[BootstrapStarted] = []
    up = trio.Event()

    def on_started(started: BootstrapStarted) -> None:
        told.append(started)
        up.set()

    nursery.start_soon(run_bootstrap, BootstrapConfig(home / "b.key", LOOPBACK), on_started)
    with trio.fail_after(20):
        await up.wait()
    yield told[0].addrs[0]
    nursery.cancel_scope.cancel()


async def run_member(home: Path, signed: Signed[Manifest], bootstrap: str, task_status: trio.TaskStatus[None]) -> None:
    Identity.generate().save(home / "m.key")
    content = Content(home / "member", swarm_id(signed))
    content.manifest = signed
    async with open_libp2p_host(DaemonOptions(listen=LOOPBACK), home / "m.key") as host:
        await host.handle(PROTOCOL, content.serve)
        task_status.started()
        await Discovery(host, swarm_id(signed), [bootstrap]).run()


@pytest.mark.processes
async def test_with_a_link_it_is_fetched_from_a_member_and_verified(
    run: Run, home: Path, bootstrap: str, nursery: trio.Nursery
) -> None:
    signed = make()
    await nursery.start(run_member, home, signed, bootstrap)
    link = Link(swarm_id(signed), (NOBODY, bootstrap))
    done = await trio.to_thread.run_sync(partial(run, "swarm", "show", link, "--json", "--timeout", 20))
    assert done.json["swarm"] == swarm_id(signed).hex()
    assert done.json["name"] == "shown"
    assert not (home / ".local").exists()  # no trace


@pytest.mark.processes
async def test_a_swarm_that_nobody_runs_is_not_found(run: Run, bootstrap: str) -> None:
    link = Link(b"\xab" * 32, (bootstrap,))
    done = await trio.to_thread.run_sync(partial(run, "swarm", "show", link, "--timeout", 1.5))
    assert done.status == 1
    assert "no member of the swarm was found in 1.5 s" in done.err


@pytest.mark.processes
def test_bootstrap_peers_that_do_not_answer_are_named_with_the_reason(run: Run) -> None:
    done = run("swarm", "show", f"p2pnet://{'ab' * 32}?bootstrap={NOBODY}", "--timeout", 1)
    assert done.status == 1
    assert "no bootstrap peer answers; tried 12D3KooW" in done.err
    assert "refused" in done.err
