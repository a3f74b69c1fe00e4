-- What is removed in time is found without a scan: ids sort by time, so most walks go along a table's own ids; these
-- indexes hold only what there is still to remove.

CREATE INDEX callbacks_bodies ON callbacks (id) WHERE body IS NOT NULL;
CREATE INDEX callbacks_erased ON callbacks (received_at, id) WHERE method = 'ERASED';
CREATE INDEX events_audio ON events (id) WHERE blob_key IS NOT NULL;
-- Which event an object belongs to: what has none is an orphan.
CREATE INDEX events_blobs ON events (blob_key) WHERE blob_key IS NOT NULL;
CREATE INDEX deliveries_died ON deliveries (updated_at, id) WHERE state = 'dead';
CREATE INDEX pickups_awaited ON pickups (event_id) WHERE due_at IS NOT NULL;

-- That something was erased, and how much; the digest is keyed, so it tells nobody whose it was.
CREATE TABLE tombstones (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    digest TEXT NOT NULL,
    erased_at BIGINT NOT NULL,
    events BIGINT NOT NULL,
    callbacks BIGINT NOT NULL,
    deliveries BIGINT NOT NULL,
    pickups BIGINT NOT NULL,
    blobs BIGINT NOT NULL,
    journal_entries BIGINT NOT NULL
);

CREATE INDEX tombstones_digest ON tombstones (digest);
