"""What is late in an exchange of many groups: by its deadline, or because most of its like was here long before. Pure.

Contract: protocols/groups-1.md, R16.
"""

from __future__ import annotations

import math

FORWARD_AT = 0.5  # in exchange time-outs: who collects a column stops waiting for slices
REDUCE_AT = 1.0  # reducers stop waiting for bundles
TURN_AT = 1.2  # bundles go to the backups of the parts that did not come back
BACKUP_AT = 1.5  # these stop waiting
GIVE_AT = 1.8  # columns go to the group without the parts that did not come
LATE_COLUMN = 2.0  # contributors ask another group for a column
ELSEWHERE_AT = 2.2  # and one more
PROPOSE_AT = 2.5  # a result may be proposed without columns that nobody gave
WIDE_VOID_AT = 2.7  # VOID may be proposed and prepared
WIDE_LATE_PROPOSAL = 3.0  # the view is given up
MOST = 4  # once all but one in so many are here
PATIENCE = 1.5  # the others get so many times as long as these took
ALL = -1  # columns and parts
_STAGES = (FORWARD_AT, REDUCE_AT, TURN_AT, BACKUP_AT, GIVE_AT, LATE_COLUMN, ELSEWHERE_AT, PROPOSE_AT)


class Stages:
    """The deadlines of one exchange, for all columns and parts and for each of them."""

    def __init__(self, start_s: float, timeout_s: float, grace_s: float) -> None:
        """grace_s: half of it is what peers may differ in when they hear of a roster."""
        self.start_s, self.timeout_s, self.grace_s = start_s, timeout_s, grace_s
        self._passed = 0
        self._stirred = False
        self._soon: dict[tuple[float, int], float] = {}  # what need not wait for its deadline; inf: it is late

    def at_s(self, at: float) -> float:
        """When a deadline comes for all."""
        return self.start_s + at * self.timeout_s

    @property
    def deadline_s(self) -> float | None:
        """When the next thing is late."""
        times = [due_s for due_s in self._soon.values() if due_s < math.inf]
        times += [self.at_s(at) for at in _STAGES[self._passed : self._passed + 1]]
        return min(times, default=None)

    def is_over(self, at: float, number: int = ALL) -> bool:
        """Tell whether a deadline has come, for all or for this column or part."""
        return self._passed > _STAGES.index(at) or self._soon.get((at, number)) == math.inf

    def hurry(self, at: float, number: int, here: int, wanted: int, now_s: float) -> None:
        """See whether so much is here that the rest need not be waited for until its deadline."""
        if here * MOST >= wanted * (MOST - 1):
            self.soon(at, number, now_s)

    def soon(self, at: float, number: int, now_s: float) -> None:
        """Give what is still missing PATIENCE times as long as this took, and half a grace."""
        if (at, number) not in self._soon:
            self._soon[at, number] = self.start_s + PATIENCE * (now_s - self.start_s) + self.grace_s / 2
            self._stirred = True

    def is_still(self) -> bool:
        """Tell whether no deadline has changed since this was asked last."""
        was, self._stirred = self._stirred, False
        return not was

    def tick(self, now_s: float) -> list[tuple[float, int]]:
        """What has become late since: which deadline, and for which column or part."""
        late = [key for key, due_s in self._soon.items() if now_s >= due_s]
        for key in late:
            self._soon[key] = math.inf
        while self._passed < len(_STAGES) and now_s >= self.at_s(_STAGES[self._passed]):
            late.append((_STAGES[self._passed], ALL))
            self._passed += 1
        return late
