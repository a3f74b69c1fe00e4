-- Times are epoch milliseconds. Identifiers are text made by the program and sort by time.

CREATE TABLE callbacks (
    id TEXT PRIMARY KEY,
    event_id TEXT NOT NULL,
    source TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    second_key TEXT,
    method TEXT NOT NULL,
    content_type TEXT NOT NULL,
    received_at BIGINT NOT NULL,
    body_size BIGINT NOT NULL,
    body_sha256 TEXT NOT NULL,
    body {blob},
    proofs TEXT NOT NULL
);

-- These two decide what a duplicate is. A NULL second key equals nothing, itself included.
CREATE UNIQUE INDEX callbacks_key ON callbacks (source, idempotency_key);
CREATE UNIQUE INDEX callbacks_second_key ON callbacks (source, second_key) WHERE second_key IS NOT NULL;

CREATE TABLE events (
    id TEXT PRIMARY KEY,
    type TEXT NOT NULL,
    source TEXT NOT NULL,
    provider TEXT NOT NULL,
    job_id TEXT,
    ref TEXT,
    stage TEXT NOT NULL,
    occurred_at BIGINT NOT NULL,
    recorded_at BIGINT NOT NULL,
    data {blob} NOT NULL,
    blob_key TEXT
);

CREATE INDEX events_job ON events (job_id, source) WHERE job_id IS NOT NULL;
CREATE INDEX events_ref ON events (ref) WHERE ref IS NOT NULL;
CREATE INDEX events_recorded_at ON events (recorded_at, id);

CREATE TABLE deliveries (
    id TEXT PRIMARY KEY,
    event_id TEXT NOT NULL,
    destination TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending',
    attempts BIGINT NOT NULL DEFAULT 0,
    round_start BIGINT NOT NULL DEFAULT 0,
    due_at BIGINT,
    claimed_by TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    last_outcome TEXT
);

-- A delivery that has ended has no due_at and so is in no index that a claim reads: what was delivered costs nothing.
CREATE INDEX deliveries_due ON deliveries (destination, due_at, id) WHERE due_at IS NOT NULL;
CREATE INDEX deliveries_dead ON deliveries (destination) WHERE state = 'dead';
CREATE INDEX deliveries_event ON deliveries (event_id);

CREATE TABLE attempts (
    delivery_id TEXT NOT NULL,
    number BIGINT NOT NULL,
    started_at BIGINT NOT NULL,
    duration_ms BIGINT NOT NULL,
    outcome TEXT NOT NULL,
    status BIGINT,
    detail TEXT NOT NULL,
    response {blob} NOT NULL,
    PRIMARY KEY (delivery_id, number)
);

CREATE TABLE rejections (
    id TEXT PRIMARY KEY,
    source TEXT NOT NULL,
    at BIGINT NOT NULL,
    status BIGINT NOT NULL,
    reason TEXT NOT NULL,
    method TEXT NOT NULL,
    peer TEXT,
    content_type TEXT NOT NULL,
    user_agent TEXT NOT NULL
);

CREATE INDEX rejections_source ON rejections (source, id);

-- Rows that pings change, each process its own: the proof that the database can be written.
CREATE TABLE pings (
    id BIGINT PRIMARY KEY,
    count BIGINT NOT NULL
);

INSERT INTO pings (id, count) VALUES (1, 0);
