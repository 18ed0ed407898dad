from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from p2pnet.config import AdamW, BytesLmTask, Muon
from p2pnet.errors import ConfigError
from p2pnet.train.options import read_inner, read_task, write_options
from p2pnet.wire.manifest import Option

TASK = {option.name: option.value for option in write_options(BytesLmTask("bytes-lm"))}


def options(values: dict[str, str]) -> list[Option]:
    return [Option(name, value) for name, value in values.items()]


def test_settings_survive_the_way_through_a_manifest() -> None:
    inner = AdamW(lr=1e-3 / 3, warmup_steps=7, weight_decay=0.0)
    assert read_inner("adamw", write_options(inner)) == inner
    muon = Muon(lr=0.03, momentum=0.9, decay_start=1440, decay_steps=960)
    assert read_inner("muon", write_options(muon)) == muon
    task = BytesLmTask("bytes-lm", width=64, batch_size=3)
    assert read_task("bytes-lm", write_options(task)) == task


def test_the_folder_of_a_peer_stays_out_of_the_manifest() -> None:
    written = write_options(BytesLmTask("bytes-lm", text=Path("/home/me")))
    assert [option.name for option in written] == ["batch_size", "context", "heads", "layers", "width"]
    with pytest.raises(ConfigError, match="text does not belong there"):
        read_task("bytes-lm", [*written, Option("text", "/etc")])


def test_every_setting_is_needed_so_that_a_new_default_changes_no_old_swarm() -> None:
    with pytest.raises(ConfigError, match="manifest, task: without width"):
        read_task("bytes-lm", options({name: value for name, value in TASK.items() if name != "width"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widht": "1"}, "widht: unknown key; did you mean width"),
        ({"width": "wide"}, "width: found 'wide'"),
        ({"width": "1.5"}, "width: found 1.5"),
        ({"width": "1000000000"}, "width: found 1000000000"),
        ({"width": "nan"}, "width: found nan"),
    ],
)
def test_a_wrong_option_is_refused_by_name(change: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_task("bytes-lm", options(TASK | change))


def test_an_unknown_task_or_optimizer_is_refused_with_what_is_known() -> None:
    with pytest.raises(ConfigError, match="trains 'vision', built in is 'bytes-lm'"):
        read_task("vision", [])
    with pytest.raises(ConfigError, match="uses 'lion', built in are 'adamw' and 'muon'"):
        read_inner("lion", [])


def test_the_options_of_one_optimizer_do_not_fit_the_other() -> None:
    with pytest.raises(ConfigError, match="manifest, inner optimizer: without momentum, adamw_lr"):
        read_inner("muon", write_options(AdamW()))


def test_options_and_assignment_need_no_torch() -> None:
    code = "import sys, p2pnet.train.options, p2pnet.train.assignment; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
