"""Deltas: what the trainer did since a version, in pieces of about a second, for servers that hold it."""
