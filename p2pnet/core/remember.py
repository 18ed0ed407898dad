"""Remember what a pure function gave for the very same objects: many machines in one process ask for the same. Pure."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def remember(results: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Keep the latest so many results of a function of immutable objects, found by the identity of its arguments.

    A state or a roster of ten thousand members has no cheap hash, and is one object for all that work from it. What is
    kept keeps its arguments alive, so that no other object can take their place.
    """

    def wrap(function: Callable[P, T]) -> Callable[P, T]:
        kept: OrderedDict[tuple[object, ...], tuple[object, T]] = OrderedDict()

        @functools.wraps(function)
        def found(*args: P.args, **kwargs: P.kwargs) -> T:
            key = tuple(each if type(each) in (int, bytes) else id(each) for each in args)
            known = kept.get(key)
            if known is not None:
                return known[1]
            value = function(*args, **kwargs)
            kept[key] = (args, value)
            if len(kept) > results:
                kept.popitem(last=False)
            return value

        return found

    return wrap
