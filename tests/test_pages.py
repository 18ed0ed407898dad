"""The tables of messages and of a peer's own choices on the pages say what the code says."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from p2pnet.core.addressbook import BookLimits
from p2pnet.core.contact import MembershipLimits
from p2pnet.core.news import GossipLimits
from p2pnet.core.recent import Memory
from p2pnet.core.standing import StandingLimits
from p2pnet.core.wanted import Asking
from p2pnet.identity import PeerId
from p2pnet.wire import branch, bundles, evidence, exchange, gossip, history, manifest, membership
from p2pnet.wire import round as round_messages
from p2pnet.wire.codec import Count, Message, Range, Size
from tests.wire import example

PROTOCOLS = Path(__file__).resolve().parent.parent / "protocols"
MESSAGES = [("gossip-1", message) for message in gossip.MESSAGES]
MESSAGES += [("membership-1", message) for message in membership.MESSAGES]
MESSAGES += [("round-1", message) for message in round_messages.MESSAGES]
MESSAGES += [("groups-1", message) for message in round_messages.WIDE]
MESSAGES += [("bundles-1", message) for message in bundles.MESSAGES]
MESSAGES += [("exchange-1", message) for message in exchange.MESSAGES]
MESSAGES += [("evidence-1", message) for message in evidence.MESSAGES]
MESSAGES += [("history-1", message) for message in history.MESSAGES]
MESSAGES += [("branch-1", message) for message in branch.MESSAGES]
MESSAGES += [("swarm-1", message) for message in manifest.MESSAGES]
CHOICES = {"gossip-1": (GossipLimits, Memory, Asking), "membership-1": (MembershipLimits, BookLimits, StandingLimits)}


def number(value: int) -> str:
    """As people write it: 2^63-1, 10^15, 255."""
    for power in range(20, 65):
        if value in (2**power, 2**power - 1):
            return f"2^{power}" + ("-1" if value < 2**power else "")
    text = str(value)
    return f"10^{len(text) - 1}" if len(text) > 12 and int(text[1:]) == 0 else text


def span(low: int, high: int) -> str:
    return number(low) if high < 0 else f"{number(low)}..{number(high)}"


def column(hint: Any) -> tuple[str, str]:
    """Type and limit of a field, as the pages' tables show them."""
    limit: Any = None
    if get_origin(hint) is Annotated:
        hint, limit = get_args(hint)[:2]
    if hint is PeerId:
        return "bytes", "32"
    if isinstance(limit, Range):
        return "int", span(limit.low, limit.high)
    if isinstance(limit, Size):
        return ("text" if hint is str else "bytes"), span(limit.low, limit.high)
    if isinstance(limit, Count):
        kind, inner = column(get_args(hint)[0])
        return f"list of {kind}", span(limit.low, limit.high) + (f" of {inner}" if inner else "")
    return hint.__name__, ""


def rows(section: str) -> list[list[str]]:
    """The cells of a table, without its head."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize(("page", "message"), MESSAGES, ids=lambda value: getattr(value, "__name__", value))
def test_a_message_has_the_fields_of_its_table(page: str, message: type[Message]) -> None:
    text = (PROTOCOLS / f"{page}.md").read_text()
    section = re.search(rf"^### {message.kind} {message.__name__}$(.*?)(?=^##)", text, re.MULTILINE | re.DOTALL)
    assert section, f"{page} has no message {message.kind}, {message.__name__}"
    hints = get_type_hints(message, include_extras=True)
    fields = [field.name for field in dataclasses.fields(message)]  # type: ignore[arg-type]
    assert [row[:4] for row in rows(section[1])] == [
        [str(place), name, *column(hints[name])] for place, name in enumerate(fields, 1)
    ]
    assert message.protocol == page.replace("-", "/")


@pytest.mark.parametrize("page", CHOICES)
def test_a_peers_own_choices_are_the_defaults_in_the_code(page: str) -> None:
    text = (PROTOCOLS / f"{page}.md").read_text()
    shown = sorted(
        (name, float(value)) for name, value in re.findall(r"^\| ([a-z_]+) \| ([\d.]+) \|", text, re.MULTILINE)
    )
    fields = [field for limits in CHOICES[page] for field in dataclasses.fields(limits)]  # type: ignore[arg-type]
    coded = sorted((field.name, float(field.default)) for field in fields if isinstance(field.default, int | float))
    assert shown == coded


def test_the_example_on_wire_1_is_the_message_of_its_vectors() -> None:
    text = (PROTOCOLS / "wire-1.md").read_text()
    hints = get_type_hints(example.Ping, include_extras=True)
    assert [row[1:4] for row in rows(text.split("\n## Parameters")[0])[-2:]] == [
        [field.name, *column(hints[field.name])] for field in dataclasses.fields(example.Ping)
    ]
