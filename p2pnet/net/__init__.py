"""EFFECTS: the libp2p host, streams, framing, discovery, on trio; and `memory`, the in-process twin."""
