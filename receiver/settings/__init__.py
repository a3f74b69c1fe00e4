"""The settings: their models, and how they are loaded."""
