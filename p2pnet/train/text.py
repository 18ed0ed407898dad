"""Read a folder of text into one tensor of bytes, in the same order on every machine that has the same files."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from p2pnet.errors import ConfigError

SEPARATOR = b"\x00"  # between files: a byte that no text file has (one that does counts as binary)
TOTAL_BYTES_MAX = 16 << 20  # measured: read, checked and hashed in under 0.2 s; the demo sees a tenth of it
FILE_BYTES_MAX = 1 << 20  # guess: a larger file is data (tables, logs) that would crowd out the others
SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "dist-packages", "node_modules"})
SEGMENTS = 16  # the held-out bytes are the last 1/16 of each of 16 equal segments: spread, yet whole passages


@dataclass(frozen=True, slots=True)
class Skipped:
    """What a folder holds that did not become part of the corpus, in files."""

    binary: int = 0  # a zero byte, or not UTF-8
    large: int = 0  # over the limit of one file
    empty: int = 0
    links: int = 0  # symbolic links are never followed: they may lead out of the folder
    over_total: int = 0  # left out because the corpus is full
    unreadable: int = 0  # the operating system refused

    def __str__(self) -> str:
        return (
            f"{self.binary} binary or not UTF-8, {self.large} too large, {self.empty} empty, {self.links} symbolic "
            f"links, {self.unreadable} unreadable, {self.over_total} beyond the total limit"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """The text of a folder as bytes: files in the order of their relative paths, a zero byte after each."""

    data: Tensor  # (bytes,) uint8
    sha256: bytes  # of data
    files: int
    skipped: Skipped

    @property
    def bytes(self) -> int:
        """Length of the corpus, separators included."""
        return self.data.numel()

    def split(self) -> tuple[Tensor, Tensor]:
        """Return what to train on and what is held out: (15/16 of the bytes,), (1/16,) uint8, the same everywhere.

        Raises ConfigError when the corpus is too short to hold anything out.
        """
        segment = self.bytes // SEGMENTS
        held_out = segment // SEGMENTS
        if held_out == 0:
            raise ConfigError(f"text: {self.bytes} bytes are too few to hold some out, allowed from {SEGMENTS**2} on")
        segments = self.data[: SEGMENTS * segment].view(SEGMENTS, segment)
        return segments[:, :-held_out].flatten(), segments[:, -held_out:].flatten()


def standard_library() -> Path:
    """Return the folder of Python's own library sources: real text that any machine with Python has."""
    return Path(sysconfig.get_path("stdlib"))


def read_corpus(
    folder: Path, *, total_bytes_max: int = TOTAL_BYTES_MAX, file_bytes_max: int = FILE_BYTES_MAX
) -> Corpus:
    """Read every text file under `folder`, smallest relative path first, until the total limit is reached.

    Text is what decodes as UTF-8 and has no zero byte. Hidden files and folders, caches and installed packages are not
    entered, symbolic links not followed. Raises ConfigError when the folder is missing or holds no text.
    """
    if not folder.is_dir():
        raise ConfigError(f"text: {folder} is {'not a folder' if folder.exists() else 'missing'}, a folder is expected")
    text = bytearray()
    files = 0
    skipped = dict.fromkeys(("binary", "large", "empty", "links", "over_total", "unreadable"), 0)
    listed = _list_files(folder)
    for number, (path, is_link) in enumerate(listed):
        reason, content = ("links", b"") if is_link else _read_text(path, file_bytes_max)
        if reason:
            skipped[reason] += 1
            continue
        if len(text) + len(content) + len(SEPARATOR) > total_bytes_max:
            skipped["over_total"] = len(listed) - number
            break
        text += content + SEPARATOR
        files += 1
    counts = Skipped(**skipped)
    if not files:
        raise ConfigError(
            f"text: no text found in {folder}: looked for UTF-8 files of 1 to {file_bytes_max} bytes, found {counts}"
        )
    return Corpus(torch.frombuffer(text, dtype=torch.uint8), hashlib.sha256(text).digest(), files, counts)


def _read_text(path: Path, file_bytes_max: int) -> tuple[str, bytes]:
    """Return ("", content) of a text file, or the name of the count in `Skipped` that it falls under."""
    try:
        with path.open("rb") as file:
            content = file.read(file_bytes_max + 1)  # never more, whatever the file has grown to meanwhile
    except OSError:
        return "unreadable", b""
    if len(content) > file_bytes_max:
        return "large", b""
    if SEPARATOR in content:
        return "binary", b""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return "binary", b""
    return ("", content) if content else ("empty", b"")


def _list_files(root: Path) -> list[tuple[Path, bool]]:
    """List regular files and symbolic links under `root` with whether each is a link, in order of relative path."""
    found: list[tuple[str, bool]] = []
    for folder, folders, names in os.walk(root, followlinks=False):
        relative = Path(folder).relative_to(root)
        found.extend(((relative / name).as_posix(), True) for name in folders if (Path(folder) / name).is_symlink())
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS and not name.startswith(".")]
        for name in names:
            path = Path(folder) / name
            if not name.startswith(".") and (path.is_symlink() or path.is_file()):  # no pipes, no devices
                found.append(((relative / name).as_posix(), path.is_symlink()))
    found.sort(key=lambda entry: os.fsencode(entry[0]))
    return [(root / name, is_link) for name, is_link in found]
