"""Rosters that are waited for, and how little is kept."""

from __future__ import annotations

import trio
import trio.testing

from p2pnet.core import events as ev
from p2pnet.core.parts import Part
from p2pnet.node.views import ROSTER_WAIT_S, ROUNDS_AHEAD, VIEWS_KEPT, WAITING_MAX, WAITING_PER_PEER_MAX, Piece, Views
from tests.node.members import identity

ONE, TWO = identity(1).peer, identity(2).peer
PIECE = Piece(b"x", [b"\0" * 32], ())


def exchange(round_id: int = 0, view: int = 0) -> ev.Exchange:
    return ev.Exchange(round_id, view, (), (), (Part(0, 0, 1, ONE, TWO),))


async def test_a_view_that_is_there_is_not_waited_for() -> None:
    views = Views(0)
    views.open(exchange())
    assert await views.wait(0, 0, ONE) is views.find(0, 0)


async def test_a_roster_that_does_not_come_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    views = Views(0)
    assert await views.wait(0, 3, ONE) is None
    assert trio.current_time() == ROSTER_WAIT_S
    assert not views._waiting


async def test_other_times_than_now_are_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    views = Views(10)
    for round_id in (0, 10 - 3, 10 + ROUNDS_AHEAD + 1, 2**32 - 1):
        assert await views.wait(round_id, 0, ONE) is None
    assert trio.current_time() == 0


async def test_one_peer_waits_with_few_streams_and_all_with_a_bounded_number(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    views = Views(0)
    for _ in range(50):
        nursery.start_soon(views.wait, 0, 0, ONE)
    for number in range(WAITING_MAX):
        nursery.start_soon(views.wait, 0, 0, identity(2 + number % 100).peer)
    await trio.testing.wait_all_tasks_blocked()
    assert views._waiting[ONE] <= WAITING_PER_PEER_MAX
    assert views._waiting.total() == WAITING_MAX


async def test_a_decision_wakes_those_that_wait_for_what_is_over(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    views = Views(0)
    nursery.start_soon(views.wait, 0, 0, ONE)
    await trio.testing.wait_all_tasks_blocked()
    views.forget(2)
    await trio.testing.wait_all_tasks_blocked()
    assert not views._waiting
    assert trio.current_time() == 0


async def test_an_answer_comes_once_it_is_there_and_none_when_the_view_is_over(nursery: trio.Nursery) -> None:
    views = Views(0)
    views.open(exchange())
    view = views.find(0, 0)
    assert view is not None
    got: list[object] = []

    async def wait(part: int) -> None:
        got.append(await view.wait_answer(part))

    nursery.start_soon(wait, 0)
    nursery.start_soon(wait, 1)
    await trio.testing.wait_all_tasks_blocked()
    view.answer(0, b"raw", b"output")
    await trio.testing.wait_all_tasks_blocked()
    assert got == [(b"raw", b"output")]
    views.forget(5)
    await trio.testing.wait_all_tasks_blocked()
    assert got == [(b"raw", b"output"), None]


def test_the_first_slice_of_a_peer_counts_and_none_after_the_end() -> None:
    views = Views(0)
    views.open(exchange())
    view = views.find(0, 0)
    assert view is not None
    assert view.keep(0, ONE, PIECE)
    assert not view.keep(0, ONE, PIECE)
    assert view.keep(0, TWO, PIECE)
    view.close()
    assert not view.keep(1, ONE, PIECE)
    assert not view.pieces
    assert view.part(0) is not None
    assert view.part(1) is None


def test_old_views_and_rounds_are_dropped() -> None:
    views = Views(0)
    for view in range(VIEWS_KEPT + 3):
        views.open(exchange(0, view))
    assert views.find(0, 2) is None
    assert views.find(0, 3) is not None
    views.open(exchange(1, 0))
    assert len(views._views) == VIEWS_KEPT + 1
    views.forget(2)
    assert views.oldest == 1
    assert list(views._views) == [(1, 0)]
