"""msgpack and Ed25519 once more, written from their specifications, sharing nothing with p2pnet: to check vectors.

Slow and not constant in time: for tests only.
"""

from __future__ import annotations

import hashlib

# --- msgpack, of https://github.com/msgpack/msgpack/blob/master/spec.md: integers, bin, str and array, shortest form


def msgpack(value: object) -> bytes:
    """Encode integers, bytes, texts and lists of them."""
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, bytes):
        return _header(len(value), None, (0xC4, 0xC5, 0xC6)) + value
    if isinstance(value, str):
        text = value.encode()
        return _header(len(text), (0xA0, 32), (0xD9, 0xDA, 0xDB)) + text
    if isinstance(value, list):
        return _header(len(value), (0x90, 16), (None, 0xDC, 0xDD)) + b"".join(msgpack(item) for item in value)
    raise TypeError(type(value))


def _integer(value: int) -> bytes:
    if 0 <= value < 128 or -32 <= value < 0:
        return (value & 0xFF).to_bytes(1, "big")
    first, sign = (0xCC, 0) if value >= 0 else (0xD0, 1)
    for step, size in enumerate((1, 2, 4, 8)):
        if -(1 << (8 * size - 1)) <= value if sign else value < 1 << 8 * size:
            return bytes([first + step]) + value.to_bytes(size, "big", signed=bool(sign))
    raise ValueError(value)


def _header(length: int, short: tuple[int, int] | None, longer: tuple[int | None, int, int]) -> bytes:
    if short is not None and length < short[1]:
        return bytes([short[0] + length])
    for code, size in zip(longer, (1, 2, 4), strict=True):
        if code is not None and length < 1 << 8 * size:
            return bytes([code]) + length.to_bytes(size, "big")
    raise ValueError(length)


# --- Ed25519, of RFC 8032, section 5.1, in affine coordinates

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
Point = tuple[int, int]


def _x(y: int, sign: int) -> int | None:
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    root = pow(square, (P + 3) // 8, P)
    if root * root % P != square:
        root = root * pow(2, (P - 1) // 4, P) % P
    if root * root % P != square or (root == 0 and sign):
        return None
    return root if root % 2 == sign else P - root


def _add(one: Point, other: Point) -> Point:
    (x1, y1), (x2, y2) = one, other
    cross = D * x1 * x2 * y1 * y2 % P
    x = (x1 * y2 + x2 * y1) * pow(1 + cross, -1, P) % P
    y = (y1 * y2 + x1 * x2) * pow(1 - cross, -1, P) % P
    return x, y


def _times(scalar: int, point: Point) -> Point:
    total: Point = (0, 1)
    while scalar:
        if scalar & 1:
            total = _add(total, point)
        point, scalar = _add(point, point), scalar >> 1
    return total


def _base() -> Point:
    y = 4 * pow(5, -1, P) % P
    x = _x(y, 0)
    assert x is not None
    return x, y


def _to_bytes(point: Point) -> bytes:
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def _from_bytes(data: bytes) -> Point | None:
    number = int.from_bytes(data, "little")
    y, sign = number & (1 << 255) - 1, number >> 255
    x = _x(y, sign) if y < P else None
    return None if x is None else (x, y)


def _hash(*parts: bytes) -> int:
    return int.from_bytes(hashlib.sha512(b"".join(parts)).digest(), "little")


def _expand(seed: bytes) -> tuple[int, bytes]:
    digest = hashlib.sha512(seed).digest()
    return int.from_bytes(digest[:32], "little") & (1 << 254) - 8 | 1 << 254, digest[32:]


def public_key(seed: bytes) -> bytes:
    """Return the public key of a 32-byte secret key."""
    return _to_bytes(_times(_expand(seed)[0], _base()))


def sign(seed: bytes, data: bytes) -> bytes:
    """Return the 64-byte signature of the data."""
    scalar, prefix = _expand(seed)
    nonce = _hash(prefix, data) % ORDER
    r, key = _to_bytes(_times(nonce, _base())), public_key(seed)
    return r + ((nonce + _hash(r, key, data) * scalar) % ORDER).to_bytes(32, "little")


def verify(key: bytes, data: bytes, signature: bytes) -> bool:
    """Tell whether the signature is good (cofactorless; small-order keys are not refused here)."""
    a, r, s = _from_bytes(key), _from_bytes(signature[:32]), int.from_bytes(signature[32:], "little")
    if a is None or r is None or s >= ORDER or len(signature) != 64:
        return False
    return _times(s, _base()) == _add(r, _times(_hash(signature[:32], key, data) % ORDER, a))
