"""Fetch one file by its hash, piece by piece, from whichever member gives it. Contract: protocols/swarm-1.md."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from p2pnet.errors import ConfigError, NetworkError, PeerError, remedy
from p2pnet.identity import PeerId, peer_id_text
from p2pnet.net.host import Host
from p2pnet.wire.codec import encode
from p2pnet.wire.manifest import Get

log = logging.getLogger(__name__)

PROTOCOL = "/p2pnet/swarm/1"
PIECE_BYTES_MAX = 4 << 20
PIECE_TIMEOUT_S = 20.0


class Download:
    """A file on its way. What came lies beside its place, and is kept over failures and restarts.

    A file can come from several members, one after the other; when it then is not the right one, each of them is asked
    for the whole alone, so that the one that lied is found and not asked again.
    """

    def __init__(
        self,
        swarm: bytes,
        digest: bytes,
        size: int,
        path: Path,
        what: str,
        progress: Callable[[str], None],
        is_right: Callable[[Path], Awaitable[bool]] | None = None,
    ) -> None:
        """digest: 32 bytes, what it is asked by.   size: bytes.   path: where it is to lie.   what: for people.

        is_right: judges the whole file where it lies now; whether its SHA-256 is the digest, when this is left out.
        """
        self.path, self.size = path, size
        self._swarm, self._digest, self._what, self._progress = swarm, digest, what, progress
        self._is_right = is_right or self._has_digest
        self._partial = path.with_suffix(".partial")
        self._givers: set[PeerId] = set()  # of what is there
        self._resumed = False  # some of it was there before this process
        self._doubted: set[PeerId] = set()  # gave a part, perhaps the wrong one: such are asked for the whole alone
        self._liars: set[PeerId] = set()  # gave the whole, and it was wrong

    async def fetch(self, host: Host, peer: PeerId) -> bool:
        """Fetch what is missing from one member; tells whether the file is in its place. Raises ConfigError."""
        if peer in self._liars:
            return False
        try:
            self._partial.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not await self._fetch(host, peer):
                return False
            if not await self._is_right(self._partial):
                self._doubt()
                return False
            self._partial.replace(self.path)
        except (NetworkError, PeerError) as error:
            log.info("%s from %s: %s", self._what, peer_id_text(peer), error)
            return False
        except OSError as error:
            raise ConfigError(f"{self._partial}: cannot write it: {remedy(error)}") from error
        return True

    async def _fetch(self, host: Host, peer: PeerId) -> bool:
        if self._doubted and self._givers != {peer}:
            self._partial.unlink(missing_ok=True)
        size = self._partial.stat().st_size if self._partial.exists() else 0
        self._resumed = size > 0 and (self._resumed or not self._givers)
        self._givers = {*self._givers, peer} if size else {peer}
        with self._partial.open("ab") as file:
            while size < self.size:
                piece_bytes = min(PIECE_BYTES_MAX, self.size - size)
                request = encode(Get(self._swarm, self._digest, size, piece_bytes))
                piece = await host.request(peer, PROTOCOL, request, PIECE_TIMEOUT_S, piece_bytes)
                if len(piece) != piece_bytes:
                    return False
                file.write(piece)
                size += len(piece)
                self._progress(f"{self._what}: {size} of {self.size} bytes")
        return True

    async def _has_digest(self, path: Path) -> bool:
        return self._digest == await trio.to_thread.run_sync(file_sha256, path)

    def _doubt(self) -> None:
        log.warning("%s from %s have another hash", self._what, ", ".join(map(peer_id_text, self._givers)))
        self._doubted |= self._givers
        if len(self._givers) == 1 and not self._resumed:
            self._liars |= self._givers
        self._partial.unlink()


def file_sha256(path: Path) -> bytes:
    """SHA-256 of a file, 32 bytes."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
