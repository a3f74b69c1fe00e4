"""Public keys that providers publish. Loads a cryptography library, so adapters import it where they need it."""
