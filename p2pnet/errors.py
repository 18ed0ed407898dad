"""Errors by whose fault it is: the operator's, the remote's, the network's. Our own are `ValueError`."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from p2pnet.identity import PeerId


class P2pnetError(Exception):
    """Whatever p2pnet raises on purpose, save for our own mistakes (`ValueError`)."""


class ConfigError(P2pnetError):
    """The operator's: the message says which key or file, what was found there and what is allowed."""


class PeerError(P2pnetError):
    """The remote's: it broke a rule of a protocol page. Drop what it sent, lower its standing."""

    def __init__(self, peer: PeerId, rule: str, detail: str = "") -> None:
        """peer: 32-byte Ed25519 key.   rule: its id on the page, e.g. "round-1/R3".   detail: for people."""
        from p2pnet.identity import peer_id_text  # here, since identity itself raises ConfigError

        super().__init__(f"peer {peer_id_text(peer)} broke {rule}" + (f": {detail}" if detail else ""))
        self.peer, self.rule, self.detail = peer, rule, detail


class NetworkError(P2pnetError):
    """The network's: nobody answered in time, a stream broke, the daemon is gone. Trying again may help."""


class BehindError(P2pnetError):
    """Away for so long that no member has the results since: this peer joins again, from a later state.

    `p2pnet.join` with the same state_dir does that; identity, error feedback and optimizer state stay.
    """


class WireError(ValueError):
    """Bytes that are not a valid message; who knows the sender turns it into `PeerError`."""

    def __init__(self, rule: str, detail: str) -> None:
        """rule: its id on the page, e.g. "merkle-1/R2".   detail: for people."""
        super().__init__(f"{rule}: {detail}")
        self.rule, self.detail = rule, detail


class NotFiniteError(P2pnetError):
    """NaN or infinity in the local model: the node skips the round and never sends it."""


_REMEDIES: Final = {
    errno.ENOSPC: "the disk is full; free some space and start again, nothing that was decided is lost",
    errno.EDQUOT: "your share of the disk is full; free some space and start again, nothing that was decided is lost",
    errno.EROFS: "the disk is read-only; give a directory on another one with --state-dir",
    errno.ENAMETOOLONG: "a name as long as that is not possible here; give a shorter path",
    errno.EMFILE: "too many open files; allow more, for instance with `ulimit -n 4096`",
    errno.ENFILE: "too many open files on this machine; end other programs",
}


def remedy(error: OSError) -> str:
    """Say what the system refused, and what to do about it where that is known; the file is for the caller to name."""
    return _REMEDIES.get(error.errno or 0) or error.strerror or str(error)


def as_config_error(error: BaseException) -> ConfigError | None:
    """Return what to tell the operator when the machine has run out of something, wherever that showed; else None."""
    if not isinstance(error, OSError) or error.errno not in _REMEDIES:
        return None
    return ConfigError(f"{error.filename}: {remedy(error)}" if error.filename else remedy(error))
