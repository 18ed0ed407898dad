"""Take up the branches that a stopped process was in, and bring the learner to where they stand.

Contract: protocols/branch-1.md.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Container, Mapping

import trio

from p2pnet.errors import ConfigError, P2pnetError
from p2pnet.identity import PeerId
from p2pnet.node import bridge as br
from p2pnet.node.branches import Branches, Kept, Line, follow
from p2pnet.node.history import History

log = logging.getLogger(__name__)


class Resuming:
    """The way of a learner from where it was saved to the last line that goes on."""

    def __init__(
        self,
        me: PeerId,
        history: History,
        branches: Branches,
        bridge: br.Bridge,
        told: trio.MemoryReceiveChannel[br.Attached | br.Applied],
        catch_up: Callable[[int], Awaitable[None]],
    ) -> None:
        """history: of the final chain.   told: what the user's thread answers.

        catch_up: brings a learner on the final chain from a round to its last decided one.
        """
        self._me, self._history, self._branches = me, history, branches
        self._bridge, self._told, self._catch_up = bridge, told, catch_up
        self.lines: list[Line] = []  # that go on
        self.over: list[Kept] = []  # the others: to be removed once the learner is back from there

    async def run(self, stands: int, line: str) -> None:
        """Bring the learner along.   stands, line: where it was saved.

        Raises ConfigError when it was saved in a branch that is not on this disk.
        """
        keep_results = self._history.ledger.keep_results
        kept = await trio.to_thread.run_sync(self._branches.load)
        self.lines = await trio.to_thread.run_sync(follow, kept, self._history.state, keep_results)
        going_on = [one for one, _, _ in self.lines]
        self.over = [one for one in kept if one not in going_on]
        going = {"": -1} | {one.id.hex(): at for at, (one, _, _) in enumerate(self.lines)}
        if line not in going:
            back = self._way_back(line, going, {one.id.hex(): one for one in kept})
            self._bridge.give(back)
            stands, line = back.round_id, back.line
        at = going[line]
        if at < 0:
            await self._catch_up(stands)
            stands = len(self._history.ledger)
        for number in range(max(at, 0), len(self.lines)):
            if number > at:
                self._bridge.give(self.lines[number][0].fork)
                stands = self.lines[number][1].round
            if not await self._replay(self.lines[number], stands):
                self._drop(number)
                return

    def _way_back(self, line: str, going: Container[str], known: Mapping[str, Kept]) -> br.Return:
        """To where the learner left the last line that goes on, on its way to this one."""
        while True:
            if line not in known:
                raise ConfigError(
                    f"the learner was saved in degraded branch {line[:16]}, which cannot be read on this disk; move "
                    "learner.safetensors out of the swarm's folder, and the node begins again from the final chain"
                )
            back = known[line].back(self._history.swarm)
            if back.line in going:
                return back
            line = back.line

    async def _replay(self, line: Line, start: int) -> bool:
        """Hand the learner what a branch decided; tells whether all of it is kept."""
        kept, genesis, ledger = line
        history = await trio.to_thread.run_sync(History, kept.id, self._history.manifest, ledger, genesis)
        try:
            for outcome in history.outcomes(self._me, start, len(ledger)):
                self._bridge.give(outcome)
                await self._told.receive()
        except P2pnetError as error:
            log.warning("%s: not gone on with: %s", kept.folder, error)
            return False
        return True

    def _drop(self, number: int) -> None:
        """Go back to the line before one whose results are not all kept."""
        self._bridge.give(self.lines[number][0].back(self._history.swarm))
        for kept, _, ledger in self.lines[number:]:
            ledger.close()
            self.over.append(kept)
        del self.lines[number:]

    def close(self) -> None:
        """Close the ledgers of the branches."""
        for _, _, ledger in self.lines:
            ledger.close()
