"""The parts put together, and what an operator sees of them: checks, logs, metrics."""
