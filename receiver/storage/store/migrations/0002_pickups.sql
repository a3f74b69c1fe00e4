-- A pickup is the twin of a delivery: the same claim, the same lease, the same conditional settle.

CREATE TABLE pickups (
    id TEXT PRIMARY KEY,
    source TEXT NOT NULL,
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    job_id TEXT,
    ref TEXT,
    target TEXT,
    event_id TEXT NOT NULL,
    draft {blob},
    format TEXT NOT NULL,
    deadline_at BIGINT NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending',
    attempts BIGINT NOT NULL DEFAULT 0,
    failures BIGINT NOT NULL DEFAULT 0,
    due_at BIGINT,
    claimed_by TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    last_outcome TEXT,
    last_detail TEXT
);

-- One pickup for each result, however often it is asked for; one that is gone may be asked for again.
CREATE UNIQUE INDEX pickups_key ON pickups (source, key) WHERE state <> 'gone';
CREATE INDEX pickups_gone ON pickups (source, key) WHERE state = 'gone';
CREATE INDEX pickups_due ON pickups (source, due_at, id) WHERE due_at IS NOT NULL;
CREATE INDEX pickups_job ON pickups (job_id) WHERE job_id IS NOT NULL;
CREATE INDEX pickups_ref ON pickups (ref) WHERE ref IS NOT NULL;

CREATE TABLE pickup_attempts (
    pickup_id TEXT NOT NULL,
    number BIGINT NOT NULL,
    started_at BIGINT NOT NULL,
    duration_ms BIGINT NOT NULL,
    outcome TEXT NOT NULL,
    status BIGINT,
    detail TEXT NOT NULL,
    PRIMARY KEY (pickup_id, number)
);
