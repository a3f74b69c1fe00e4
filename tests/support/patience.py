"""How long a test waits for what must come."""

PATIENCE = 100.0
"""Seconds: far more than anything takes on a busy machine, and less than a test may take."""
