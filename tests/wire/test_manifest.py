from __future__ import annotations

from typing import Any

import pytest

from p2pnet.errors import ConfigError, WireError
from p2pnet.identity import verify
from p2pnet.wire.manifest import Link, open_manifest, swarm_id
from tests.vectors import vectors


@pytest.mark.parametrize("vector", vectors("swarm-1", "manifest"))
def test_a_manifest_is_joined_or_refused_as_its_vector_says(vector: dict[str, Any]) -> None:
    raw, expected = bytes.fromhex(vector["hex"]), bytes.fromhex(vector["expected"])
    if vector["valid"]:
        assert swarm_id(open_manifest(raw, expected, verify)) == expected
        return
    with pytest.raises(WireError) as caught:
        open_manifest(raw, expected, verify)
    assert caught.value.rule == vector["rule"]


@pytest.mark.parametrize("vector", vectors("swarm-1", "link"))
def test_a_link_is_read_or_refused_as_its_vector_says(vector: dict[str, Any]) -> None:
    if not vector["valid"]:
        with pytest.raises(ConfigError, match="link"):
            Link.parse(vector["text"])
        return
    link = Link.parse(vector["text"])
    assert (link.swarm.hex(), list(link.bootstrap)) == (vector["swarm"], vector["bootstrap"])
    assert str(link) == vector["text"]
