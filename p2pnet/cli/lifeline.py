"""End this process when whoever started it is gone, whatever ended that: standard input is held open for as long."""

from __future__ import annotations

import os
import signal
import threading
from typing import Annotated, Final

import typer

LAST_S: Final = 2.0  # from the end of the lifeline to the end of this process, whatever it is doing

Lifeline = Annotated[
    bool, typer.Option("--lifeline", hidden=True, help="Keep serving until standard input ends, and end with it.")
]


def hold_lifeline() -> threading.Event:
    """Watch standard input from now on; at its end this process gets SIGTERM, and is ended if that does not do.

    returns: set once standard input has ended.
    """
    ended, main = threading.Event(), threading.main_thread()

    def watch() -> None:
        while os.read(0, 4096):
            pass
        ended.set()
        if main.ident is not None:
            signal.pthread_kill(main.ident, signal.SIGTERM)  # to this thread: a blocking call of another goes on
        main.join(LAST_S)
        if main.is_alive():
            os._exit(128 + signal.SIGTERM)  # the daemon dies with the process

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
    return ended
