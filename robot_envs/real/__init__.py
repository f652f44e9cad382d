"""The real robot as a Gymnasium environment: drivers, safety, server, people, recording."""

ADDRESS = "tcp://127.0.0.1:5560"
"""Where a robot server listens unless it is told otherwise: for this computer only."""
KEYS = "~/.config/zprl"
"""Folder of a robot server's keys, and of a client's ``robot.key``."""
