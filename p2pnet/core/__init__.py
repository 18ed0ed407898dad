"""Decisions: state machines without IO, `handle(event, now_s) -> effects`."""
