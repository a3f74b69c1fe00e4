-- What people look for among many events, and what is rare: found without a walk through all others.

CREATE INDEX events_troubled ON events (recorded_at, id) WHERE type IN ('callback.parked', 'callback.overdue');
