-- Which pickup an event came from, once the pickup has ended as well.

CREATE INDEX pickups_event ON pickups (event_id);
