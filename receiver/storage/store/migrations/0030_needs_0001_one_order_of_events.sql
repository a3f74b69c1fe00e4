-- Events are listed in the order of recording alone: what listed them by time besides goes.

DROP INDEX events_troubled;
DROP INDEX events_recorded_at;
CREATE INDEX events_recorded_at ON events (recorded_at, id);
