"""Open a swarm: start the node and let it find manifest and initial parameters. Needs no torch, which takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from p2pnet.config import NodeConfig
from p2pnet.errors import ConfigError, P2pnetError
from p2pnet.node import bridge as br
from p2pnet.node.diary import Diary
from p2pnet.node.runner import Node, NodeSettings
from p2pnet.wire.manifest import Link, Manifest

OnEvent = Callable[[str, dict[str, Any]], None]


class Opening:
    """A swarm that is being opened: the node looks for it; then a model is needed."""

    def __init__(
        self,
        link: str | Link,
        state_dir: str | Path,
        config: NodeConfig | None = None,
        on_event: OnEvent = lambda _kind, _fields: None,
        diary: Diary | None = None,
    ) -> None:
        """state_dir: of this swarm on this machine; everything the node must not forget is there.

        diary: goes on from opening to opening; who hands it in has locked `state_dir`, and answers commands.
        """
        if diary is None and config is not None and config.hours is not None:
            raise ConfigError("hours: only `p2pnet join` keeps them; a loop of your own says itself when it runs")
        self.link = Link.parse(link) if isinstance(link, str) else link
        self.folder = Path(state_dir)
        self.node = Node(NodeSettings(self.link, self.folder, config or NodeConfig(), on_event, diary))
        self.node.start()
        self._opened: br.Opened | None = None

    @property
    def opened(self) -> br.Opened:
        """What was waited for."""
        if self._opened is None:
            raise ValueError("wait for the swarm first")
        return self._opened

    def wait(self, timeout_s: float | None = None) -> Manifest:
        """Wait until the manifest and the initial parameters are here.

        Raises ConfigError for what the operator has to put right, NetworkError after `timeout_s`.
        """
        item = self.node.bridge.wait(timeout_s)
        if not isinstance(item, br.Opened):
            raise P2pnetError("the node ended before the swarm was open")
        self._opened = item
        return item.manifest.message

    def leave(self) -> None:
        """Ask the node to end, and return at once, also from a signal handler; whoever waits for it gets an error."""
        self.node.leave()

    def close(self) -> None:
        """End the node."""
        self.node.stop()
