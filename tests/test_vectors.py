"""Every vector of a wire message, of whatever page: read by our code, and checked by an encoder that is not ours."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import types
from typing import Any

import pytest

from p2pnet.errors import WireError
from p2pnet.identity import verify
from p2pnet.wire.codec import Message, decode, encode
from p2pnet.wire.gossip import message_id
from p2pnet.wire.signing import domain_tag, open_signed
from tests import independent
from tests.vectors import VECTORS, vectors
from tests.wire import example

CASES = [
    pytest.param(case, id=f"{file.parent.name}/{file.stem}")
    for file in sorted(VECTORS.glob("*/*.json"))
    if (case := json.loads(file.read_text())).get("kind") in ("message", "signed")
]


def classes_of(protocol: str) -> tuple[type[Message], ...]:
    name = protocol.partition("/")[0]
    name = {"swarm": "manifest", "groups": "round"}.get(name, name)
    module: types.ModuleType = example if name == "example" else importlib.import_module(f"p2pnet.wire.{name}")
    found = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, Message)]
    return tuple(each for each in found if each is not Message and each.protocol == protocol)


def plain(value: Any) -> Any:
    """A decoded message as JSON writes it: bytes as hex, a nested message as an object."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, Message):
        fields = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}  # type: ignore[arg-type]
        return {"message": type(value).__name__, **fields}
    return value


def array(message: Message) -> list[Any]:
    """The array of a message: kind and fields, in the order of its page."""

    def lower(value: Any) -> Any:
        if isinstance(value, tuple):
            return [lower(item) for item in value]
        return array(value) if isinstance(value, Message) else value

    return [message.kind, *(lower(getattr(message, field.name)) for field in dataclasses.fields(message))]  # type: ignore[arg-type]


@pytest.mark.parametrize("vector", CASES)
def test_bytes_are_read_or_refused_as_their_vector_says(vector: dict[str, Any]) -> None:
    classes, data = classes_of(vector["protocol"]), bytes.fromhex(vector["hex"])

    def read() -> Message:
        return open_signed(classes, data, verify).message if vector["kind"] == "signed" else decode(classes, data)

    if not vector["valid"]:
        with pytest.raises(WireError) as caught:
            read()
        assert caught.value.rule == vector["rule"]
        return
    message = read()
    assert plain(message) == vector["decoded"]
    if vector["kind"] == "message":
        assert encode(message) == data


@pytest.mark.parametrize("vector", [case for case in CASES if case.values[0]["valid"]])  # type: ignore[index,call-overload]
def test_an_encoder_and_a_verifier_that_are_not_ours_agree(vector: dict[str, Any]) -> None:
    classes, data = classes_of(vector["protocol"]), bytes.fromhex(vector["hex"])
    if vector["kind"] == "message":
        assert independent.msgpack(array(decode(classes, data))) == data
        return
    signed = open_signed(classes, data, lambda *_: True)
    assert independent.msgpack([independent.msgpack(array(signed.message)), signed.peer, signed.signature]) == data
    assert independent.verify(signed.peer, domain_tag(signed.message.protocol) + signed.body, signed.signature)


@pytest.mark.parametrize("vector", vectors("gossip-1", "message-id"))
def test_message_ids_are_those_of_the_page(vector: dict[str, Any]) -> None:
    topic, data = vector["topic"], bytes.fromhex(vector["data"])
    assert message_id(topic, data).hex() == vector["id"]
    assert hashlib.sha256(bytes([len(topic.encode())]) + topic.encode() + data).hexdigest()[:40] == vector["id"]
