"""The demo and the simulated providers."""
