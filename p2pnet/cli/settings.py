"""Settings from a file, with those of the command line in their place."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from p2pnet.config import BootstrapConfig, NodeConfig
from p2pnet.schema import load, load_file

C = TypeVar("C", NodeConfig, BootstrapConfig)


def merge_settings(kind: type[C], file: Path | None, **given: Any) -> C:
    """Return the file's settings, or the defaults, with what was given in their place; None: it was not.

    Raises ConfigError that names the file or the command line, the key, and what is allowed.
    """
    settings = kind() if file is None else load_file(kind, file)
    given = {name: value for name, value in given.items() if value is not None}
    checked = load(kind, given, "command line")
    return dataclasses.replace(settings, **{name: getattr(checked, name) for name in given})
