"""Serve what a swarm is made of, by hash; fetch its manifest and initial parameters. Contract: protocols/swarm-1.md."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import trio

from p2pnet.errors import ConfigError, NetworkError, PeerError, WireError, remedy
from p2pnet.identity import PeerId, peer_id_text, verify
from p2pnet.net.host import Host, Stream
from p2pnet.node.download import PIECE_BYTES_MAX, PIECE_TIMEOUT_S, PROTOCOL, Download, file_sha256
from p2pnet.node.snapshots import Snapshots
from p2pnet.wire.codec import decode, encode
from p2pnet.wire.manifest import MANIFEST_BYTES_MAX, Get, Manifest, open_manifest
from p2pnet.wire.signing import Signed

log = logging.getLogger(__name__)

REQUEST_BYTES_MAX = 256
RETRY_S = 1.0
MANIFEST_NAME, INITIAL_NAME = "manifest.bin", "initial.safetensors"


class Content:
    """The files of one swarm in a state directory, and the stream handler that gives them to others."""

    def __init__(self, folder: Path, swarm: bytes) -> None:
        self.folder, self.swarm = folder, swarm
        self.manifest: Signed[Manifest] | None = None
        self.snapshots: Snapshots | None = None  # once the ledger is open: states that others may have

    @property
    def manifest_path(self) -> Path:
        """The signed manifest."""
        return self.folder / MANIFEST_NAME

    @property
    def initial_path(self) -> Path:
        """The initial parameters, safetensors."""
        return self.folder / INITIAL_NAME

    def load(self) -> Signed[Manifest] | None:
        """Read the manifest that is here already; raises ConfigError when it is damaged or another swarm's."""
        try:
            if self.manifest_path.stat().st_size > MANIFEST_BYTES_MAX:
                raise ConfigError(f"{self.manifest_path}: larger than any manifest; remove it and it is fetched again")
            raw = self.manifest_path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"{self.manifest_path}: cannot be read: {error.strerror}") from error
        try:
            self.manifest = open_manifest(raw, self.swarm, verify)
        except WireError as error:
            raise ConfigError(f"{self.manifest_path}: {error}; remove it and it is fetched again") from error
        return self.manifest

    def has_initial(self) -> bool:
        """Tell whether the initial parameters are here, whole."""
        if self.manifest is None or not self.initial_path.exists():
            return False
        return file_sha256(self.initial_path) == self.manifest.message.initial

    def describe_initial(self) -> str:
        """Say for a person what is wrong with the initial parameters' file."""
        how = "not the file that the manifest names" if self.initial_path.exists() else "missing"
        return f"{self.initial_path} is {how}"

    async def serve(self, stream: Stream) -> None:
        """Answer one request: a frame with the bytes, empty when they are not here."""
        request = decode((Get,), await stream.receive_frame(REQUEST_BYTES_MAX))
        if request.swarm != self.swarm:
            raise PeerError(stream.peer, "swarm-1/R4", "another swarm")
        length, data = min(request.length, PIECE_BYTES_MAX), b""
        if self.manifest is not None and request.digest == self.swarm:
            data = self.manifest.raw[request.offset : request.offset + length]
        elif self.manifest is not None and request.digest == self.manifest.message.initial:
            data = await trio.to_thread.run_sync(_read_piece, self.initial_path, request.offset, length)
        elif self.snapshots is not None and (state := self.snapshots.find(request.digest)) is not None:
            data = await trio.to_thread.run_sync(_read_piece, state, request.offset, length)
        with trio.fail_after(PIECE_TIMEOUT_S):  # who asks and does not read keeps neither the stream nor the bytes
            await stream.send_frame(data)

    async def fetch(
        self, host: Host, sources: Callable[[], Awaitable[Sequence[PeerId]]], progress: Callable[[str], None]
    ) -> Signed[Manifest]:
        """Fetch what is missing from whichever member gives it, however long that takes; cancel it to give up.

        sources: the members that are connected now, asked again before each try.
        """
        while self.manifest is None:
            for peer in await sources():
                if await self._fetch_manifest(host, peer):
                    break
            else:
                await trio.sleep(RETRY_S)
        progress(f"manifest of {self.manifest.message.name!r} fetched and verified")
        initial, size = self.manifest.message.initial, self.manifest.message.initial_bytes
        download = Download(self.swarm, initial, size, self.initial_path, "initial parameters", progress)
        while not await trio.to_thread.run_sync(self.has_initial):
            for peer in await sources():
                if await download.fetch(host, peer):
                    break
            else:
                await trio.sleep(RETRY_S)
        return self.manifest

    async def _fetch_manifest(self, host: Host, peer: PeerId) -> bool:
        try:
            raw = await self._fetch_bytes(host, peer, self.swarm, 0, MANIFEST_BYTES_MAX)
            self.manifest = open_manifest(raw, self.swarm, verify)
        except (NetworkError, PeerError, WireError) as error:
            log.info("manifest from %s: %s", peer_id_text(peer), error)
            return False
        await trio.to_thread.run_sync(write_atomically, self.manifest_path, raw)
        return True

    async def _fetch_bytes(self, host: Host, peer: PeerId, digest: bytes, start: int, bytes_max: int) -> bytes:
        data = bytearray()
        while len(data) < bytes_max:
            request = Get(self.swarm, digest, start + len(data), min(PIECE_BYTES_MAX, bytes_max - len(data)))
            piece = await host.request(peer, PROTOCOL, encode(request), PIECE_TIMEOUT_S, PIECE_BYTES_MAX)
            data += piece
            if len(piece) < request.length:
                break
        return bytes(data)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all; raises ConfigError."""
    temporary = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"{path}: cannot write it: {remedy(error)}") from error


def _read_piece(path: Path, offset: int, length: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(length)
    except (OSError, OverflowError):  # an offset beyond what any file has
        return b""
