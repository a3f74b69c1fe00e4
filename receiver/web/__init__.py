"""The HTTP server: callbacks, stored objects, health, API."""
