-- The order of recording: the position of a transaction is above that of every one that committed before it began.

ALTER TABLE events ADD COLUMN position BIGINT NOT NULL DEFAULT 0;
ALTER TABLE events ADD COLUMN size BIGINT;
ALTER TABLE events ADD COLUMN duration_ms BIGINT;

CREATE INDEX events_position ON events (position, id);

-- The last position, where the program counts them; what is added to the database's own number of a transaction, where it has one.
CREATE TABLE event_positions (last BIGINT NOT NULL);

INSERT INTO event_positions (last) VALUES (0);
