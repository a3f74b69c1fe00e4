-- Operations on many rows: how far each has come, and when its next batch may be taken.

CREATE TABLE operations (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    selection TEXT NOT NULL,
    rate BIGINT,
    state TEXT NOT NULL,
    place TEXT NOT NULL,
    total BIGINT NOT NULL,
    done BIGINT NOT NULL,
    changed BIGINT NOT NULL,
    requested_by TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    due_at BIGINT
);

CREATE INDEX operations_due ON operations (due_at, id) WHERE due_at IS NOT NULL;
