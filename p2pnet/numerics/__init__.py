"""Tensors: the chunk codec, error feedback, reduce and apply, all exact. Contract: protocols/codec-1.md, reduce-1.md.

Everything here is stateless and gives the same bits on every device, for every number of threads and every order of
inputs: integers until the end, then operations that IEEE 754 defines to the last bit, one per kernel so that none are
fused. Nothing depends on how a library breaks ties. Only `torch.set_flush_denormal(True)` would break it: subnormal
numbers are kept.

One torch thread is best where cores are shared: every operation is short, and waits for its slowest thread.
"""

from __future__ import annotations
