"""Bytes: messages, their one encoding, signatures, hash trees."""
