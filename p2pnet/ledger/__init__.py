"""What a peer remembers, on disk: the decided rounds, what it signed, the bytes of recent results."""
