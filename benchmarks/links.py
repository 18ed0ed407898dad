"""Exchange over links of 100 Mbit/s, a network namespace for each peer: beside hivemind's, and beside training.

python benchmarks/links.py [exchange] [large] [training]     all three without a word; needs root

exchange: 4 and 8 peers, 100 MB of fp32, as allreduce.py measures it on loopback; both sides on the same links.
large: 1 GB; how much of its link the slowest peer used between the roster and the last part.
training: rounds of 30 s, with and without overlap; how much of the time the loop stood still in `step`. The training is
a sleep: a device computes, the CPU is free. All peers share the machine's cores for what an exchange costs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, from anywhere

from benchmarks.allreduce import compare, describe, measure, open_peers, rival_python, sides_of, take_round
from benchmarks.lab import Place, is_possible, open_lab

RESULTS: Final = Path(__file__).resolve().parent / "results" / "links.json"
MBIT: Final = 100.0
EXCHANGE_PEERS: Final = (4, 8)
EXCHANGE_MB: Final = 100.0
LARGE_PEERS, LARGE_MB, LARGE_ROUNDS = 4, 1000.0, 5
TRAINING_PEERS, TRAINING_ROUNDS = 4, 6
TRAINING_S: Final = 30.0
WARM_UP: Final = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=("exchange", "large", "training"), default=[])
    parser.add_argument("--rounds", type=int, default=5, help="of an exchange that are counted (default 5)")
    options = parser.parse_args()
    if not is_possible():
        raise SystemExit("links.py: network namespaces cannot be made here: root and iproute2 are needed")
    wanted = options.what or ["exchange", "large", "training"]
    record: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    record |= {
        "date": datetime.now(tz=UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}",
        "mbit": MBIT,
    }
    if "exchange" in wanted:
        record["exchange"] = [exchange(peers, options.rounds) for peers in EXCHANGE_PEERS]
    if "large" in wanted:
        record["large"] = large()
    if "training" in wanted:
        record["training"] = [training(overlap) for overlap in (False, True)]
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written to {RESULTS}")


@contextmanager
def links(peers: int) -> Iterator[list[Place]]:
    """Places for the bootstrap peer, whose link has no limit, and for so many peers."""
    with open_lab(peers) as lab:
        for number in range(peers):
            lab.throttle(number, MBIT)
        yield [lab.bootstrap, *lab.places]


def exchange(peers: int, rounds: int) -> dict[str, Any]:
    """Both sides in turn, on the same links."""
    with links(peers) as places:
        case = measure(peers, EXCHANGE_MB, rounds, rival_python(), places)
    print(describe(case), flush=True)
    return case | {"compared": compare(case)}


def large() -> dict[str, Any]:
    """How much of its link the slowest peer uses, from the roster to its last part."""
    shares, times = [], []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        places = stack.enter_context(links(LARGE_PEERS))
        group = stack.enter_context(open_peers(folder, LARGE_PEERS, sides_of(LARGE_MB), places))
        for number in range(WARM_UP + LARGE_ROUNDS):
            before = [place.sent_bytes() for place in places[1:]]
            one = take_round(group, {"profile": 0}, f"p2pnet, {LARGE_PEERS} peers, {LARGE_MB:.0f} MB")
            if number >= WARM_UP:
                sent = [place.sent_bytes() - start for place, start in zip(places[1:], before, strict=True)]
                reached = [answer["reached"] for answer in one["answers"]]
                slowest = max(reached, key=lambda its: its["gathered"] - its["roster"])
                took_s = slowest["gathered"] - slowest["roster"]
                shares.append(8e-6 * max(sent) / MBIT / took_s)
                times.append({"exchange_s": took_s, "round_s": one["last_s"], "sent_mb": max(sent) / 1e6})
    found = {name: statistics.median(each[name] for each in times) for name in times[0]}
    result = {"peers": LARGE_PEERS, "megabytes": LARGE_MB, "link_share": statistics.median(shares), **found}
    print(
        f"{LARGE_PEERS} peers, {LARGE_MB:.0f} MB: {result['link_share']:.0%} of the link in the "
        f"{result['exchange_s']:.2f} s from roster to last part, {result['sent_mb']:.1f} MB sent; "
        f"{result['round_s']:.2f} s in all",
        flush=True,
    )
    return result


def training(overlap: bool) -> dict[str, Any]:
    """How much of rounds of 30 s the loop stands still."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        places = stack.enter_context(links(TRAINING_PEERS))
        sides = sides_of(EXCHANGE_MB)
        group = stack.enter_context(open_peers(folder, TRAINING_PEERS, sides, places, overlap))
        for peer in group:
            peer.tell({"do": "train", "seconds": TRAINING_S, "rounds": WARM_UP + TRAINING_ROUNDS})
        answers = [peer.hear() for peer in group]
    still_s = [still for answer in answers for still in answer["still_s"][WARM_UP:]]
    share = 1 - statistics.mean(still_s) / (statistics.mean(still_s) + TRAINING_S)
    credited = min(answer["credited"] for answer in answers)
    result = {
        "overlap": overlap, "round_s": TRAINING_S, "peers": TRAINING_PEERS, "megabytes": EXCHANGE_MB,
        "still_s": statistics.median(still_s), "still_s_max": max(still_s), "computing": share, "credited": credited,
    }  # fmt: skip
    print(
        f"rounds of {TRAINING_S:.0f} s, {'with' if overlap else 'without'} overlap: the loop stands still for "
        f"{result['still_s']:.2f} s (at most {result['still_s_max']:.2f}), {share:.2%} of the time computing; "
        f"{credited} rounds credited to everybody",
        flush=True,
    )
    return result


if __name__ == "__main__":
    main()
