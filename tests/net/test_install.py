from __future__ import annotations

import hashlib
import stat
import sys
import zipfile
from pathlib import Path

import pytest

from p2pnet.errors import ConfigError, NetworkError
from p2pnet.net import install
from p2pnet.net.daemon import BINARY_IN_WHEEL, find_daemon
from p2pnet.net.install import RELEASES, Release, install_daemon, is_installed, release_for, this_platform

HERE = ("linux", "x86_64")
BINARY = b"\x7fELF and the rest"


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Release:
    """A release whose binary is BINARY, in place of the real one."""
    small = Release("manylinux2014_x86_64", len(BINARY), hashlib.sha256(BINARY).hexdigest())
    monkeypatch.setitem(install.RELEASES, HERE, small)
    return small


def wheel_with(name: str, content: bytes) -> install.Callable[[Release, Path], Path]:
    def download(_release: Release, folder: Path) -> Path:
        path = folder / "hivemind-1.1.12-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content)
        return path

    return download


def no_download(_release: Release, _folder: Path) -> Path:
    raise AssertionError("nothing is to be downloaded")


def test_the_binary_is_put_in_place_executable_and_nothing_else_stays(tmp_path: Path, release: Release) -> None:
    path = install_daemon(tmp_path / "new" / "p2pd", HERE, wheel_with(BINARY_IN_WHEEL, BINARY))
    assert path.read_bytes() == BINARY
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert list(path.parent.iterdir()) == [path]


def test_what_is_there_and_right_is_not_downloaded_again_and_what_is_wrong_is_replaced(
    tmp_path: Path, release: Release
) -> None:
    path = tmp_path / "p2pd"
    path.write_bytes(b"an older one")
    path.chmod(0o755)
    install_daemon(path, HERE, wheel_with(BINARY_IN_WHEEL, BINARY))
    assert is_installed(path, release)
    install_daemon(path, HERE, no_download)
    path.chmod(0o644)
    assert not is_installed(path, release)


@pytest.mark.parametrize("content", [BINARY[:-1] + b"!", BINARY[:-1], BINARY + b"!", BINARY + bytes(5_000_000), b""])
def test_another_binary_is_not_installed_whatever_its_size(tmp_path: Path, release: Release, content: bytes) -> None:
    with pytest.raises(NetworkError, match="not the one we know"):
        install_daemon(tmp_path / "p2pd", HERE, wheel_with(BINARY_IN_WHEEL, content))
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_without_the_binary_or_no_wheel_at_all_is_said_so(tmp_path: Path, release: Release) -> None:
    with pytest.raises(NetworkError, match="is no wheel with"):
        install_daemon(tmp_path / "p2pd", HERE, wheel_with("something/else", BINARY))

    def download(_release: Release, folder: Path) -> Path:
        (folder / "x.whl").write_bytes(b"no zip")
        return folder / "x.whl"

    with pytest.raises(NetworkError, match="is no wheel with"):
        install_daemon(tmp_path / "p2pd", HERE, download)


def test_a_place_that_cannot_be_written_is_the_operators(tmp_path: Path, release: Release) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="daemon: cannot write"):
        install_daemon(tmp_path / "file" / "p2pd", HERE, wheel_with(BINARY_IN_WHEEL, BINARY))


def test_a_platform_without_a_daemon_is_named_with_those_that_have_one() -> None:
    with pytest.raises(ConfigError, match="found win32 on x86_64, the daemon exists for linux on x86_64"):
        release_for("win32", "x86_64")


def test_the_daemon_that_the_tests_run_is_the_one_in_the_table() -> None:
    assert is_installed(find_daemon(), RELEASES[this_platform()])


def test_pips_reason_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(NetworkError, match=r"pip could not download hivemind 1\.1\.12.*No matching distribution"):
        install_daemon(tmp_path / "p2pd")


@pytest.mark.slow
@pytest.mark.skipif(this_platform() not in RELEASES, reason=f"no daemon for {sys.platform}")
def test_the_real_daemon_is_downloaded_and_is_the_one_in_the_table(tmp_path: Path) -> None:
    try:
        path = install_daemon(tmp_path / "p2pd")
    except NetworkError as error:
        pytest.skip(f"no package index here: {error}")
    assert is_installed(path, RELEASES[this_platform()])
