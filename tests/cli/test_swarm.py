from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from p2pnet.config import SwarmConfig, load
from p2pnet.identity import Identity, peer_id_text
from p2pnet.node.content import INITIAL_NAME, MANIFEST_NAME
from p2pnet.node.download import file_sha256
from p2pnet.node.runner import KEY_NAME as NODE_KEY_NAME
from p2pnet.wire.manifest import Link
from tests.cli.conftest import Run

CREATOR = Identity.from_seed(b"c" * 32)
BOOTSTRAP = f"/ip4/127.0.0.1/tcp/4001/p2p/{peer_id_text(Identity.from_seed(b'b' * 32).peer)}"
SMALL = """
[swarm]
name = "small"
[task]
kind = "bytes-lm"
text = "texts"
width = 64
layers = 1
"""


@pytest.fixture(autouse=True)
def settings(home: Path) -> None:
    (home / "texts").mkdir()
    (home / "texts" / "a.txt").write_text("All the text there is, again and again.\n" * 500)
    (home / "swarm.toml").write_text(SMALL)
    CREATOR.save(home / "creator.key")


def test_a_swarm_that_was_made_is_shown_as_it_was_set(run: Run, home: Path) -> None:
    done = run("swarm", "new", "swarm.toml", "--key", "creator.key", "--bootstrap", BOOTSTRAP, "--state-dir", "s")
    link = Link.parse(done.out.strip())
    assert link.bootstrap == (BOOTSTRAP,)
    assert f"p2pnet join '{link}' --state-dir s" in done.err
    assert "open: anyone with the link" in done.err
    folder = home / "s" / link.swarm.hex()[:16]
    for where in (("s",), (folder,), (folder / MANIFEST_NAME,), (link, "--state-dir", "s"), ("--state-dir", "s")):
        facts = run("swarm", "show", *where, "--json").json
        assert facts["swarm"] == link.swarm.hex()
        assert Path(facts["source"]).resolve() == folder / MANIFEST_NAME
    assert (facts["name"], facts["access"], facts["task_options"]["width"]) == ("small", "open", "64")
    assert facts["creator"] == peer_id_text(CREATOR.peer)
    assert facts["founders"] == [peer_id_text(CREATOR.peer)]
    assert facts["params"] == 64 * 256 + 12 * 64 * 64
    assert facts["compression_vs_fp32"] == pytest.approx(
        4 * facts["params"] / facts["payload_bytes_per_round"], abs=1e-3
    )
    assert file_sha256(folder / INITIAL_NAME).hex() == facts["initial_sha256"]
    shown = run("swarm", "show", "s").out
    for text in ("65,536 in 5 tensors", "open: anyone with the link can join", peer_id_text(CREATOR.peer)):
        assert text in shown


def test_its_folder_holds_the_creators_key_which_founds_it(run: Run, home: Path) -> None:
    made = run("swarm", "new", "swarm.toml", "--state-dir", "s", "--json").json
    key = Path(made["folder"]) / NODE_KEY_NAME
    assert peer_id_text(Identity.load(key).peer) == made["creator"]
    assert run("key", "--state-dir", "s").out.strip() == made["creator"]
    assert [path.name for path in (home / "s").iterdir() if path.name.startswith(".")] == []


def test_the_same_settings_key_and_date_make_the_same_swarm_and_a_seed_another(run: Run, home: Path) -> None:
    (home / "swarm.toml").write_text(SMALL.replace('"small"', '"small"\ncreated_unix_s = 1700000000'))
    links = [
        run("swarm", "new", "swarm.toml", "--key", "creator.key", "--state-dir", place, "--seed", seed).out
        for place, seed in (("s", 0), ("s", 0), ("t", 0), ("s", 1))
    ]
    assert links[0] == links[1] == links[2] != links[3]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("width = 64", "widht = 64", "[task] widht: unknown key; did you mean width?"),
        ("layers = 1", 'layers = "one"', "[task] layers: found 'one' (text); allowed is a whole number"),
        ('text = "texts"', 'text = "nowhere"', "nowhere is missing, a folder is expected"),
        ('text = "texts"', 'text = "empty"', "text: no text found in"),
        ('kind = "bytes-lm"', 'kind = "images"', "[task] kind: found 'images'"),
        ("[swarm]", "[swarm", "swarm.toml: not TOML"),
        (SMALL, '[swarm]\nname = "mine"\n[task]\nkind = "custom"', "from Python"),
    ],
)
def test_settings_that_will_not_do_are_named_and_nothing_is_made(
    run: Run, home: Path, old: str, new: str, message: str
) -> None:
    (home / "empty").mkdir()
    (home / "empty" / "binary").write_bytes(bytes(100))
    (home / "swarm.toml").write_text(SMALL.replace(old, new))
    done = run("swarm", "new", "swarm.toml", "--state-dir", "s")
    assert (done.status, done.out) == (2, "")
    assert message in done.err
    assert "Traceback" not in done.err
    assert not (home / "s").exists()


@pytest.mark.parametrize(
    "addr", ["/ip4/127.0.0.1/tcp/4001", "127.0.0.1:4001", f"/ip4/1.2.3/tcp/1/p2p/{BOOTSTRAP[-52:]}", "/p2p/12D3KooWx"]
)
def test_a_bootstrap_address_without_peer_or_sense_is_refused(run: Run, addr: str) -> None:
    done = run("swarm", "new", "swarm.toml", "--state-dir", "s", "--bootstrap", addr)
    assert done.status == 2
    assert addr in done.err


def test_a_key_that_others_can_read_makes_no_swarm(run: Run, home: Path) -> None:
    (home / "creator.key").chmod(0o640)
    done = run("swarm", "new", "swarm.toml", "--key", "creator.key", "--state-dir", "s")
    assert done.status == 2
    assert "chmod 600" in done.err
    assert not list((home / "s").glob("*"))


def test_missing_settings_say_how_to_get_some(run: Run) -> None:
    done = run("swarm", "new", "other.toml")
    assert done.status == 2
    assert "p2pnet swarm init other.toml" in done.err


def test_the_example_has_every_key_with_its_default(run: Run, home: Path) -> None:
    assert run("swarm", "init", "example.toml").out == "example.toml\n"
    text = (home / "example.toml").read_text()
    spelled_out = re.sub(r"^# (?=[a-z0-9_]+ = )", "", text, flags=re.MULTILINE)
    named = tomllib.loads(spelled_out)
    assert named["task"].pop("text") == "texts"  # its default is no path
    found, default = (load(SwarmConfig, tables, "example") for tables in (named, tomllib.loads(text)))
    assert found == default
    for table in (default.swarm, default.task, default.training.inner, default.codec, default.outer, default.policy):
        for key in type(table).__slots__:
            assert re.search(rf"^(# )?{key} = ", text, re.MULTILINE), key
    assert set(named["training"]) == set(type(default.training).__slots__)


def test_an_example_never_overwrites(run: Run, home: Path) -> None:
    done = run("swarm", "init", "swarm.toml")
    assert done.status == 2
    assert (home / "swarm.toml").read_text() == SMALL
