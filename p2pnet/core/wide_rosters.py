"""Open the rosters of groups, and put them together into one; once for all that hold the same bytes. Pure.

Contract: protocols/groups-1.md, R4 and R5.
"""

from __future__ import annotations

from collections.abc import Callable

from p2pnet.core.commits import judge_commit
from p2pnet.core.groups import deal
from p2pnet.core.outcomes import Assembled
from p2pnet.core.remember import remember
from p2pnet.core.state import SwarmState
from p2pnet.errors import WireError
from p2pnet.wire.round import COMMIT_RAW_MAX, Commit, GroupRoster, Listing, listing_digest, roster_digest
from p2pnet.wire.signing import Signed, Verify, open_signed

ROOM = 2  # times group_size_max: commits of one group, so that newcomers need not wait for the next deal


def assemble(state: SwarmState, listings: tuple[Listing, ...], verify: Verify) -> Assembled:
    """Open a whole roster, group by group; raises WireError with the rule broken.

    listings: the signed commits of each group, by peer, rising; empty where a group gave none.
    """
    digest = listing_digest(tuple(roster_digest(listing.items) if listing.items else b"" for listing in listings))
    return assemble_once(state, digest, lambda: listings, verify)


def assemble_once(
    state: SwarmState, digest: bytes, listings_of: Callable[[], tuple[Listing, ...]], verify: Verify
) -> Assembled:
    """See `assemble`; a roster that was opened before is found by its digest."""
    kept = _assembled(state, digest)
    if not kept:
        dealt, listings = deal(state), listings_of()
        if dealt is None or len(listings) != len(dealt.groups):
            raise WireError("groups-1/R5", f"a roster of {len(listings)} groups")
        groups = [open_group(state, group, listing.items, verify) for group, listing in enumerate(listings)]
        commits = tuple(sorted((commit for group in groups for commit in group), key=lambda commit: commit.peer))
        if not commits:
            raise WireError("groups-1/R5", "a roster of nobody")
        kept.append(Assembled(digest, listings, commits))
    return kept[0]


@remember(16)
def _assembled(state: SwarmState, digest: bytes) -> list[Assembled]:  # noqa: ARG001 - they say which
    """Where the one roster with this digest is kept."""
    return []


def open_group(state: SwarmState, group: int, raws: tuple[bytes, ...], verify: Verify) -> tuple[Signed[Commit], ...]:
    """Open the commits of one group; raises WireError with the rule broken."""
    kept = _opened(state, group, raws)
    if not kept:
        dealt = deal(state)
        if dealt is None or len(raws) > ROOM * state.policy.group_size_max:
            raise WireError("groups-1/R4", f"{len(raws)} commits")
        commits = tuple(open_signed((Commit,), raw, verify, COMMIT_RAW_MAX) for raw in raws)
        peers = [commit.peer for commit in commits]
        if peers != sorted(set(peers)) or any(dealt.group_of(peer) != group for peer in peers):
            raise WireError("groups-1/R4", "peers are not rising, or of another group")
        for commit in commits:
            if rule := judge_commit(state, commit):
                raise WireError(rule, "in the roster of a group")
        kept.append(commits)
    return kept[0]


@remember(4096)
def _opened(state: SwarmState, group: int, raws: tuple[bytes, ...]) -> list[tuple[Signed[Commit], ...]]:  # noqa: ARG001
    """Where the commits of a group are kept, once they were opened and judged."""
    return []


@remember(4096)
def digest_of(message: GroupRoster) -> bytes:
    """The digest of a group's roster; it is hashed once for all that hold the same object."""
    return message.digest()
