"""Files of a node that are not what they were: each is noticed, and mended from others, or said in plain words."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from p2pnet.errors import P2pnetError
from p2pnet.node.content import INITIAL_NAME, MANIFEST_NAME
from p2pnet.node.runner import KEY_NAME, LEDGER_NAME
from p2pnet.train.savefile import LEARNER_NAME
from tests.node.living import EVERY, Living, Place, agree, open_place
from tests.node.members import until

pytestmark = pytest.mark.slow


def damage(path: Path, at: float = 0.5) -> None:
    """Flip a bit, so far into the file."""
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 4
    path.write_bytes(data)


def change(member: Living, statement: str) -> None:
    db = sqlite3.connect(member.folder / LEDGER_NAME)
    with db:
        assert db.execute(statement).rowcount > 0
    db.close()


async def two_of_which_one_was_killed(place: Place) -> list[Living]:
    members = await place.started(1, 2)
    for member in members:
        await member.reach(EVERY + 2)
    await members[1].kill()
    return members


async def test_results_that_a_disk_has_changed_are_fetched_again_and_never_applied(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        one, two = await two_of_which_one_was_killed(place)
        (two.folder / LEARNER_NAME).unlink(missing_ok=True)  # so that all results are replayed
        change(two, "UPDATE parts SET data = zeroblob(length(data)) WHERE round < (SELECT max(round) FROM entries)")
        await two.start()
        await until(lambda: bool(two.credited(EVERY + 2)), 30)
        await agree(one, two)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET commits = outcome WHERE round = 1",
        "UPDATE entries SET certificate = zeroblob(9) WHERE round = 0",
    ],
)
async def test_history_that_a_disk_has_changed_is_said_and_comes_back_from_others(
    tmp_path: Path, statement: str
) -> None:
    async with open_place(tmp_path) as place:
        one, two = await two_of_which_one_was_killed(place)
        change(two, statement)
        await two.start()
        if "commits" in statement:
            await until(lambda: two.error is not None)
            assert "move it away" in str(two.error)
            for path in two.folder.glob(f"{LEDGER_NAME}*"):
                path.unlink()
            await until(lambda: not two.running)
            await two.start()
        await until(lambda: bool(two.credited(EVERY + 2)), 30)
        await agree(one, two)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (MANIFEST_NAME, "remove it and it is fetched again"),
        (LEARNER_NAME, "move it away"),
        (KEY_NAME, "damaged"),
    ],
)
async def test_a_damaged_file_is_named_with_what_to_do_and_others_go_on(tmp_path: Path, name: str, words: str) -> None:
    async with open_place(tmp_path) as place:
        (one,) = await place.started(1)
        (two,) = await place.started(2)
        await two.reach(1)
        await two.stop()
        damage(two.folder / name, 0.01 if name == LEARNER_NAME else 0.5)
        await two.start()
        await until(lambda: two.error is not None)
        assert isinstance(two.error, P2pnetError)
        assert words in str(two.error)
        assert name in str(two.error)
        if name == KEY_NAME:
            return  # who this peer was is gone
        (two.folder / name).unlink()
        await until(lambda: not two.running)
        await two.start()
        await until(lambda: bool(two.credited()), 30)
        await agree(one, two)


async def test_damaged_initial_parameters_are_fetched_again(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        one, two = await place.started(1, 2)
        await two.reach(1)
        await two.kill()
        damage(two.folder / INITIAL_NAME)
        (two.folder / LEARNER_NAME).unlink(missing_ok=True)
        await two.start()
        await until(lambda: bool(two.credited(1)), 30)
        await agree(one, two)
