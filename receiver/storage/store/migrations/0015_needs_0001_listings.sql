-- What a listing has to look through is in an index, in the order of the listing.

DROP INDEX events_recorded_at;
CREATE INDEX events_recorded_at ON events (recorded_at, id, type, source);
DROP INDEX events_position;
CREATE INDEX events_position ON events (position, id, type, source);
CREATE INDEX deliveries_open ON deliveries (id, destination) WHERE due_at IS NOT NULL;
CREATE INDEX deliveries_dead_ids ON deliveries (id, destination) WHERE state = 'dead';
CREATE INDEX pickups_open ON pickups (id) WHERE due_at IS NOT NULL;
