from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnet.errors import ConfigError
from p2pnet.identity import Identity, peer_id_text
from p2pnet.net import daemon
from p2pnet.net.daemon import DaemonOptions, daemon_arguments, find_daemon, installed_path

RELAY = f"/ip4/192.0.2.1/tcp/4001/p2p/{peer_id_text(Identity.from_seed(bytes(32)).peer)}"
OPTIONS = st.builds(
    DaemonOptions,
    listen=st.sampled_from([(), ("/ip4/127.0.0.1/tcp/0",), ("/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001")]),
    announce=st.sampled_from([(), ("/dns4/node.example/tcp/4001",)]),
    relays=st.sampled_from([(), (RELAY,)]),
    dht=st.sampled_from(["auto", "server", "client"]),
    reachability=st.sampled_from(["auto", "public", "private"]),
    nat_port_map=st.booleans(),
    autonat=st.booleans(),
    relay_service=st.booleans(),
)


def arguments(options: DaemonOptions) -> list[str]:
    return daemon_arguments(options, Path("/keys/node.key"), Path("/run/p2pnet-x/c"))


@given(OPTIONS)
def test_no_bootstrap_of_the_daemons_own_is_ever_asked_for(options: DaemonOptions) -> None:
    names = {argument.split("=")[0] for argument in arguments(options)}
    assert not names & {"-b", "--b", "-bootstrapPeers", "-f", "-i"}


@given(OPTIONS)
def test_every_address_in_the_arguments_is_one_that_was_given(options: DaemonOptions) -> None:
    given_addrs = {*options.listen, *options.announce, *options.relays}
    for argument in arguments(options):
        name, _, value = argument.partition("=")
        if "/ip" in value or "/dns" in value or "/p2p/" in value:
            assert set(value.split(",")) <= given_addrs, name


@given(OPTIONS)
def test_relays_are_named_or_there_are_none(options: DaemonOptions) -> None:
    found = arguments(options)
    assert "-relayDiscovery=0" in found
    assert ("-autoRelay=1" in found) == bool(options.relays)
    assert (f"-trustedRelays={RELAY}" in found) == bool(options.relays)


def test_the_default_arguments_are_these() -> None:
    assert arguments(DaemonOptions()) == [
        "-q",
        "-listen=/unix/run/p2pnet-x/c",
        "-id=/keys/node.key",
        "-idleTimeout=30s",
        "-pubsub=0",
        "-dht=1",
        "-relay=1",
        "-relayService=0",
        "-relayDiscovery=0",
        "-natPortMap=0",
        "-autonat=1",
        "-connManager=1",
        "-connLo=160",
        "-connHi=256",
        "-connGrace=30s",
        "-hostAddrs=/ip4/0.0.0.0/tcp/0",
    ]


@pytest.mark.parametrize(
    ("listen", "mode", "argument"),
    [
        (("/ip4/0.0.0.0/tcp/1",), "auto", "-dht=1"),
        (("/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1"), "auto", "-dhtServer=1"),
        (("/ip4/127.0.0.1/tcp/1", "/ip4/0.0.0.0/tcp/1"), "auto", "-dht=1"),
        ((), "auto", "-dht=1"),
        (("/ip4/0.0.0.0/tcp/1",), "server", "-dhtServer=1"),
        (("/ip4/127.0.0.1/tcp/1",), "client", "-dhtClient=1"),
    ],
)
def test_on_loopback_alone_the_dht_is_a_server_since_autonat_cannot_say_public(
    listen: tuple[str, ...], mode: str, argument: str
) -> None:
    found = arguments(DaemonOptions(listen=listen, dht=mode))  # type: ignore[arg-type]
    assert [one for one in found if one.startswith("-dht")] == [argument]


def test_forced_reachability_and_no_listening_reach_the_daemon() -> None:
    assert "-forceReachabilityPublic=1" in arguments(DaemonOptions(reachability="public"))
    assert "-forceReachabilityPrivate=1" in arguments(DaemonOptions(reachability="private"))
    assert "-noListenAddrs=1" in arguments(DaemonOptions(listen=()))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"listen": ("/ip4/1.2.3.4.5/tcp/1",)}, "listen"),
        ({"listen": ("/ip4/127.0.0.1/tcp/1,/ip4/0.0.0.0/tcp/1",)}, "listen"),
        ({"announce": ("example.com:4001",)}, "announce"),
        ({"relays": ("/ip4/192.0.2.1/tcp/4001",)}, "relays"),
        ({"relays": ("/ip4/192.0.2.1/tcp/4001/p2p/QmSomething",)}, "relays"),
        ({"connections_low": 300}, "connections_low"),
    ],
)
def test_a_wrong_option_is_named_with_what_was_found_and_what_is_allowed(
    changes: dict[str, tuple[str, ...]], key: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{key}.*found.*allowed is"):
        DaemonOptions(**changes)  # type: ignore[arg-type]


def test_the_daemon_is_found_without_importing_hivemind() -> None:
    assert find_daemon().name == "p2pd"
    assert "hivemind" not in sys.modules
    assert "torch" not in sys.modules or "hivemind" not in sys.modules


def test_a_missing_daemon_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(_name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(daemon, "installed_path", lambda: tmp_path / "p2pd")
    with pytest.raises(ConfigError, match="p2pnet daemon install"):
        find_daemon()
    (tmp_path / "p2pd").write_bytes(b"")
    (tmp_path / "p2pd").chmod(0o755)
    assert find_daemon() == tmp_path / "p2pd"


def test_a_configured_daemon_is_used_or_refused_but_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="daemon: found"):
        find_daemon(tmp_path / "p2pd")
    (tmp_path / "p2pd").write_bytes(b"")
    with pytest.raises(ConfigError, match="not an executable file"):
        find_daemon(tmp_path / "p2pd")


def test_the_daemon_is_installed_in_the_users_data_folder() -> None:
    assert installed_path({"XDG_DATA_HOME": "/data"}, "linux") == Path("/data/p2pnet/p2pd-1.1.12")
    assert installed_path({"XDG_DATA_HOME": "data"}, "linux") == Path.home() / ".local/share/p2pnet/p2pd-1.1.12"
    assert installed_path({}, "darwin") == Path.home() / "Library/Application Support/p2pnet/p2pd-1.1.12"
