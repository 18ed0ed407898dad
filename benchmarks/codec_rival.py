"""hivemind's codecs for `codec.py`: speed and size on fp32 values; runs in hivemind's venv. Arguments: chunks, runs."""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import torch
from hivemind.compression import (
    BlockwiseQuantization,
    CompressionInfo,
    Float16Compression,
    ScaledFloat16Compression,
    Uniform8BitQuantization,
)

CODECS = {
    "fp16": Float16Compression,
    "fp16, scaled": ScaledFloat16Compression,
    "8-bit, uniform": Uniform8BitQuantization,
    "8-bit, blockwise": BlockwiseQuantization,
}


def main() -> None:
    chunks, runs = (int(text) for text in sys.argv[1:])
    torch.set_num_threads(1)
    torch.manual_seed(1)
    values = torch.distributions.StudentT(4.0, 0.0, 1e-3).sample(torch.Size((chunks, 4096)))
    found: dict[str, dict[str, Any]] = {}
    for name, codec in CODECS.items():
        try:
            found[name] = speed(codec(), values, runs)
        except ImportError as error:  # bitsandbytes may not be there
            found[name] = {"missing": f"{type(error).__name__}: {error}"}
    print(json.dumps(found))


def speed(codec: Any, values: torch.Tensor, runs: int) -> dict[str, Any]:
    info = CompressionInfo.from_tensor(values)
    message = codec.compress(values, info)
    size = len(message.SerializeToString())
    encode = median(lambda: codec.compress(values, info), runs)
    decode = median(lambda: codec.extract(message), runs)
    gigabytes = values.numel() * 4 / 1e9
    return {"bytes_per_value": size / values.numel(), "encode": gigabytes / encode, "decode": gigabytes / decode}


def median(step: Any, runs: int) -> float:
    times = []
    for _ in range(runs):
        began_s = time.perf_counter()
        step()
        times.append(time.perf_counter() - began_s)
    return statistics.median(times)


if __name__ == "__main__":
    main()
