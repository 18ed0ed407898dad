"""Reduce parts over all groups, from the bundles that those send who collected the slices of theirs. Pure.

Contract: protocols/groups-1.md, R12 and R13.
"""

from __future__ import annotations

from p2pnet.core.columns import Plan, missing_of, rows_root
from p2pnet.core.events import Answer, Effect
from p2pnet.core.group_events import PartReduced, ReducePart
from p2pnet.core.parts import Part
from p2pnet.core.stages import BACKUP_AT, REDUCE_AT, Stages
from p2pnet.identity import PeerId
from p2pnet.wire.round import WideReduced
from p2pnet.wire.signing import Signed


class PartReducing:
    """The parts of one exchange that a peer reduces: its own, and those that it backs up."""

    def __init__(self, me: PeerId, plan: Plan, stages: Stages) -> None:
        self._me, self._plan, self._stages = me, plan, stages
        self._bundles: dict[int, dict[int, frozenset[PeerId]]] = {}  # by part and group: whose slices are here
        self._begun: set[int] = set()

    def bundled(self, part: int, group: int, peer: PeerId, members: frozenset[PeerId], now_s: float) -> list[Effect]:
        """The slices of one group for a part are here."""
        plan = self._plan
        spec = plan.parts[part] if 0 <= part < len(plan.parts) else None
        if spec is None or self._me not in (spec.reducer, spec.backup) or not 0 <= group < len(plan.groups):
            return []
        column = plan.columns[group][part // len(plan.groups)]
        if peer not in (column.reducer, column.backup) or not members <= plan.members[group]:
            return []
        bundles = self._bundles.setdefault(part, {})
        bundles[group] = bundles.get(group, frozenset()) | members
        self._stages.hurry(self._deadline(spec), part, len(bundles), len(plan.groups), now_s)
        return self._reduce(spec)

    def be_late(self) -> list[Effect]:
        """Reduce what need not wait any more."""
        parts = [self._plan.parts[number] for number in self._bundles]
        return [effect for part in parts if part is not None for effect in self._reduce(part)]

    def message(self, done: PartReduced) -> WideReduced:
        """What I sign of my own reduction."""
        plan, part = self._plan, self._plan.parts[done.part]
        assert part is not None
        return WideReduced(
            plan.swarm, plan.round, plan.view, part.index, part.start, part.stop, plan.roster, rows_root(done.rows),
            missing_of(plan, done.rows), done.root, done.norms,
        )  # fmt: skip

    def answer(self, done: PartReduced, signed: Signed[WideReduced]) -> list[Effect]:
        """My own reduction is done and signed: all who sent bundles get it."""
        return [Answer(self._plan.round, self._plan.view, done.part, done.root, signed.raw)]

    def _reduce(self, part: Part) -> list[Effect]:
        """Reduce when the bundles of all groups are here, or when it is late."""
        bundles, count = self._bundles[part.index], len(self._plan.groups)
        due = len(bundles) == count or self._stages.is_over(self._deadline(part), part.index)
        if part.index in self._begun or not due or not any(bundles.values()):
            return []
        self._begun.add(part.index)
        senders = tuple(bundles.get(group, frozenset()) for group in range(count))
        return [ReducePart(self._plan.round, self._plan.view, part, senders)]

    def _deadline(self, part: Part) -> float:
        return REDUCE_AT if part.reducer == self._me else BACKUP_AT
