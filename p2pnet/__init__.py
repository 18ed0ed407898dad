"""Train neural networks peer to peer, over the open internet, with no central part."""

from __future__ import annotations

__version__ = "0.1.0"
