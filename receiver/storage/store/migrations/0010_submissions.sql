-- Jobs that applications submitted through receiver: written before anything is sent, so that no callback comes unexpected.

CREATE TABLE submissions (
    id TEXT PRIMARY KEY,
    application TEXT NOT NULL,
    source TEXT NOT NULL,
    request TEXT NOT NULL,
    token_id TEXT,
    ref TEXT,
    job_id TEXT,
    state TEXT NOT NULL,
    status BIGINT,
    idempotency_key TEXT,
    fingerprint TEXT,
    delivered BIGINT NOT NULL,
    answer {blob},
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);

CREATE INDEX submissions_application ON submissions (application, created_at);
CREATE UNIQUE INDEX submissions_key ON submissions (application, source, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX submissions_repeat ON submissions (application, fingerprint) WHERE delivered = 0;
CREATE INDEX submissions_job ON submissions (job_id, source) WHERE job_id IS NOT NULL;
CREATE INDEX submissions_ref ON submissions (ref) WHERE ref IS NOT NULL;
CREATE INDEX submissions_open ON submissions (created_at) WHERE state = 'open';
CREATE INDEX submissions_answers ON submissions (created_at) WHERE answer IS NOT NULL;
