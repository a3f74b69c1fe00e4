-- What all processes know of a destination: one row each, made when there is first something to know.

CREATE TABLE destinations (
    name TEXT PRIMARY KEY,
    paused_at BIGINT,
    disabled_at BIGINT,
    failures BIGINT NOT NULL DEFAULT 0,
    failing_since BIGINT,
    opened_at BIGINT,
    probes BIGINT NOT NULL DEFAULT 0,
    held_until BIGINT NOT NULL DEFAULT 0,
    recover_from BIGINT,
    recover_until BIGINT,
    recover_at BIGINT NOT NULL DEFAULT 0,
    updated_at BIGINT NOT NULL
);
