"""Whole members of a swarm of two groups: one comes late, one is killed and back, and all are bit-identical."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnet.wire.round import WideOutcome, decode_value
from tests.node.living import WAIT_S, agree, open_place
from tests.node.members import until


@pytest.mark.slow
async def test_who_comes_late_or_is_killed_has_the_parameters_of_all(tmp_path: Path) -> None:
    async with open_place(tmp_path, founders=3, group_size_max=3) as place:
        members = await place.started(1, 2, 3)
        for member in members:
            await member.reach(5)
        [late] = await place.started(4)  # from a state, and the results since
        await late.reach(7)
        await agree(*members, late)
        await members[2].kill()
        await members[0].reach(members[0].reports[-1].round + 3)
        await members[2].start()
        start = members[0].reports[-1].round + 2
        for member in (*members, late):
            await member.reach(start + 2)
        common = await agree(*members, late)
        assert max(common) >= start
        assert any(report.credited for report in late.reports)
        await until(lambda: bool(members[2].credited(start - 2)), WAIT_S)
        assert not any(member.note("diverged") for member in place.members)
        ledger = members[0].node._peer._ledger  # type: ignore[union-attr]
        outcomes = [decode_value(entry.outcome) for entry in ledger.entries(0, start)]
        wide = [outcome for outcome in outcomes if isinstance(outcome, WideOutcome)]
        assert len(wide) > len(outcomes) / 2  # with fewer than three in the last roster there is one group
