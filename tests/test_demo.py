"""What a demo shows and sums up, from events that no process said; real ones are in tests/processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from p2pnet.cli.curves import draw_curves
from p2pnet.cli.demo import describe_round, progress_table
from p2pnet.config import BytesLmTask, Swarm, SwarmConfig
from p2pnet.demo import DemoSettings, DemoView, PeerView, default_config, is_identical, peer_command, prepare, summarise
from p2pnet.identity import Identity, peer_id_text
from p2pnet.manifests import KEY_NAME, swarm_folder

TINY = SwarmConfig(Swarm("tiny"), BytesLmTask("bytes-lm", layers=1, width=32, heads=2, context=16))
PEERS, ROUNDS = 3, 5


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> DemoView:
    """A demo in which every peer has told all rounds, and nobody has ended."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "text").mkdir()
    (folder / "text" / "a.txt").write_text("to be or not to be " * 100)
    settings = DemoSettings(PEERS, ROUNDS, folder, folder / "text", TINY)
    link, manifest = prepare(settings)
    peers = [PeerView(index, folder / f"peer-{index}") for index in range(PEERS)]
    found = DemoView(settings, link, manifest, peers, 1000.0)
    for peer in found.peers:
        for event in story(peer.index):
            peer.take(event)
    return found


def story(index: int) -> list[dict[str, Any]]:
    return [
        {"event": "listening", "peer": f"12D3Koo{index}"},
        {"event": "progress", "text": "looking"},
        {"event": "ready", "unix_s": 1002.0 + index},
        *(told(index, number) for number in range(ROUNDS)),
        {"event": "held_out", "round": 3, "loss": 2.5},
    ]


def test_a_demo_knows_its_end_and_its_rates_fall_towards_it() -> None:
    training = default_config(rounds=50).training
    steps = 50 * training.h_steps
    assert training.inner.decay_steps == 2 * steps // 5
    assert training.inner.decay_start + training.inner.decay_steps == steps
    assert default_config(rounds=1).training.inner.decay_start > 0


def told(index: int, number: int) -> dict[str, Any]:
    return {
        "event": "round", "unix_s": 1006.0 + number, "round": number, "loss": 5.0 - number / 2 + index / 10,
        "tokens": 100, "tokens_per_s": 50.0, "members": 3, "seen": 3, "void": False,
        "wire_bytes_up": 1000 * (number + 1) + 500, "wire_bytes_down": 1000 * (number + 1), "content_bytes_up": 500,
    }  # fmt: skip


def end(index: int, **changed: object) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "event": "end", "peer": f"12D3Koo{index}", "rounds": ROUNDS, "rounds_sealed": ROUNDS, "rounds_void": 0,
        "rounds_credited": ROUNDS, "lineage": "aa" * 32, "state_sha256": "bb" * 32, "wire_bytes_up": 5500,
        "wire_bytes_down": 5000, "loss_first": 5.0, "loss_last": 3.0, "train_s": 8.0, "exchange_s": 1.0,
        "straggler_wait_s": 1.0, "cpu_s": 9.0, "held_out_loss": 2.4 if index == 0 else None,
    }  # fmt: skip
    return facts | changed


def test_only_the_first_peer_gets_what_the_swarm_is_made_of_and_all_are_founders(view: DemoView) -> None:
    places = [peer.folder for peer in view.peers]
    with_manifest = [(swarm_folder(place, view.link.swarm) / "manifest.bin").exists() for place in places]
    assert with_manifest == [True, False, False]
    assert view.manifest.founders == tuple(sorted(Identity.load(place / KEY_NAME).peer for place in places))


def test_a_peer_is_given_the_link_and_nothing_else_about_the_others(view: DemoView) -> None:
    command = " ".join(peer_command(view.link, view.peers[1].folder, ROUNDS, None))
    assert str(view.link) in command
    others = [peer_id_text(peer) for peer in view.manifest.founders]
    assert not [name for name in others if name in command]


def test_a_peer_shows_what_it_is_doing() -> None:
    peer = PeerView(0, Path())
    for event, phase in (
        ({"event": "progress", "text": "looking"}, "looking"),
        ({"event": "ready", "unix_s": 1.0}, "training"),
        ({"event": "note", "kind": "stalled", "detail": "2 of 4 voters are here"}, "stalled: 2 of 4 voters are here"),
        ({"event": "note", "kind": "left-out", "detail": ""}, "stalled: 2 of 4 voters are here"),
        ({"event": "note", "kind": "resumed", "detail": ""}, "training"),
        ({"event": "trouble", "text": "no bootstrap peer answers"}, "no bootstrap peer answers"),
        (end(0), "done"),
    ):
        peer.take(event)
        assert peer.phase == phase


def test_a_round_counts_when_every_peer_that_is_left_has_told_it(view: DemoView) -> None:
    slow = PeerView(3, Path())
    slow.take(told(3, 0))
    wider = DemoView(view.settings, view.link, view.manifest, [*view.peers, slow], 0.0)
    assert (view.rounds_everywhere(), wider.rounds_everywhere()) == (ROUNDS, 1)
    slow.status = -9
    assert wider.rounds_everywhere() == ROUNDS


def test_a_round_is_one_line_with_the_mean_loss_and_the_summed_speed(view: DemoView) -> None:
    line = describe_round(view, 1)
    assert line.startswith("round   2/5  loss 4.600")
    assert "0.1 k tokens/s" in line
    assert "3 members  up 2.5 kB  down 2.0 kB" in line


def test_the_table_has_a_row_per_peer_whatever_it_has_said_so_far(view: DemoView) -> None:
    silent = DemoView(view.settings, view.link, view.manifest, [*view.peers, PeerView(3, Path())], 0.0)
    console = Console(width=110, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 - closed with the console
    console.print(progress_table(silent))
    console.file.close()
    shown = console.export_text()
    assert [line.split()[0] for line in shown.splitlines() if "training" in line] == ["0", "1", "2"]
    assert "starting" in shown


def test_the_summary_holds_what_was_promised_and_the_curve(view: DemoView) -> None:
    for peer in view.peers:
        peer.end = end(peer.index)
    found = summarise(view)
    assert found["compression_vs_fp32"] == pytest.approx(4 * found["params"] / found["payload_bytes_per_round"])
    assert found["is_identical"]
    assert found["exchange_share"] == pytest.approx(0.1)
    assert (found["ready_s"], found["first_round_s"]) == (4.0, 2.0)
    assert found["held_out"] == [(4, 2.5), (5, 2.4)]
    assert [row["tokens"] for row in found["curve"]] == [300, 600, 900, 1200, 1500]
    assert [row["wire_bytes_up_per_peer"] for row in found["curve"]] == [1000, 2000, 3000, 4000, 5000]


def test_a_peer_that_was_lost_early_is_named_and_spoils_no_number(view: DemoView) -> None:
    lost = PeerView(PEERS, Path())
    found = summarise(DemoView(view.settings, view.link, view.manifest, [*view.peers, lost], 1000.0))
    assert found["lost_peers"] == [PEERS]
    assert len(found["peers"]) == PEERS
    json.dumps(found, allow_nan=False)


def test_one_peer_with_other_parameters_is_found() -> None:
    assert is_identical([end(0), end(1)])
    assert not is_identical([end(0), end(1, state_sha256="cc" * 32)])
    assert not is_identical([end(0), end(1, lineage="cc" * 32)])
    assert not is_identical([])


def test_a_picture_is_drawn_also_when_a_peer_missed_rounds(view: DemoView, tmp_path: Path) -> None:
    for peer in view.peers:
        peer.end = end(peer.index)
    summary = summarise(view)
    summary["curve"][2]["losses"].pop()
    summary["curve"][3]["loss"] = None
    draw_curves(summary, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
