"""The store: events, deliveries and pickups in SQLite or PostgreSQL."""
