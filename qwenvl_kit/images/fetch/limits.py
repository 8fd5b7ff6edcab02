"""Bounds that both those who fetch and those who queue fetches keep."""

MAX_PER_HOST = 16
"""Connections to one host at a time; whoever wants another waits for one of them."""
