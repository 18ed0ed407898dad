from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest
import torch

from p2pnet.errors import ConfigError
from p2pnet.train.text import Corpus, Skipped, read_corpus, standard_library


def write(folder: Path, **files: bytes) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def content(corpus: Corpus) -> bytes:
    return bytes(corpus.data.tolist())


def test_files_come_in_the_order_of_their_paths_with_a_zero_byte_after_each(tmp_path: Path) -> None:
    write(tmp_path, z=b"last", a__z=b"two", a__b=b"one", m="ü".encode())
    corpus = read_corpus(tmp_path)
    assert content(corpus) == b"one\0two\0" + "ü".encode() + b"\0last\0"
    assert (corpus.files, corpus.bytes) == (4, len(content(corpus)))
    assert corpus.sha256 == hashlib.sha256(content(corpus)).digest()
    assert corpus.data.dtype == torch.uint8


def test_what_is_no_text_is_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path, a=b"text", b=b"zero\0byte", c=b"\xff\xfe", d=b"x" * 100, e=b"")
    write(tmp_path / "__pycache__", x=b"cached")
    write(tmp_path / ".hidden", x=b"hidden")
    write(tmp_path / "site-packages", x=b"installed")
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for a writer
    corpus = read_corpus(tmp_path, file_bytes_max=99)
    assert content(corpus) == b"text\0"
    assert corpus.skipped == Skipped(binary=2, large=1, empty=1)


def test_a_symbolic_link_never_leads_out_of_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "secret", key=b"private")
    inside = write(tmp_path / "inside", a=b"text")
    (inside / "file").symlink_to(tmp_path / "secret" / "key")
    (inside / "folder").symlink_to(tmp_path / "secret")
    (inside / "loop").symlink_to(inside)
    corpus = read_corpus(inside)
    assert content(corpus) == b"text\0"
    assert corpus.skipped == Skipped(links=3)


def test_the_total_is_limited_to_whole_files_in_order(tmp_path: Path) -> None:
    write(tmp_path, a=b"12345", b=b"12345", c=b"1")
    corpus = read_corpus(tmp_path, total_bytes_max=11)
    assert content(corpus) == b"12345\0"
    assert corpus.skipped == Skipped(over_total=2)


@pytest.mark.parametrize("files", [{}, {"a": b"\0"}, {"a": b""}])
def test_a_folder_without_text_is_refused_with_what_was_found(tmp_path: Path, files: dict[str, bytes]) -> None:
    write(tmp_path, **files)
    with pytest.raises(ConfigError, match=r"no text found in .*looked for UTF-8 files.*found \d binary"):
        read_corpus(tmp_path)


def test_a_missing_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is missing"):
        read_corpus(tmp_path / "nowhere")
    (tmp_path / "file").write_bytes(b"text")
    with pytest.raises(ConfigError, match="not a folder"):
        read_corpus(tmp_path / "file")


def test_the_split_is_disjoint_spread_and_the_same_every_time(tmp_path: Path) -> None:
    write(tmp_path, a=b"x" * 4096)
    corpus = read_corpus(tmp_path)
    numbered = Corpus(torch.arange(4096), corpus.sha256, 1, corpus.skipped)
    train, held_out = numbered.split()
    assert len(train) == 4096 * 15 // 16
    assert len(held_out) == 4096 // 16
    assert not set(train.tolist()) & set(held_out.tolist())
    assert {place // 256 for place in held_out.tolist()} == set(range(16))
    assert torch.equal(numbered.split()[1], held_out)


def test_too_short_a_text_holds_nothing_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="255 bytes are too few"):
        read_corpus(write(tmp_path, a=b"x" * 254)).split()


def test_the_standard_library_is_read_in_well_under_a_second() -> None:
    def took_s() -> float:
        start = time.process_time()
        read_corpus(standard_library())
        return time.process_time() - start

    assert min(took_s() for _ in range(3)) < 1.0  # the first may find nothing in the page cache
    corpus = read_corpus(standard_library())
    assert 4 << 20 < corpus.bytes <= 16 << 20
    assert b"import" in bytes(corpus.data[:65536].tolist())
