"""A disk that is full or read-only while a node runs: the file is named, nothing is lost, and it goes on afterwards."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from p2pnet.errors import ConfigError, P2pnetError, as_config_error
from p2pnet.node.content import write_atomically
from tests.node.living import agree, open_place
from tests.node.members import until


@contextmanager
def small_disk(folder: Path, size: str = "3m") -> Iterator[Path]:
    """A disk of its own at a folder."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=False)
    if done.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    """Leave no room."""
    ballast = folder / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return ballast


@pytest.mark.slow
async def test_a_disk_that_fills_up_in_mid_run_ends_the_node_in_words_and_loses_nothing(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        with small_disk(tmp_path / "2"):
            one, two = await place.started(1, 2)
            await two.reach(2)
            decided = two.reports[-1].round
            ballast = fill(two.folder)
            await until(lambda: two.error is not None, 40)
            await until(lambda: not two.running)
            assert isinstance(two.error, P2pnetError)
            assert "full" in str(two.error)
            assert str(two.folder) in str(two.error)
            ballast.unlink()
            await two.start()
            await until(lambda: bool(two.credited(decided + 1)), 40)
            assert two.error is None
            await agree(one, two)
            await two.stop()


@pytest.mark.slow
async def test_a_disk_that_turns_read_only_ends_the_node_in_words_and_loses_nothing(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        with small_disk(tmp_path / "2", "20m"):
            one, two = await place.started(1, 2)
            await two.reach(2)
            decided = two.reports[-1].round
            # A disk with open files cannot be made read-only by force here; what the kernel then says is played.
            two.swarm._node._peer._ledger._db.execute("PRAGMA query_only = ON")  # type: ignore[union-attr]
            await until(lambda: two.error is not None, 40)
            await until(lambda: not two.running)
            assert "cannot write" in str(two.error)
            await two.start()
            await until(lambda: bool(two.credited(decided + 1)), 40)
            await agree(one, two)
            await two.stop()


@pytest.mark.slow
async def test_a_joiner_whose_disk_is_full_is_told_so_and_goes_on_from_what_it_has(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        with small_disk(tmp_path / "3"):
            (one, two) = await place.started(1, 2)
            await two.reach(1)
            three = place.member(3)
            ballast = fill(three.folder)
            await three.start()
            await until(lambda: three.error is not None, 40)
            await until(lambda: not three.running)
            assert isinstance(three.error, P2pnetError)
            assert "full" in str(three.error)
            assert str(three.folder) in str(three.error)
            ballast.unlink()
            await three.start()
            await until(lambda: bool(three.credited()), 40)
            await agree(one, three)
            await three.stop()


def test_a_file_that_does_not_fit_leaves_the_old_one_and_no_half(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as folder:
        path = folder / "file"
        write_atomically(path, b"old")
        with pytest.raises(ConfigError, match=r"file: cannot write it: the disk is full; free some space"):
            write_atomically(path, bytes(1 << 20))
        assert path.read_bytes() == b"old"
        assert [one.name for one in folder.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EDQUOT, errno.ENAMETOOLONG]
)
def test_what_the_machine_has_run_out_of_is_said_wherever_it_shows(number: int) -> None:
    error = as_config_error(OSError(number, os.strerror(number), "/some/file"))
    assert error is not None
    assert str(error).startswith("/some/file: ")
    assert str(error) != f"/some/file: {os.strerror(number)}"
    assert as_config_error(OSError(errno.EPIPE, "x")) is None
    assert as_config_error(ValueError("x")) is None
