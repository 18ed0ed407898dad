"""An update is encoded tensor by tensor into what is there: next to no memory beside theta, e and the payload."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from p2pnet.numerics import native

JOB = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from p2pnet.train.learner import Learner

def in_status(name):
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0]) * 1024

dtype = getattr(torch, sys.argv[1])
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(8192, 4000, bias=False), nn.Linear(4000, 2000)).to(dtype)
learner = Learner(model, k=64, k_result=192, value_bits=2, level_bias=32, alpha_ppm=1_000_000, beta_ppm=1_000_000)
def change():
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.999)
change()
first = learner.encode(5, 10)  # what is made once, such as tables
learner.void()
change()
before = in_status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # begin the peak anew
update = learner.encode(5, 10)
extra = in_status("VmHWM") - before
print(json.dumps({"params": learner.params, "payload": len(update), "extra": extra}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no /proc/self/clear_refs here")
@pytest.mark.skipif(native.missing() is not None, reason=f"no CPU library: {native.missing()}")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_encoding_takes_less_than_5_percent_of_the_parameters_and_the_payload(dtype: str) -> None:
    done = subprocess.run([sys.executable, "-c", JOB, dtype], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["params"] == 8192 * 4000 + 4000 * 2000 + 2000
    # The payload is there twice for a moment: as a tensor that the learner keeps, and as the bytes that are sent.
    assert found["extra"] < 0.05 * 4 * found["params"] + 2 * found["payload"], found
