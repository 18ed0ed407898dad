"""What bootstrap/ tells an operator is what the program does."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any, cast

import pytest
import typer.main

from p2pnet.cli import make_app
from p2pnet.cli.bootstrap import _host_config
from p2pnet.config import BootstrapConfig, load, load_file
from p2pnet.net.bootstrap import BootstrapConfig as HostConfig
from p2pnet.net.libp2p import Libp2pHost
from p2pnet.net.metrics import HostMetrics


@pytest.fixture
def folder(repository: Path) -> Path:
    return repository / "bootstrap"


def test_the_annotated_settings_are_valid_and_name_every_key_with_its_default(folder: Path) -> None:
    text = (folder / "bootstrap.toml").read_text()
    given = load_file(BootstrapConfig, folder / "bootstrap.toml")
    assert (given.key, given.metrics_port) == (Path("/var/lib/p2pnet-bootstrap/bootstrap.key"), 9100)
    commented = [line[2:] for line in text.splitlines() if re.match(r"# [a-z_]+ = ", line) and "example" not in line]
    defaults = tomllib.loads("\n".join(commented))
    assert load(BootstrapConfig, defaults, "defaults") == BootstrapConfig()
    assert defaults.keys() | tomllib.loads(text).keys() == set(BootstrapConfig.__slots__)


def test_every_metric_that_is_spoken_of_is_served(folder: Path) -> None:
    class Reception:
        open_streams = served = refused = misbehaved = 0

    class Flow:
        bytes_up = bytes_down = 0

    class Host:
        reception, daemon_pid, restarts = Reception, 1, 0
        traffic = type("Traffic", (), {"total": Flow})

    served = {sample.name for family in HostMetrics(cast(Libp2pHost, Host())).collect() for sample in family.samples}
    for name in ("README.md", "grafana.json", "prometheus-rules.yml"):
        spoken_of = set(re.findall(r"\bp2pnet_[a-z_]+\b", (folder / name).read_text()))
        assert spoken_of
        assert spoken_of <= served, name
    assert served <= set(re.findall(r"\bp2pnet_[a-z_]+\b", (folder / "README.md").read_text()))


def test_the_dashboard_is_json_with_panels(folder: Path) -> None:
    assert len(json.loads((folder / "grafana.json").read_text())["panels"]) == 4


def test_every_command_that_is_shown_is_one(folder: Path, repository: Path) -> None:
    found = 0
    for path in folder.iterdir():
        for line in re.findall(r"[/ `]p2pnet ((?:bootstrap|daemon|key) [^\n#`&|)]+)", path.read_text()):
            words = shlex.split(line.replace("...", "FILE"))
            command: Any = typer.main.get_command(make_app())
            while words and hasattr(command, "commands"):
                command = command.commands[words.pop(0)]
            with command.make_context(command.name, words):
                found += 1
    assert found >= 4
    unit = (folder / "p2pnet-bootstrap.service").read_text()
    assert "ExecStart=/opt/p2pnet/bin/p2pnet bootstrap /etc/p2pnet/bootstrap.toml" in unit


def test_the_numbers_are_the_programs(folder: Path) -> None:
    limits = HostConfig(Path("key"))
    text = (folder / "README.md").read_text()
    assert f"above {limits.connections_high} the daemon closes" in text
    assert f"down to {limits.connections_low}" in text
    assert _host_config(load_file(BootstrapConfig, folder / "bootstrap.toml")).metrics_address == "127.0.0.1"
