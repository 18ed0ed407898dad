"""Size and speed of the chunk codec, beside torch.topk, a copy and hivemind's codecs; prints tables, writes JSON.

python benchmarks/codec.py [--runs 7] [--chunks 6400] [--no-hivemind]

Speed is in GB/s of the fp32 values that a payload stands for, the median of the runs. `encode` is all that a peer
does before it sends and what that costs it afterwards: error feedback a = beta * e + change (`feed`), choice,
levels and packing, and the residual (what the end of a round takes longer with a payload of one's own than
without). `decode` checks a payload and unpacks it; `accumulate` unpacks a result that was checked and moves the
parameters by it, `end` does both, as a round ends; `reduce` is for each input of eight, result included. Where
there is a CUDA device the same is measured there. hivemind runs in a venv of its own, as in allreduce.py.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, from anywhere

from benchmarks.allreduce import rival_python
from p2pnet.numerics import native
from p2pnet.numerics.codec import check, encode, value_table
from p2pnet.numerics.feedback import PPM, add_change
from p2pnet.numerics.formats import CHUNK_VALUES, ChunkFormat
from p2pnet.numerics.levels import LEVEL_BIAS_DEFAULT
from p2pnet.numerics.outer import apply_result, step_table, take_over
from p2pnet.numerics.reduce import reduce_leaf

RESULTS: Final = Path(__file__).resolve().parent / "results" / "codec.json"
RIVAL: Final = Path(__file__).with_name("codec_rival.py")
FORMATS: Final = ((16, 2), (64, 1), (64, 2), (64, 3), (128, 1), (256, 2), (512, 1), (512, 2), (1024, 2), (1536, 1))
SIZES: Final = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
INPUTS: Final = 8  # members that a part is reduced from
FP32: Final = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--chunks", type=int, default=6400, help="of 4096 values; 6400 are 105 MB (default)")
    parser.add_argument("--no-hivemind", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if (why := native.missing()) is not None:
        print(f"no CPU library: {why}")
    record: dict[str, Any] = {
        "date": datetime.now(tz=UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "values": options.chunks * CHUNK_VALUES,
        "runs": options.runs,
        "native": why or "used",
        "sizes": sizes(),
    }
    threads = torch.get_num_threads()
    record["cpu, 1 thread"] = speeds(torch.device("cpu"), 1, options.chunks, options.runs)
    if threads > 1:
        record[f"cpu, {threads} threads"] = speeds(torch.device("cpu"), threads, options.chunks, options.runs)
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        record[name] = speeds(torch.device("cuda"), threads, options.chunks, options.runs)
    else:
        print("no CUDA device here: nothing is measured on one")
    if not options.no_hivemind:
        record["hivemind, 1 thread"] = rival(options.chunks, options.runs)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written to {options.out}")


def sizes() -> list[dict[str, Any]]:
    """Bytes of a chunk and what that is to fp32 and bf16, for each number of bits; index bits against their bound."""
    rows = []
    print("   k  " + "".join(f"{bits} bit: bytes  to fp32  to bf16   " for bits in (1, 2, 3)) + "index bits  bound")
    for k in SIZES:
        formats = [ChunkFormat(k, bits) for bits in (1, 2, 3)]
        coded = 8 * (formats[0].low_bytes + formats[0].upper_bytes) / k
        bound = math.log2(math.comb(CHUNK_VALUES, k)) / k
        each = [
            (its.chunk_bytes, FP32 * CHUNK_VALUES / its.chunk_bytes, 2 * CHUNK_VALUES / its.chunk_bytes)
            for its in formats
        ]
        print(
            f"{k:4d}  "
            + "".join(f"{size:12d} {fp32:8.1f} {bf16:8.1f}   " for size, fp32, bf16 in each)
            + f"{coded:10.3f} {bound:6.3f}"
        )
        rows.append({"k": k, "chunk_bytes": [one[0] for one in each], "index_bits": coded, "bound": bound})
    return rows


def speeds(device: torch.device, threads: int, chunks: int, runs: int) -> dict[str, Any]:
    """GB/s of fp32 of each operation, by format."""
    torch.set_num_threads(threads)
    where = "cpu, 1 thread" if device.type == "cpu" and threads == 1 else f"{device.type}, {threads} threads"
    print(f"\n{where}, GB/s of fp32, {runs} runs; whole encode in times of a bare topk, and of a copy")
    names = ("topk", "copy", "feed", "choose+pack", "encode", "decode", "accumulate", "end", "reduce")
    print(f"{'':14}" + "".join(f"{name:>12}" for name in names) + f"{'/ topk':>9}{'/ copy':>8}")
    found = {}
    for k, bits in FORMATS:
        seconds = {name: measure(step, runs, device) for name, step in steps(device, ChunkFormat(k, bits), chunks)}
        seconds["residual"] = max(0.0, seconds.pop("own end") - seconds["end"])
        seconds["encode"] = seconds["feed"] + seconds["choose+pack"] + seconds["residual"]
        rates = {name: chunks * CHUNK_VALUES * FP32 / 1e9 / seconds[name] for name in names}
        to_topk, to_copy = seconds["encode"] / seconds["topk"], seconds["encode"] / seconds["copy"]
        print(
            f"k {k:4d}, {bits} bit "
            + "".join(f"{rates[name]:12.2f}" for name in names)
            + f"{to_topk:9.3f}{to_copy:8.1f}"
        )
        found[f"k={k} value_bits={bits}"] = rates | {"encode / topk": to_topk, "encode / copy": to_copy}
    return found


def steps(device: torch.device, fmt: ChunkFormat, chunks: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is measured, by name."""
    torch.manual_seed(1)
    draw = torch.distributions.StudentT(4.0, 0.0, 1e-3)
    e, theta, local, other = (draw.sample(torch.Size((chunks, CHUNK_VALUES))).to(device) for _ in range(4))
    payload = encode(e, fmt, LEVEL_BIAS_DEFAULT)
    named = torch.ones(chunks, dtype=torch.bool)
    share = chunks // INPUTS
    slices = [encode(other[i * share : (i + 1) * share], fmt, LEVEL_BIAS_DEFAULT) for i in range(INPUTS)]
    clips, rates = [256] * INPUTS, (LEVEL_BIAS_DEFAULT, PPM)
    yield "topk", lambda: e.abs().topk(fmt.k, dim=1, sorted=False)
    yield "copy", lambda: other.copy_(local)
    yield "feed", lambda: add_change(e, theta, local, 1.0, PPM)
    e.copy_(draw.sample(e.shape))
    yield "choose+pack", lambda: encode(e, fmt, LEVEL_BIAS_DEFAULT)
    yield "own end", lambda: take_over(theta, e, payload, payload, named, (fmt, fmt), *rates)
    yield "end", lambda: take_over(theta, e, payload, None, named, (fmt, fmt), *rates)
    yield "decode", lambda: check(payload, fmt)
    if native.usable(theta):
        tables = step_table(*rates, device), value_table(LEVEL_BIAS_DEFAULT, device)
        yield "accumulate", lambda: native.apply(theta, e, payload, fmt, tables[0], None, fmt, tables[1], named)
    else:
        yield "accumulate", lambda: apply_result(theta, payload, fmt, *rates)
    yield "reduce", lambda: reduce_leaf(slices, [1] * INPUTS, clips, INPUTS, fmt, fmt)


def measure(step: Callable[[], Any], runs: int, device: torch.device) -> float:
    """Median seconds of a step, after one that is not counted."""
    step()
    times = []
    for _ in range(runs):
        wait(device)
        began_s = time.perf_counter()
        step()
        wait(device)
        times.append(time.perf_counter() - began_s)
    return statistics.median(times)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def rival(chunks: int, runs: int) -> dict[str, Any]:
    """Hivemind's codecs on as many values, one thread."""
    done = subprocess.run([rival_python(), RIVAL, str(chunks), str(runs)], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print("\nhivemind, 1 thread, GB/s of fp32")
    for name, its in found.items():
        words = (
            its.get("missing")
            or f"{its['bytes_per_value']:5.2f} bytes a value  encode {its['encode']:6.2f}  decode {its['decode']:6.2f}"
        )
        print(f"{name:20} {words}")
    return found


if __name__ == "__main__":
    main()
