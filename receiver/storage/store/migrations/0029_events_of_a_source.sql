-- The events of one source in the order of recording, found without a walk through all others.

CREATE INDEX events_source ON events (source, position, id, type);
