from __future__ import annotations

from pathlib import Path

import pytest

from p2pnet.cli.folders import choose_swarm, place_key, swarm_folders
from p2pnet.errors import ConfigError
from p2pnet.identity import Identity
from p2pnet.manifests import KEY_NAME


def make_swarm(state_dir: Path, name: str) -> Path:
    folder = state_dir / name
    folder.mkdir(parents=True)
    (folder / "ledger.db").touch()
    return folder


def test_the_only_swarm_need_not_be_named(tmp_path: Path) -> None:
    folder = make_swarm(tmp_path, "ab" * 8)
    assert choose_swarm(tmp_path, "ledger.db", "", "absent") == folder
    assert choose_swarm(folder, "ledger.db", "", "absent") == folder  # the Python API's state_dir
    with pytest.raises(ConfigError, match="absent"):
        choose_swarm(tmp_path, "manifest.bin", "", "absent")
    with pytest.raises(ConfigError, match="absent"):
        choose_swarm(tmp_path / "nowhere", "ledger.db", "", "absent")


def test_of_several_one_is_named_by_its_first_digits(tmp_path: Path) -> None:
    first, second = make_swarm(tmp_path, "a1" * 8), make_swarm(tmp_path, "b2" * 8)
    with pytest.raises(ConfigError, match=f"name one of {first.name}, {second.name}"):
        choose_swarm(tmp_path, "ledger.db", "", "absent")
    assert choose_swarm(tmp_path, "ledger.db", "B2", "absent") == second
    assert choose_swarm(tmp_path, "ledger.db", "a1" * 32, "absent") == first  # the whole id
    with pytest.raises(ConfigError, match=f"found 'c', here are {first.name}"):
        choose_swarm(tmp_path, "ledger.db", "c", "absent")
    assert swarm_folders(tmp_path, "ledger.db") == [first, second]


def test_a_machine_has_one_key_for_all_its_swarms(tmp_path: Path) -> None:
    machine = place_key(tmp_path / KEY_NAME, make_swarm(tmp_path, "a"))
    assert place_key(tmp_path / KEY_NAME, make_swarm(tmp_path, "b")).peer == machine.peer
    own = Identity.generate()
    own.save(make_swarm(tmp_path, "c") / KEY_NAME)
    assert place_key(tmp_path / KEY_NAME, tmp_path / "c").peer == own.peer
