"""Keep the rosters of a round, and what comes before the roster that it builds on. Pure.

Contract: protocols/round-1.md, R13 to R17.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pnet.core.commits import Commits
from p2pnet.core.deciding import VIEWS_AHEAD
from p2pnet.wire.round import Commit, Reduced, Roster
from p2pnet.wire.signing import Signed

VIEWS_KEPT = 8  # earlier views whose roster, exchange and proposal are kept
EARLY_PER_PEER = 4  # reduced digests kept of one peer whose roster is not here yet: it reduces two parts of a view


@dataclass(frozen=True, slots=True)
class Listed:
    """The commits of a roster, opened."""

    view: int
    commits: tuple[Signed[Commit], ...]
    omits: bool  # it leaves out too many, so that only what 2/3 prepared may rest on it


class Rosters:
    """The rosters that proposers called in one round; the first one of a view counts, right or wrong."""

    def __init__(self, commits: Commits) -> None:
        self._commits = commits
        self._judged: set[int] = set()  # views
        self._found: dict[bytes, Listed] = {}
        self._early: dict[int, Signed[Roster]] = {}
        self._early_reduced: dict[bytes, list[Signed[Reduced]]] = {}

    def awaits(self, signed: Signed[Roster], view: int) -> bool:
        """Tell whether a roster is to be opened in this view; one of a later view is kept until then."""
        at = signed.message.view
        if view < at <= view + VIEWS_AHEAD:
            self._early.setdefault(at, signed)
        return view - VIEWS_KEPT <= at <= view and at not in self._judged

    def open(self, signed: Signed[Roster], checksum: int | None, now_s: float) -> Listed:
        """Open and judge a roster; raises WireError with the rule that one of its commits breaks."""
        message = signed.message
        self._judged.add(message.view)
        commits = self._commits.open_roster(message.commits)
        omits = self._commits.omitted_too_many(message, commits, checksum, now_s)
        listed = Listed(message.view, commits, omits)
        self.put(message.digest(), listed)
        return listed

    def put(self, digest: bytes, listed: Listed) -> None:
        """Keep a roster of many groups."""
        known = self._found.get(digest)
        if known is None or known.omits:
            self._found[digest] = listed

    def find(self, digest: bytes) -> Listed | None:
        """The roster with this digest, of whatever view."""
        return self._found.get(digest)

    def keep(self, signed: Signed[Reduced]) -> None:
        """Keep a reduced digest whose roster is not here; of who has committed, and few of each."""
        if signed.peer in self._commits.held:
            kept = self._early_reduced.setdefault(signed.peer, [])
            if len(kept) < EARLY_PER_PEER:
                kept.append(signed)

    def replay(self, view: int) -> tuple[Signed[Roster] | None, list[Signed[Reduced]]]:
        """What was kept and can be taken up now."""
        roster = self._early.get(view)
        self._early = {at: signed for at, signed in self._early.items() if at > view}
        early, self._early_reduced = self._early_reduced, {}
        return roster, [signed for kept in early.values() for signed in kept]

    def forget(self, before: int) -> None:
        """Drop the rosters of views before this one."""
        self._found = {digest: listed for digest, listed in self._found.items() if listed.view >= before}
        self._judged = {view for view in self._judged if view >= before}
