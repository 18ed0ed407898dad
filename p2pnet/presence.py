"""Whether a member is to be there now: what its user said, what its hours say, and the signals that end a process.

Never by an exception out of nowhere while there is something to lose: an update of the parameters that is cut in two
could not be saved. So a member hands in how it is called back, `here`, and until then a signal ends the process.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from types import FrameType, TracebackType
from typing import Any, Final, Self

from p2pnet.hours import Hours

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
LOOK_S: Final = 15.0  # at the clock on the wall; also right after the machine has slept
RESCUE_AFTER_S: Final = 3.0  # from SIGTERM: whoever is still busy then is helped out
END_AFTER_S: Final = 4.5  # from SIGTERM: then the process ends, saved or not


class Presence:
    """Whether to be there. `with` it takes the signals; commands come from other threads."""

    def __init__(
        self,
        hours: Hours | None = None,
        rescue: Callable[[], None] = lambda: None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """rescue: called in a thread when SIGTERM has had no effect for long; may save what can be saved."""
        self.signal = 0  # the one that came
        self.paused = self.leaving = False
        self._hours, self._rescue, self._now = hours, rescue, now
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()  # put from signal handlers too
        self._over = threading.Event()
        self._call_back: Callable[[], None] | None = None
        self._defers = False

    def __enter__(self) -> Self:
        self._before = [(number, signal.signal(number, self._take)) for number in SIGNALS]
        if self._hours is not None:
            threading.Thread(target=self._watch, name="p2pnet-hours", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for number, handler in self._before:
            signal.signal(number, handler)

    @property
    def is_wanted(self) -> bool:
        """Whether a member is to be there."""
        return not self.is_over and not self.paused and self.paused_until is None

    @property
    def is_over(self) -> bool:
        """Whether it is time to leave for good."""
        return bool(self.signal) or self.leaving

    @property
    def paused_until(self) -> str | None:
        """When the hours begin, as people write it, when this is outside of them."""
        now = self._now()
        if self._hours is None or self._hours.include(now):
            return None
        start = self._hours.next_start(now)
        return f"{start:%H:%M}" if start.date() == now.date() else f"{start:%H:%M} tomorrow"

    def describe(self) -> dict[str, Any]:
        """What `p2pnet status` shows of it."""
        return {
            "paused": self.paused,
            "paused_until": self.paused_until,
            "hours": None if self._hours is None else str(self._hours),
        }

    def pause(self) -> None:
        """The user wants it away for now."""
        self.paused = True
        self._tell()

    def resume(self) -> None:
        """The user wants it back, in its hours."""
        self.paused = False
        self._tell()

    def leave(self) -> None:
        """The user wants it to end."""
        self.leaving = True
        self._tell()

    def wait(self) -> bool:
        """Wait until a member is to be there (True), or never again (False)."""
        while not self.is_wanted:
            if self.is_over:
                return False
            try:
                self._news.get(timeout=LOOK_S)
            except queue.Empty:
                continue
        return True

    @contextmanager
    def here(self, call_back: Callable[[], None]) -> Iterator[None]:
        """A member is there; `call_back`, called by any thread, makes it come back when it is not wanted any more."""
        self._call_back = call_back
        try:
            if not self.is_wanted:
                call_back()
            yield
        finally:
            self._call_back, self._defers = None, False

    def defer(self) -> None:
        """From now on there is something to save: a signal calls the member back, and a second one ends the process."""
        self._defers = True
        if self.signal:
            raise SystemExit(128 + self.signal)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        again, self.signal = self.signal, number
        if again:
            os._exit(128 + number)
        if number == signal.SIGTERM:
            threading.Thread(target=self._end, name="p2pnet-end", daemon=True).start()
        if not self._defers:
            raise SystemExit(128 + number)
        self._tell()

    def _tell(self) -> None:
        self._news.put(None)
        self._call()

    def _call(self) -> None:
        if not self.is_wanted and (call_back := self._call_back) is not None:
            call_back()

    def _watch(self) -> None:
        """Look at the clock as long as the process lives."""
        while not self._over.wait(LOOK_S):
            self._call()

    def _end(self) -> None:
        """End the process within 5 s of SIGTERM, whatever it does: what was saved last is whole, and counts."""
        if not self._over.wait(RESCUE_AFTER_S):
            helper = threading.Thread(target=self._rescue, name="p2pnet-rescue", daemon=True)
            helper.start()
            helper.join(END_AFTER_S - RESCUE_AFTER_S)
            if not self._over.is_set():
                os._exit(128 + signal.SIGTERM)
