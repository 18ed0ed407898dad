from __future__ import annotations

from pathlib import Path

import pytest
import torch

from p2pnet.errors import ConfigError
from p2pnet.train import storage
from p2pnet.train.storage import check_tensors, dump_tensors, list_some, parse_tensors, read_tensors, write_tensors

A = {"b": torch.arange(4.0), "a": torch.ones(2, 3)}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_tensors(tmp_path / "file", A, {"round": "7"})
    tensors, metadata = read_tensors(tmp_path / "file")
    assert metadata == {"round": "7"}
    assert all(torch.equal(tensors[name], A[name]) for name in A)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_tensors(path, A, {"round": "1"})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "_sync", full)
    with pytest.raises(ConfigError, match=r"cannot be written: the disk is full"):
        write_tensors(path, A, {"round": "2"})
    assert read_tensors(path)[1] == {"round": "1"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_does_not_exist_is_the_operators_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        write_tensors(tmp_path / "nowhere" / "file", A, {})


@pytest.mark.parametrize("content", [b"", b"garbage" * 10, b"\xff" * 8 + b"{}"])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read as safetensors"):
        read_tensors(tmp_path / "file")
    with pytest.raises(ConfigError, match="sent: not a safetensors file"):
        parse_tensors(content, "sent")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_tensors(tmp_path / "file")


def test_the_same_tensors_give_the_same_bytes_in_any_order() -> None:
    data = dump_tensors(A)
    assert data == dump_tensors(dict(reversed(A.items())))
    assert set(parse_tensors(data, "x")) == {"a", "b"}


def test_every_difference_is_listed_and_values_are_finite() -> None:
    kinds = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in A.items()}
    check_tensors(A, kinds, "x")
    with pytest.raises(ConfigError, match=r"x: a: \(torch.float32, \(2, 3\)\), expected absent; c: absent, expected"):
        check_tensors(A, {"b": kinds["b"], "c": kinds["a"]}, "x")
    with pytest.raises(ConfigError, match="a holds a NaN or infinity"):
        check_tensors(A | {"a": torch.full((2, 3), torch.nan)}, kinds, "x")


def test_a_long_list_is_cut_with_its_length_said() -> None:
    assert list_some([str(i) for i in range(5)], 2) == "0; 1; and 3 more"
