"""Join in mid-run, come back after long, come back from an old copy: whole members over a network in memory."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any

import pytest

from p2pnet.errors import BehindError, P2pnetError
from p2pnet.identity import PeerId
from p2pnet.ledger.log import Ledger
from p2pnet.ledger.reader import LedgerReader
from p2pnet.net.memory import Link
from p2pnet.node import content as content_module
from p2pnet.node.download import Download
from p2pnet.node.runner import LEDGER_NAME
from p2pnet.train.learner import Learner
from p2pnet.wire.branch import Branch, open_spoken
from p2pnet.wire.round import slot_of
from p2pnet.wire.signing import Signed, Verify
from tests.node.living import EVERY, agree, half_frozen, open_place
from tests.node.members import until


@pytest.mark.parametrize("dense", [False, True], ids=["as-they-are", "dense"])
async def test_a_late_joiner_starts_from_a_members_state_and_contributes_within_two_rounds(
    tmp_path: Path, dense: bool
) -> None:
    async with open_place(tmp_path, dense=dense) as place:
        founders = await place.started(1, 2)
        for founder in founders:
            await founder.reach(3 * EVERY)
        (late,) = await place.started(3, seed=9)
        await late.wait_credited()
        start = late.ready()
        assert start >= 3 * EVERY
        assert late.credited()[0] <= start + 2
        await late.reach(start + 4)
        await agree(late, *founders, at_least=3)
        texts = late.texts()
        assert any(text.startswith("state before round ") and text.endswith(" bytes") for text in texts)
        assert not any(text.startswith("catching up: round 1 of") for text in texts)


async def test_who_was_away_for_longer_than_results_are_kept_goes_on_from_a_later_state(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        members = await place.started(1, 2, 3)
        for member in members:
            await member.reach(3)
        away = members[2]
        await away.stop()
        left = away.reports[-1].round
        await members[0].reach(left + 3 * EVERY)
        before = len(away.said)
        await away.start()
        await members[0].reach(await away.wait_credited(left + 3 * EVERY) + 1)
        assert any(text.startswith("state before round ") for text in away.texts(before))
        await agree(*members)


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "cut off"])
async def test_who_missed_fewer_rounds_than_are_kept_replays_them_to_the_same_bits_without_a_state(
    tmp_path: Path, stopped: bool
) -> None:
    async with open_place(tmp_path) as place:
        *others, away = members = await place.started(1, 2, 3, keep_results=100)
        for member in members:
            await member.reach(3)
        if stopped:
            await away.stop()
        else:
            for other in others:
                place.network.set_link(away.peer, other.peer, Link(partitioned=True))
                place.network.find(other.peer)._drop(away.peer)
        left, before = away.reports[-1].round, len(away.said)
        await others[0].reach(left + 3 * EVERY)
        if stopped:
            await away.start()
        for other in others:
            place.network.set_link(away.peer, other.peer, Link())
        await others[0].reach(await away.wait_credited(left + 3 * EVERY) + 2)
        assert max(await agree(*members)) > left + 2 * EVERY
        assert not any(text.startswith("state before round ") for text in away.texts(before))
        assert any(text.startswith("catching up: round ") for text in away.texts(before)) is stopped
        with LedgerReader(away.folder / LEDGER_NAME) as mine, LedgerReader(others[0].folder / LEDGER_NAME) as theirs:
            rounds = min(len(mine), len(theirs))
            assert rounds >= left + 3 * EVERY
            assert [e.lineage for e in mine.entries(0, rounds)] == [e.lineage for e in theirs.entries(0, rounds)]


async def test_who_stands_still_for_too_long_is_told_to_join_again_and_then_catches_up(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        members = await place.started(1, 2, 3)
        for member in members:
            await member.reach(2)
        asleep, others = members[2], members[:2]
        for other in others:
            place.network.set_link(asleep.peer, other.peer, Link(partitioned=True))
            place.network.find(other.peer)._drop(asleep.peer)
        await others[0].reach(asleep.reports[-1].round + 4 * EVERY)
        for other in others:
            place.network.set_link(asleep.peer, other.peer, Link())
        await until(lambda: asleep.error is not None, 30)
        assert isinstance(asleep.error, BehindError)
        assert "join again with the same state_dir" in str(asleep.error)
        await until(lambda: not asleep.running)
        await asleep.start()
        start = others[0].reports[-1].round
        await others[0].reach(await asleep.wait_credited(start) + 1)
        await agree(*members)


async def test_a_state_that_is_none_is_refused_and_another_member_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen parameters are part of the hash and not of the file: only the learner can tell."""
    asked: list[str] = []  # members, by the name of their folder; the first one lies
    read = content_module._read_piece

    def lie(path: Path, offset: int, length: int) -> bytes:
        data = read(path, offset, length)
        if path.parent.name != "states":
            return data
        asked.append(path.parent.parent.name)
        return data if asked[-1] != asked[0] else b"\1" * len(data)

    monkeypatch.setattr(content_module, "_read_piece", lie)
    async with open_place(tmp_path, make_model=half_frozen) as place:
        founders = await place.started(1, 2)
        for founder in founders:
            await founder.reach(3 * EVERY)
        late = place.member(3)
        await late.start()
        await late.reach(await late.wait_credited() + 2)
        await agree(late, *founders)
    assert len(set(asked)) == 2
    assert asked.count(asked[0]) <= 2  # for one state, or for two when it took its time
    assert any(" refused: " in text for text in late.texts())


async def test_a_state_that_nobody_gives_leaves_the_older_one_or_the_beginning(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        founders = await place.started(1, 2, keep_results=1000)
        for founder in founders:
            await founder.reach(2 * EVERY + 2)
            founder.node._peer.swarm.snapshots.find = lambda _sha256: None  # type: ignore[union-attr,method-assign]
        late = place.member(3)
        await late.start()
        await late.wait_credited()
        assert any(text.startswith("catching up: round 1 of") for text in late.texts())
        await late.reach(late.credited()[0] + 2)
        await agree(late, *founders)


async def test_an_old_copy_of_a_folder_signs_nothing_before_it_has_caught_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[PeerId, bytes, bytes]] = []  # author, slot, body

    def record(raw: bytes, check: Verify) -> object:
        opened = open_spoken(raw, check)
        if isinstance(opened, Signed) and not isinstance(opened.message, Branch):
            heard.append((opened.peer, opened.message.swarm + slot_of(opened.message), opened.body))
        return opened

    monkeypatch.setattr("p2pnet.node.links.open_spoken", record)
    async with open_place(tmp_path) as place:
        members = await place.started(1, 2, 3)
        for member in members:
            await member.reach(3)
        cloned = members[2]
        await cloned.kill()
        copy = tmp_path / "copy"
        shutil.copytree(cloned.folder, copy)
        await cloned.start()
        await until(lambda: len(cloned.credited()) >= 3 + EVERY, 30)
        await cloned.kill()
        shutil.rmtree(cloned.folder)
        copy.rename(cloned.folder)  # a backup is put back
        begun = len(heard)
        await cloned.start()
        start = max(report.round for report in members[0].reports) + 1
        await cloned.wait_credited(start)
        ready = cloned.ready()
    mine = [(slot, body) for peer, slot, body in heard if peer == cloned.peer]
    slots = dict(mine)
    assert len(slots) > 3 * EVERY
    assert all(slots[slot] == body for slot, body in mine)
    known = set(heard[:begun])
    new = [slot for peer, slot, body in heard if peer == cloned.peer and (peer, slot, body) not in known]
    assert min(int.from_bytes(slot[1:5], "big") for slot in new) >= ready


KILLED_AFTER = [
    (Ledger, "append", 5),
    (Ledger, "fill", 1),
    (Ledger, "fill", 4),
    (Download, "_fetch", 1),
    (Learner, "save", 1),
]


async def test_a_joiner_that_is_killed_at_any_write_goes_on_from_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_place(tmp_path) as place:
        founders = await place.started(1, 2)
        for founder in founders:
            await founder.reach(3 * EVERY)
        late, killed = place.member(3), set()
        for owner, name, calls in KILLED_AFTER:
            seen = len(late.reports)
            with monkeypatch.context() as patched:
                kill_after(patched, owner, name, calls, late.folder)
                await late.start()
                await until(lambda seen=seen: not late.running or len(late.reports) > seen, 60)
            if late.error is not None:
                assert "killed" in str(late.error)
                killed.add(name)
            else:  # there was less to write: how many results and states it takes depends on when it asks
                await late.kill()
        assert {"append", "save"} < killed
        await late.start()
        await late.reach(await late.wait_credited() + 2)
        await agree(late, *founders)


def kill_after(patched: pytest.MonkeyPatch, owner: type, name: str, calls: int, folder: Path) -> None:
    """Let so many calls about files in this folder be whole, and none after them return."""
    real, left = getattr(owner, name), [calls]

    def is_here(self: Any, args: tuple[Any, ...]) -> bool:
        return folder in Path(getattr(self, "path", args[0] if args else "/")).parents

    def count() -> None:
        left[0] -= 1
        if left[0] <= 0:
            raise P2pnetError("killed")

    def call(self: Any, *args: Any, **options: Any) -> Any:
        done = real(self, *args, **options)
        if is_here(self, args):
            count()
        return done

    async def call_async(self: Any, *args: Any) -> Any:
        done = await real(self, *args)
        if is_here(self, args):
            count()
        return done

    patched.setattr(owner, name, call_async if inspect.iscoroutinefunction(real) else call)


async def test_what_a_reboot_leaves_behind_is_no_hindrance(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        members = await place.started(1, 2)
        for member in members:
            await member.reach(2)
        rebooted = members[1]
        await rebooted.kill()
        (rebooted.folder / "lock").write_text("1\n")  # by then another program has the number
        (rebooted.folder / "node.json").write_text('{"pid": 1, "socket": "/gone/s"}')
        (rebooted.folder / "states").mkdir(exist_ok=True)
        (rebooted.folder / "states" / ("ab" * 32 + ".partial")).write_bytes(b"half")
        (rebooted.folder / "learner.safetensors.new").write_bytes(b"half")
        start = rebooted.reports[-1].round + 1
        await rebooted.start()
        await rebooted.wait_credited(start)
        assert "ab" * 32 + ".partial" not in {path.name for path in (rebooted.folder / "states").iterdir()}
        await agree(*members)
