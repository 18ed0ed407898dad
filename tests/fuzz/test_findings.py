"""What fuzzing has found, each as the smallest input that showed it."""

from __future__ import annotations

import json
import pwd
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from p2pnet.config import NodeConfig
from p2pnet.errors import ConfigError, P2pnetError
from p2pnet.net.daemon import find_daemon, installed_path
from p2pnet.node.commands import ask_node
from p2pnet.schema import load, load_file
from p2pnet.train.storage import parse_tensors, read_tensors
from p2pnet.wire.manifest import Link

LINK = "p2pnet://" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("//[", "link: '//\\['"),  # urllib takes it for half an IPv6 address
        (
            f"{LINK}?bootstrap=/ip4/1.2.3.4/\udcff/p2p/12D3KooW",
            "holds letters that no link has",
        ),  # a stray byte of argv
        (f"{LINK}?bootstrap=/dns4/ü/tcp/1/p2p/12D3KooW", "holds letters that no link has"),
    ],
)
def test_a_link_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Link.parse(text)


@pytest.mark.parametrize("content", ["a = " + "[" * 5000, "metrics_port = " + "9" * 5000], ids=["depth", "digits"])
def test_toml_that_the_parser_does_not_survive_is_the_operators_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "node.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match="node.toml: not TOML"):
        load_file(NodeConfig, path)


def test_the_home_of_nobody_is_the_operators_error() -> None:
    with pytest.raises(ConfigError, match=r"state_dir: found '~nobody-at-all/x' \(text\); allowed is a path"):
        load(NodeConfig, {"state_dir": "~nobody-at-all/x"}, "node.toml")


def test_without_a_home_only_what_needs_one_fails_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_uid: int) -> object:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)  # a container with a user of its own making
    for name in ("HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="state_dir: found '~/.local/share/p2pnet', .*set HOME"):
        NodeConfig()
    assert NodeConfig(state_dir=Path("/elsewhere")).state_dir == Path("/elsewhere")
    with pytest.raises(ConfigError, match="set HOME"):
        installed_path()
    assert find_daemon().is_file()  # hivemind's, beside us


@pytest.mark.processes
def test_the_command_line_explains_itself_without_a_home() -> None:
    code = (
        "import os, pwd, sys; os.environ.pop('HOME', 0); pwd.getpwuid = {}.__getitem__\n"
        "from p2pnet.cli import main; sys.argv = ['p2pnet', *sys.argv[1:]]; main()"
    )
    run = [sys.executable, "-c", code]
    assert b"p2pnet join" in subprocess.run([*run, "--help"], capture_output=True, check=True).stdout
    done = subprocess.run([*run, "status"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "set HOME" in done.stderr
    assert "Traceback" not in done.stderr


def header(text: str, body: bytes = bytes(8)) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + body


@pytest.mark.parametrize(
    "data",
    [
        header('{"a":{"dtype":"F32","shape":[1073741824,1073741824],"data_offsets":[0,8]}}'),
        (1 << 62).to_bytes(8, "little") + b"{}",
        (90_000_000).to_bytes(8, "little") + b"{}",
    ],
    ids=["more than there is", "a header of 4 exabytes", "a long header"],
)
def test_tensors_that_are_not_there_are_the_operators_error(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ConfigError, match="initial parameters: not a safetensors file"):
        parse_tensors(data, "initial parameters")
    path = tmp_path / "some.safetensors"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"some\.safetensors: cannot be read"):
        read_tensors(path)


def test_a_dtype_that_the_library_knows_and_torch_has_not_is_the_operators_error() -> None:
    with pytest.raises(ConfigError, match="not a safetensors file of tensors that torch has: 'F4'"):
        parse_tensors(header('{"a":{"dtype":"F4","shape":[16],"data_offsets":[0,8]}}'), "initial parameters")


@pytest.mark.parametrize(
    "content",
    [
        '{"pid": 1e999, "socket": "/x"}',
        '{"pid": 1, "socket": "\\ud800"}',
        '{"pid": 1, "socket": "/a\\u0000b"}',
        "[" * 10**5,
    ],
    ids=["a number beyond all", "letters of no path", "a zero in a path", "depth"],
)
def test_a_pointer_to_a_node_that_is_nonsense_is_no_node(tmp_path: Path, content: str) -> None:
    (tmp_path / "node.json").write_text(content)
    with pytest.raises(ConfigError, match="no node runs|does not answer"):
        ask_node(tmp_path, "status")


@pytest.mark.parametrize("answer", ["[]", "7", "[" * 10**5, "not json"], ids=["list", "number", "depth", "words"])
def test_a_socket_that_answers_something_else_is_said(tmp_path: Path, answer: str) -> None:
    path = tmp_path / "s"
    (tmp_path / "node.json").write_text(json.dumps({"pid": 1, "socket": str(path)}))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def say() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(1000)
                client.sendall(answer.encode())

        other = threading.Thread(target=say)
        other.start()
        with pytest.raises(P2pnetError, match="answered something else"):
            ask_node(tmp_path, "status")
        other.join()
