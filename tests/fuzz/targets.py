"""What is fuzzed: everything that reads bytes from others or from a disk, with the one kind of error each may raise.

Hypothesis runs them in `test_targets.py`, a coverage-guided fuzzer in `coverage_guided.py`: the same table, so that
nothing is forgotten in one of the two. A target returns when the bytes were read or refused as they should be; whatever
it raises is a finding.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import nn

from p2pnet.config import BootstrapConfig, NodeConfig, SwarmConfig
from p2pnet.errors import ConfigError, P2pnetError, WireError
from p2pnet.hours import Hours
from p2pnet.identity import Identity, PeerId, from_libp2p, parse_peer_id, peer_id_text, to_libp2p, verify
from p2pnet.ledger.log import Ledger
from p2pnet.ledger.reader import LedgerReader
from p2pnet.net import p2pd
from p2pnet.net.control import addr_to_bytes, addr_to_text
from p2pnet.net.framing import FRAME_BYTES_MAX, decode_length, encode_length
from p2pnet.net.host import split_addr
from p2pnet.node.commands import POINTER_NAME, CommandSocket, ask_node
from p2pnet.node.content import Content
from p2pnet.numerics import native
from p2pnet.numerics.codec import as_bytes, check
from p2pnet.numerics.codec import decode as decode_chunks
from p2pnet.numerics.codec import pack as pack_chunks
from p2pnet.numerics.dense import restore, shorten
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.numerics.reduce import reduce_part
from p2pnet.schema import load_file
from p2pnet.train.learner import Learner
from p2pnet.train.storage import parse_tensors, read_tensors
from p2pnet.wire import branch, bundles, evidence, exchange, gossip, history, manifest, membership, merkle
from p2pnet.wire import round as rounds
from p2pnet.wire.branch import open_spoken
from p2pnet.wire.codec import Message, decode, encode, pack
from p2pnet.wire.manifest import Link, open_manifest
from p2pnet.wire.round import decode_value
from p2pnet.wire.signing import Signed, open_signed
from tests.fuzz.material import vector_bytes
from tests.ledger.writer import GENESIS, SWARM, make_entry, open_ledger, part_bytes
from tests.vectors import vectors

PAGES = {
    "branch": (branch.MESSAGES, "branch-1"),
    "bundles": (bundles.MESSAGES, "bundles-1"),
    "evidence": (evidence.MESSAGES, "evidence-1"),
    "exchange": (exchange.MESSAGES, "exchange-1"),
    "gossip": (gossip.MESSAGES, "gossip-1"),
    "history": (history.MESSAGES, "history-1"),
    "membership": (membership.MESSAGES, "membership-1"),
    "round": (rounds.MESSAGES, "round-1"),
    "swarm": (manifest.MESSAGES, "swarm-1"),
}
FORMATS = tuple(ChunkFormat(k, bits) for bits in (2, 1, 3) for k in (8, 13, 64, 1024, 1100))
SLICES = ((ChunkFormat(8, 2), ChunkFormat(13, 2)), (ChunkFormat(8, 1), ChunkFormat(13, 1)))  # of members, of the result
LEDGER_ROUNDS = 12
PEER = b"12D3KooWGRYZDHBembyGJQqQ6WgLqJWYNjnECJwGBnCg8vbCeo8F"
LINK = b"p2pnet://" + b"ab" * 32 + b"?bootstrap=/ip4/1.2.3.4/tcp/1/p2p/" + PEER
ADDRESSES = (
    b"/ip4/127.0.0.1/tcp/4001/p2p/" + PEER, b"\x04\x7f\0\0\1\x06\x0f\xa1", b"/ip6/::1/udp/1/quic", b"/dns4/a/tcp/1",
    b"/unix/a/b", b"/onion3/x:1", b"\x90\x03\x05/a/bc",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """One reader of foreign bytes."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], tuple[bytes, ...]]


def trust(_peer: bytes, _data: bytes, _signature: bytes) -> bool:
    """Take any signature for right, so that what lies behind it is reached."""
    return True


# Messages -----------------------------------------------------------------------------------------------------------


def read_message(classes: tuple[type[Message], ...], data: bytes) -> None:
    """A message has one encoding, or is refused."""
    with suppress(WireError):
        message = decode(classes, data)
        assert encode(message) == data
        hash(message)


def read_signed(classes: tuple[type[Message], ...], data: bytes) -> None:
    """A signed message has one encoding, or is refused."""
    with suppress(WireError):
        signed = open_signed(classes, data, trust)
        assert signed.raw == data
        assert encode(signed.message) == signed.body


def read_round(data: bytes) -> None:
    """What the handler of the streams of rounds does with a frame before the machine sees it."""
    with suppress(WireError):
        opened = open_spoken(data, trust)
        assert (opened.raw if isinstance(opened, Signed) else encode(opened)) == data
    with suppress(WireError):
        assert encode(decode_value(data)) == data


def read_certificate(data: bytes) -> None:
    """A branch's certificate that decodes has an id, or another number of entries in one of its lists."""
    with suppress(WireError):
        certificate = decode((branch.BranchCertificate,), data)
        with suppress(ValueError):
            assert len(certificate.branch_id()) == 32


def read_branches(data: bytes) -> None:
    """A branch on the disk is gone on with, or it is not; nothing else comes of what its record holds."""
    from p2pnet.node.branches import FOLDER_NAME, RECORD_NAME, Branches

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / FOLDER_NAME / "0-00"
        place.mkdir(parents=True)
        (place / RECORD_NAME).write_bytes(data)
        for kept in Branches(Path(folder)).load():
            assert kept.fork.line == kept.id.hex()


def read_evidence(data: bytes) -> None:
    """Evidence is refused with a rule, or says who lied; the arithmetic behind it takes whatever is shown."""
    from p2pnet.core.evidence import Ground, examine
    from p2pnet.node.proving import is_lie
    from tests.core import make_vectors as made

    ground = Ground(made.SWARM, made.CHUNKS, made.ROUND_SAMPLES)
    with suppress(WireError):
        _, claim = examine(data, ground, trust)
        if claim is not None:
            is_lie(claim, (ChunkFormat(made.K), ChunkFormat(made.K_RESULT)))


def read_manifest(data: bytes) -> None:
    """What a joiner does with a manifest, and what it says of it."""
    from p2pnet.manifests import codec_sizes
    from p2pnet.train.options import read_inner, read_task

    with suppress(WireError):
        signed = open_manifest(data, None, trust)
        assert signed.raw == data
        codec_sizes(signed.message)
        with suppress(ConfigError):
            read_task(signed.message.task, signed.message.task_options)
        with suppress(ConfigError):
            read_inner(signed.message.inner, signed.message.inner_options)


def read_proofs(data: bytes) -> None:
    """Verifiers of trees answer yes or no, whatever they are given: sizes and hashes out of one string."""
    numbers = [int.from_bytes(data[at : at + 6], "little", signed=True) for at in range(0, 24, 6)]
    hashes = tuple(data[at : at + 32] for at in range(24, len(data), 32))
    size, start, stop, old = numbers
    root = hashes[0] if hashes else b""
    half = len(hashes) // 2
    merkle.verify_inclusion(root, size, start, root, hashes[1:])
    merkle.verify_range(root, size, start, stop, hashes[:half], hashes[half:])
    merkle.verify_consistency(root, old, root, size, hashes)


def read_link(data: bytes) -> None:
    """A link is read the same way again, or refused with words."""
    with suppress(ConfigError):
        link = Link.parse(data.decode("utf-8", "surrogateescape"))
        assert Link.parse(str(link)) == link


def read_frame(data: bytes) -> None:
    """The prefix of a frame."""
    with suppress(WireError):
        found = decode_length(data)
        if found is not None:
            assert data.startswith(encode_length(found[0]))
            assert found[0] <= FRAME_BYTES_MAX


# Payloads -----------------------------------------------------------------------------------------------------------


def read_chunks(data: bytes) -> None:
    """A payload has one encoding, or is refused."""
    fmt = FORMATS[data[0] % len(FORMATS)] if data else FORMATS[0]
    data = data[1:]
    refused = []
    for reading in (check, decode_chunks):
        try:
            reading(data, fmt)
        except WireError as error:
            refused.append(str(error))
    assert len(set(refused)) < 2
    assert len(refused) in {0, 2}
    with suppress(WireError):
        sparse = decode_chunks(data, fmt)
        codes, indices = sparse.codes.long(), sparse.indices.long()
        if len(indices):
            assert as_bytes(pack_chunks(indices, codes, sparse.negative, fmt)) == data


def read_dense(data: bytes) -> None:
    """A frame says as many chunks as were expected, or is refused."""
    fmt, chunks = FORMATS[data[0] % len(FORMATS)] if data else FORMATS[0], 1 + len(data) % 3
    with suppress(WireError):
        payload = restore(data[1:], fmt, chunks)
        assert len(payload) == fmt.payload_bytes(chunks)
        assert restore(shorten(payload, fmt), fmt, chunks) == payload


def dense_seeds() -> tuple[bytes, ...]:
    """Frames of the vectors, for every format."""
    found = [bytes.fromhex(param.values[0]["dense"]) for param in vectors("dense-1", "dense")]
    return tuple(bytes([which]) + data for data in found for which in range(len(FORMATS)))


def reduce_slices(data: bytes) -> None:
    """Slices of three members, one of them honest: a result that decodes, or the word that one of them is malformed."""
    (fmt_in, fmt_out), chunks = SLICES[data[0] % len(SLICES)] if data else SLICES[0], 2
    data = data[1:]
    size = fmt_in.payload_bytes(chunks)
    honest = as_bytes(
        pack_chunks(
            torch.arange(8).repeat(chunks, 1) * 500,
            torch.full((chunks, 8), 77),
            torch.zeros(chunks, 8, dtype=torch.bool),
            fmt_in,
        )
    )
    slices = [honest, data[:size], data[size : 2 * size]]
    with suppress(WireError):
        done = reduce_part(slices, [1, 8, 3], 20, fmt_in, fmt_out)
        decode_chunks(done.output, fmt_out, chunks)
        assert all(0 <= clip <= 256 for clip in done.clips)


def chunk_seeds() -> tuple[bytes, ...]:
    """Payloads of the vectors, for every format."""
    found = [data for data in vector_bytes("codec-1", "reduce-1") if len(data) <= 4096]
    return tuple(bytes([which]) + data for data in found for which in range(len(FORMATS)))


def slice_seeds() -> tuple[bytes, ...]:
    """Two slices of two chunks each, one after the other, for both numbers of bits."""
    seeds: list[bytes] = []
    for which, (fmt, _) in enumerate(SLICES):
        found = [data for data in vector_bytes("codec-1", "reduce-1") if len(data) == fmt.chunk_bytes]
        seeds += [bytes([which]) + one * 2 + other * 2 for one in found for other in found[:4]]
    return tuple(seeds)


# The daemon, addresses, keys ----------------------------------------------------------------------------------------


def read_daemon(data: bytes) -> None:
    """What comes over the control socket."""
    for parse in (p2pd.parse_response, p2pd.parse_stream_info, p2pd.parse_dht):
        with suppress(p2pd.MalformedError):
            parse(data)


def daemon_seeds() -> tuple[bytes, ...]:
    """Requests: a response has the same fields, and reading one begins with them."""
    peer = PeerId(bytes(32))
    return p2pd.connect(peer, [b"\4\1\2\3\4\6\0\1"], 5), p2pd.find_peer(peer, 5), p2pd.identify()


def read_address(data: bytes) -> None:
    """Addresses in binary and in text, with peer and without."""
    with suppress(ValueError):
        addr_to_bytes(addr_to_text(data))
    text = data.decode("utf-8", "surrogateescape")
    with suppress(ValueError):
        addr_to_bytes(text)
    with suppress(ValueError):
        split_addr(text)


def read_key(data: bytes) -> None:
    """Key files, libp2p ids, their text, signatures."""
    with suppress(ConfigError):
        assert Identity.from_key_file(data).to_key_file() == data
    with suppress(ValueError):
        assert to_libp2p(from_libp2p(data)) == data
    with suppress(ValueError):
        text = data.decode("utf-8", "surrogateescape")
        assert peer_id_text(parse_peer_id(text)) == text
    verify(data[:32], data[96:], data[32:96])  # type: ignore[arg-type]


# Files --------------------------------------------------------------------------------------------------------------


@contextmanager
def file_of(data: bytes, name: str) -> Iterator[Path]:
    """These bytes as a file in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="p2pnet-fuzz-", dir=_memory()) as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        yield path


@cache
def _memory() -> str | None:
    """Where files cost no disk, if there is such a place."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def read_config(data: bytes) -> None:
    """Settings of all three kinds: what is wrong is said in one message that names the file."""
    with file_of(data, "some.toml") as path:
        for kind in (SwarmConfig, NodeConfig, BootstrapConfig):
            try:
                load_file(kind, path)
            except ConfigError as error:
                if "some.toml" not in str(error):
                    raise


def config_seeds() -> tuple[bytes, ...]:
    """Settings with every table and every kind of value."""
    swarm = b"""
        [swarm]
        name = "a"
        founders = ["12D3KooWGRYZDHBembyGJQqQ6WgLqJWYNjnECJwGBnCg8vbCeo8F"]
        [task]
        kind = "bytes-lm"
        layers = 2
        text = "~/x"
        [training]
        h_steps = 5
        window_s = 1.5
        [training.inner]
        kind = "adamw"
        lr = 1e-3
        [codec]
        k = 64
        [outer]
        alpha = 1.5
        [policy]
        grace_s = 2.0
        """
    node = b"""
        state_dir = "~/p2p"
        listen = ["/ip4/0.0.0.0/tcp/4001", "/ip6/::1/udp/0/quic"]
        bootstrap = ["/dns4/a.b/tcp/1"]
        device = "cpu"
        max_up_bps = 5000000
        hours = "22-07"
        exit_when_unreachable = true
        """
    bootstrap = b'key = "k"\nannounce = ["/ip4/1.2.3.4/tcp/4001"]\nmetrics_host = "::1"\ndate = 1979-05-27T07:32:00Z\n'
    custom = b'[swarm]\nname = "a"\n[task]\nkind = "custom"\ndescription = "d"\n'
    found = [b'state_dir = "~nobody-of-this-name/x"\n', b"a = " + b"[" * 5000, b"metrics_port = " + b"9" * 5000]
    return swarm, node, bootstrap, custom, *found


def a_learner() -> Learner:
    """A learner of a model of two tensors."""
    model = nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    return Learner(model, k=8, k_result=16, value_bits=1, level_bias=32, alpha_ppm=1_000_000, beta_ppm=950_000)


def read_safetensors(data: bytes) -> None:
    """Tensors from a file or from bytes."""
    with suppress(ConfigError):
        parse_tensors(data, "tensors")
    with file_of(data, "some.safetensors") as path, suppress(ConfigError):
        read_tensors(path)


def read_learner(data: bytes) -> None:
    """A learner's file, and the initial parameters: all of it is taken over, or nothing changes."""
    learner = a_learner()
    before = learner.state_sha256(), learner.pending
    with file_of(data, "learner.safetensors") as path:
        try:
            learner.load(path)
        except ConfigError as error:
            if "learner.safetensors" not in str(error):
                raise
            assert (learner.state_sha256(), learner.pending) == before
    learner = a_learner()
    with suppress(ConfigError):
        learner.load_initial(data)


@cache
def learner_seeds() -> tuple[bytes, ...]:
    """Files as they are saved, with a pending update and without, and the initial parameters."""
    learner = a_learner()
    seeds = [learner.initial_bytes()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "learner.safetensors"
        learner.save(path, {"round": "3", "samples": "8"})
        seeds.append(path.read_bytes())
        learner.encode(1, 1)
        learner.save(path, {"round": "4", "samples": "8"})
        seeds.append(path.read_bytes())
    header = b'{"a":{"dtype":"F32","shape":[1073741824,1073741824],"data_offsets":[0,4]}}'
    seeds.append(len(header).to_bytes(8, "little") + header + bytes(4))
    for dtype in ("F8_E8M0", "F4", "F6_E2M3", "C64", "BOOL", "U64", "BF16", "F8_E4M3"):
        header = b'{"a":{"dtype":"%s","shape":[8],"data_offsets":[0,8]}}' % dtype.encode()
        seeds.append(len(header).to_bytes(8, "little") + header + bytes(8))
    return tuple(seeds)


@cache
def ledger_seed() -> bytes:
    """A ledger of some rounds, whole, in one file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        with open_ledger(path) as ledger:
            for _ in range(LEDGER_ROUNDS):
                entry = make_entry(ledger.lineage(), len(ledger))
                ledger.sign_once(entry.round, b"slot %d" % entry.round, b"raw")
                ledger.append(entry, part_bytes(entry))
            ledger._rows("PRAGMA wal_checkpoint(TRUNCATE)")
        return path.read_bytes()


@cache
def true_entries() -> tuple[object, ...]:
    """What the ledger holds when nobody has damaged it."""
    with file_of(ledger_seed(), "ledger.db") as path, LedgerReader(path) as reader:
        return tuple(reader.entries(0, 1000))


def read_ledger(data: bytes) -> None:
    """A damaged ledger works or says so; it never shows another history as its own."""
    with file_of(data, "ledger.db") as path, suppress(P2pnetError), LedgerReader(path) as reader:
        len(reader), reader.swarm(), reader.genesis(), reader.entries(0, 1000)
    with file_of(data, "ledger.db") as path, suppress(P2pnetError), Ledger(path, SWARM, GENESIS) as ledger:
        lineage = ledger.lineage()
        entries = ledger.entries(0, 1000)
        for entry in entries:
            ledger.result(entry.round)
            ledger.slots_of_round(entry.round)
            ledger.held(entry.round)
        ledger.tree().root()
        ledger.last()
        if len(entries) == len(ledger) > 0:
            assert entries[-1].lineage == lineage
        entry = make_entry(lineage, len(ledger))
        ledger.append(entry, part_bytes(entry))


def read_status_file(data: bytes) -> None:
    """The pointer to a running node, found damaged."""
    with file_of(data, POINTER_NAME) as path, suppress(P2pnetError):
        ask_node(path.parent, "status")


def read_command(data: bytes) -> None:
    """A line on the socket of a running node."""
    answered = CommandSocket(Path("/nowhere"), {"status": dict})._answer(data)
    assert answered == {} or "error" in answered


def read_hours(data: bytes) -> None:
    """Hours of the day are read the same way again, or refused."""
    with suppress(ValueError):
        hours = Hours.parse(data.decode("utf-8", "surrogateescape"))
        assert Hours.parse(str(hours)) == hours


def read_content(data: bytes) -> None:
    """A manifest on disk, damaged."""
    with file_of(data, "manifest.bin") as path, suppress(ConfigError):
        Content(path.parent, b"s" * 32).load()


def _page(name: str) -> list[Target]:
    classes, page = PAGES[name]
    return [
        Target(f"{name}-message", lambda data: read_message(classes, data), lambda: vector_bytes(page, "wire-1")),
        Target(f"{name}-signed", lambda data: read_signed(classes, data), lambda: vector_bytes(page, "wire-1")),
    ]


def branch_seeds() -> tuple[bytes, ...]:
    """Records of branches, with and without an update."""
    certificate = encode(
        branch.BranchCertificate(b"s" * 32, 3, b"l" * 32, (b"p" * 32,), (b"h",), (b"n" * 8,), (b"g" * 64,))
    )
    whole = [certificate, [7, b""], [b"r" * 32, 8, 1, 1, 1000, 1000], b"payload"]
    return pack(whole), pack([certificate, [], [], b""]), pack([certificate, [b""], [8], b""]), pack([])


def status_seeds() -> tuple[bytes, ...]:
    """Pointers to nodes."""
    found = [json.dumps({"pid": 1, "socket": path}).encode() for path in ("/nowhere/s", "\0abstract", "x" * 200, "")]
    found += [
        b'{"pid": 1e999, "socket": "/x"}',
        b'{"pid": 1, "socket": "\\ud800"}',
        b'{"pid": 1, "socket": "/a\\u0000b"}',
    ]
    return (*found, b"[]", b'{"socket": null}', b'"text"', b"[" * 100_000, b'{"socket": "a\\u0000b"}')


TARGETS: tuple[Target, ...] = (
    *(target for name in PAGES for target in _page(name)),
    Target("round-frame", read_round, lambda: vector_bytes("round-1", "groups-1", "branch-1")),
    Target("certificate", read_certificate, lambda: vector_bytes("branch-1")),
    Target("branches", read_branches, branch_seeds),
    Target("evidence", read_evidence, lambda: vector_bytes("evidence-1")),
    Target("manifest", read_manifest, lambda: vector_bytes("swarm-1")),
    Target("proofs", read_proofs, lambda: vector_bytes("merkle-1")),
    Target("link", read_link, lambda: (LINK, b"p2pnet://[")),
    Target("frame", read_frame, lambda: vector_bytes("frame-1")),
    Target("chunks", read_chunks, chunk_seeds),
    Target("slices", reduce_slices, slice_seeds),
    *([Target("dense", read_dense, dense_seeds)] if native.missing() is None else []),
    Target("daemon", read_daemon, daemon_seeds),
    Target("address", read_address, lambda: ADDRESSES),
    Target("key", read_key, lambda: vector_bytes("identity-1")),
    Target("config", read_config, config_seeds),
    Target("safetensors", read_safetensors, learner_seeds),
    Target("learner", read_learner, learner_seeds),
    Target("ledger", read_ledger, lambda: (ledger_seed(),)),
    Target("status", read_status_file, status_seeds),
    Target("command", read_command, lambda: (b'{"command": "status"}\n', b'{"command": []}', b"[" * 2000)),
    Target("hours", read_hours, lambda: (b"22-07", b"21:30-6:15", b"0-24")),
    Target("content", read_content, lambda: vector_bytes("swarm-1")),
)  # fmt: skip
