"""receiver: the callback URL for speech providers, done once."""

__version__ = "0.1.0"
