from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from p2pnet.numerics import codec, feedback, formats, levels, reduce, selection
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.numerics.levels import level_value
from p2pnet.numerics.reduce import reduce_part
from tests.numerics.samples import values_of

CODE = {
    "codec-1": (formats, levels, selection),
    "reduce-1": (reduce, feedback),
}


@pytest.fixture
def pages(repository: Path) -> dict[str, str]:
    return {name: (repository / "protocols" / f"{name}.md").read_text() for name in CODE}


def test_the_parameters_of_the_pages_are_those_of_the_code(pages: dict[str, str]) -> None:
    for name, modules in CODE.items():
        rows = re.findall(r"^\| ([A-Z_]+) \| (\d+) \|", pages[name], re.MULTILINE)
        assert len(rows) >= 5
        for constant, value in rows:
            found = [getattr(module, constant) for module in modules if hasattr(module, constant)]
            assert found, f"{name}: {constant}"
            assert set(found) == {int(value)}, f"{name}: {constant}"


def test_the_table_of_sizes_is_that_of_the_code(pages: dict[str, str]) -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+ \|.*) \|$", pages["codec-1"], re.MULTILINE)
    assert len(rows) == 13
    for k_text, rest in rows:
        fmt = ChunkFormat(int(k_text))
        index_bits = 8 * (fmt.low_bytes + fmt.upper_bytes) / fmt.k
        bound = math.log2(math.comb(4096, fmt.k)) / fmt.k
        counts = f"{fmt.low_bits} | {fmt.low_bytes} | {fmt.upper_bytes} | {fmt.sign_bytes} | {fmt.chunk_bytes}"
        assert rest == f"{counts} | {16384 / fmt.chunk_bytes:.1f} | {index_bits:.3f} | {bound:.3f}"


def examples(page: str) -> list[bytes]:
    """The hex lines of a page's example."""
    section = page.split("## Example")[1].split("## Parameters", maxsplit=1)[0]
    lines = re.findall(r"^    ([0-9a-f]{18,}(?: [0-9a-f]+)+)$", section, re.MULTILINE)
    return [bytes.fromhex(line.replace(" ", "")) for line in lines]


def test_the_example_of_the_codec_says_what_the_page_says(pages: dict[str, str]) -> None:
    (data,) = examples(pages["codec-1"])
    values = values_of(codec.decode(data, ChunkFormat(8), chunks=1))[0]
    said = {value.index: level_value(value.code, 32) * (-1 if value.negative else 1) for value in values if value.code}
    assert said == {2: 1.375, 700: -1.375, 4095: 1.375}
    assert {value.code for value in values} == {0, 235}


def test_the_example_of_the_reduction_holds(pages: dict[str, str]) -> None:
    *slices, output = examples(pages["reduce-1"])
    result = reduce_part(slices, [1, 1], 2, ChunkFormat(8), ChunkFormat(12))
    assert (result.output, result.clips) == (output, [256, 256])


def test_the_rules_that_the_code_raises_are_on_the_page(pages: dict[str, str], repository: Path) -> None:
    source = (repository / "p2pnet" / "numerics" / "codec.py").read_text()
    raised = set(re.findall(r'"codec-1/(R\d+)"', source))
    assert raised
    assert raised <= set(re.findall(r"^- \*\*(R\d+)\*\* \[(?:REJECT|IGNORE)\]", pages["codec-1"], re.MULTILINE))
