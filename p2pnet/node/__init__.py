"""One peer: the core's decisions joined to the network, the ledger and a learner that is handed in."""
