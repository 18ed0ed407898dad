"""`python -m p2pnet.cli`: the command line of this very interpreter, wherever its scripts are."""

from __future__ import annotations

from p2pnet.cli import main

main()
