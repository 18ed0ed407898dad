"""Write what native.cpp's fuzzer starts from, out of the vectors: python -m tests.fuzz.native_corpus FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.vectors import vectors

KS = (8, 9, 13, 64, 100, 300, 512, 1000, 1024, 1025, 1100, 1536, 2048)  # as in native.cpp
PAGES = (
    ("codec-1", ("encode", "decode"), "payload"),
    ("dense-1", ("dense",), "dense"),
    ("reduce-1", ("reduce",), "slices"),
)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for what, (page, kinds, field) in enumerate(PAGES):
        for param in vectors(page, *kinds):
            vector = param.values[0]
            if field not in vector or vector["k"] not in KS:
                continue
            said = vector[field]
            data = bytes.fromhex("".join(said) if isinstance(said, list) else said)
            k_result = vector.get("k_result", 64)
            place = KS.index(k_result) if k_result in KS else 0
            head = bytes([KS.index(vector["k"]), vector["value_bits"] - 1, place, what])
            (folder / str(count)).write_bytes(head + data)
            count += 1
    print(f"{count} files in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
