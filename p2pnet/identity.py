"""Who a peer is: an Ed25519 key, its libp2p peer id, its key file. Contract: protocols/identity-1.md."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from functools import lru_cache
from pathlib import Path
from typing import Final, NewType

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from p2pnet.errors import ConfigError, remedy

PeerId = NewType("PeerId", bytes)
"""The 32-byte Ed25519 public key: inside p2pnet a peer is these bytes and nothing else."""

PEER_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
SEED_BYTES: Final = 32
KEY_FILE_BYTES: Final = 68
PEER_TEXT_CHARS: Final = 52  # base58btc of 38 bytes that start with 00 24
REMEMBERED_BYTES_MAX: Final = 1024  # signatures over more are verified each time
SECRET_SALT: Final = b"p2pnet/identity/1"

_LIBP2P_PREFIX: Final = bytes.fromhex("002408011220")  # identity multihash of 36 bytes: PublicKey{Type=1, Data=key}
_KEY_FILE_PREFIX: Final = bytes.fromhex("08011240")  # PrivateKey{Type=1, Data=64 bytes}: seed || public key
_KEY_TYPES: Final = {0: "RSA", 1: "Ed25519", 2: "Secp256k1", 3: "ECDSA"}  # libp2p's KeyType
_FILE_BYTES_MAX: Final = 4096  # more than any libp2p private key; bounds what a wrong path makes us read

_FIELD_PRIME: Final = 2**255 - 19
_SMALL_ORDER_Y: Final = frozenset(
    {
        0,
        1,
        _FIELD_PRIME - 1,
        int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"),
        int.from_bytes(bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "little"),
    }
)


def _check_peer(key: bytes) -> PeerId:
    """Refuse keys under which anybody can sign (small order), or that have a second encoding."""
    if len(key) != PEER_BYTES:
        raise ValueError(f"a peer is {PEER_BYTES} bytes, not {len(key)}")
    y = int.from_bytes(key, "little") & ((1 << 255) - 1)
    if y >= _FIELD_PRIME or y in _SMALL_ORDER_Y:
        raise ValueError("not a usable Ed25519 public key: small order or not canonical")
    return PeerId(bytes(key))


def to_libp2p(peer: PeerId) -> bytes:
    """Return the 38 bytes that libp2p calls this peer: an identity multihash of its protobuf public key."""
    if len(peer) != PEER_BYTES:
        raise ValueError(f"a peer is {PEER_BYTES} bytes, not {len(peer)}")
    return _LIBP2P_PREFIX + peer


def from_libp2p(data: bytes) -> PeerId:
    """Return the peer behind libp2p's 38 bytes; `ValueError` for any other kind of key or length."""
    if len(data) != len(_LIBP2P_PREFIX) + PEER_BYTES or data[: len(_LIBP2P_PREFIX)] != _LIBP2P_PREFIX:
        raise ValueError("not an Ed25519 identity multihash of 38 bytes")
    return _check_peer(data[len(_LIBP2P_PREFIX) :])


def peer_id_text(peer: PeerId) -> str:
    """Return what people and multiaddrs call this peer: "12D3KooW...", 52 characters."""
    return base58.b58encode(to_libp2p(peer)).decode("ascii")


def parse_peer_id(text: str) -> PeerId:
    """Return the peer named by "12D3KooW..."; `ValueError` when it is not an Ed25519 identity multihash."""
    if len(text) != PEER_TEXT_CHARS or not text.isascii():
        raise ValueError(f"a peer id has {PEER_TEXT_CHARS} characters and starts with 12D3KooW: {text[:80]!r}")
    peer = from_libp2p(base58.b58decode(text.encode("ascii")))
    if peer_id_text(peer) != text:  # the library strips white space: one peer has one name
        raise ValueError(f"not base58: {text!r}")
    return peer


def verify(peer: PeerId, data: bytes, signature: bytes) -> bool:
    """Say whether `peer` signed `data` (RFC 8032, section 5.1.7, cofactorless); never raises on hostile bytes.

    What was checked lately is remembered: a vote comes alone and in bundles, a digest on a stream and in a proposal.
    """
    if len(signature) != SIGNATURE_BYTES:
        return False
    return (_verify_once if len(data) <= REMEMBERED_BYTES_MAX else _verify)(peer, data, signature)


def _verify(peer: PeerId, data: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(_check_peer(peer)).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


_verify_once = lru_cache(maxsize=2048)(_verify)  # under 3 MB


class Identity:
    """A peer's private key: it signs, derives secrets, and lives in libp2p's key file. Never shown by `repr`."""

    __slots__ = ("_key", "peer")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        """Wrap a private key; see `generate`, `from_seed` and `load_or_create`."""
        self._key = key
        self.peer: PeerId = PeerId(key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"Identity({peer_id_text(self.peer)})"

    @classmethod
    def generate(cls) -> Identity:
        """Make a new identity from the system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """Return the identity of a 32-byte private seed (RFC 8032's secret key)."""
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a seed is {SEED_BYTES} bytes, not {len(seed)}")
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature of `data`; the caller puts its domain tag first."""
        return self._key.sign(data)

    def secret(self, purpose: bytes) -> bytes:
        """Return 32 bytes that only this identity can derive: HKDF-SHA256 of the seed, `purpose` as info."""
        return HKDF(algorithm=SHA256(), length=32, salt=SECRET_SALT, info=purpose).derive(self._key.private_bytes_raw())

    def to_key_file(self) -> bytes:
        """Return the 68 bytes of libp2p's private key file, which the daemon's `-id` flag reads."""
        return _KEY_FILE_PREFIX + self._key.private_bytes_raw() + self.peer

    @classmethod
    def from_key_file(cls, data: bytes, source: str = "key file") -> Identity:
        """Read libp2p's private key file; `ConfigError` names `source` and what it holds instead."""
        if data.startswith(b"-----BEGIN"):
            raise ConfigError(f"{source}: a PEM or OpenSSH key; a libp2p Ed25519 private key file is needed")
        if len(data) < 2 or data[0] != _KEY_FILE_PREFIX[0]:
            raise ConfigError(f"{source}: not a libp2p private key file ({len(data)} bytes)")
        if data[1] != 1:
            kind = _KEY_TYPES.get(data[1], f"unknown type {data[1]}")
            raise ConfigError(f"{source}: holds a key of type {kind}; only Ed25519 is allowed")
        if len(data) != KEY_FILE_BYTES or data[:4] != _KEY_FILE_PREFIX:
            raise ConfigError(f"{source}: {len(data)} bytes where an Ed25519 key file has {KEY_FILE_BYTES}: damaged?")
        identity = cls.from_seed(data[4:36])
        if identity.peer != data[36:]:
            raise ConfigError(f"{source}: the public key in it does not belong to the private key: damaged?")
        return identity

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read the key file at `path`; `ConfigError` when it is missing, damaged, or readable by others."""
        try:
            return cls._load(Path(path))
        except FileNotFoundError as error:
            raise ConfigError(f"{path}: no such key file") from error

    @classmethod
    def load_or_create(cls, path: Path) -> Identity:
        """Read the key file at `path`, or make one; two processes that race get the same key."""
        path = Path(path)
        try:
            return cls._load(path)
        except FileNotFoundError:
            pass
        with contextlib.suppress(FileExistsError):  # somebody else was first: theirs counts
            cls.generate()._create(path)
        return cls.load(path)

    def save(self, path: Path) -> None:
        """Write the key file, whole or not at all, mode 0600; `ConfigError` when something is there already."""
        try:
            self._create(Path(path))
        except FileExistsError as error:
            raise ConfigError(f"{path}: exists, and a key is never overwritten") from error

    @classmethod
    def _load(cls, path: Path) -> Identity:
        try:
            # NOFOLLOW: whoever may plant a link must not choose our key. NONBLOCK: a FIFO must not hang us.
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise
        except OSError as error:
            what = "is a symbolic link; give the file itself" if path.is_symlink() else error.strerror
            raise ConfigError(f"{path}: cannot read the key file: {what}") from error
        try:
            _check_private(fd, path)
            return cls.from_key_file(os.read(fd, _FILE_BYTES_MAX), str(path))
        finally:
            os.close(fd)

    def _create(self, path: Path) -> None:
        """Write a private temporary file, then link it into place: the name appears once, with all its bytes."""
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{path.parent}: cannot make the directory: {remedy(error)}") from error
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                with os.fdopen(fd, "wb") as file:
                    os.fchmod(fd, 0o600)  # whatever the umask
                    file.write(self.to_key_file())
                    file.flush()
                    os.fsync(fd)
                os.link(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_directory(path.parent)
        except FileExistsError:
            raise
        except OSError as error:
            raise ConfigError(f"{path}: cannot write the key file: {remedy(error)}") from error


def _check_private(fd: int, path: Path) -> None:
    """Refuse what is not a file of our own that nobody else can touch: what was opened, whatever the path names now."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{path}: not a regular file")
    if status.st_uid != os.geteuid():
        raise ConfigError(
            f"{path}: belongs to user {status.st_uid}, we are {os.geteuid()}; "
            f"a key file must be our own (chown {os.geteuid()} {path})"
        )
    if mode := stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigError(f"{path}: others have access (mode {mode:03o}); 600 is needed (chmod 600 {path})")


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
