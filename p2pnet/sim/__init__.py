"""A seeded discrete-event network of the node's own round machines; no trio, no torch.

The network, the clock, the learner, the disk and the signatures are played. One seed is one run:
`Simulation(Setting(...), seed=7)` always does the same.
"""

from __future__ import annotations

from p2pnet.sim.ambush import Ambush, Fault, Phase, Role
from p2pnet.sim.disk import Disk
from p2pnet.sim.liar import Liar
from p2pnet.sim.network import POLICY, Setting, Simulation
from p2pnet.sim.peer import SimPeer

__all__ = ["POLICY", "Ambush", "Disk", "Fault", "Liar", "Phase", "Role", "Setting", "SimPeer", "Simulation"]
