-- Refused requests whose URL carried a token of ours, whole: for a day, so that they can be verified again or accepted.

CREATE TABLE rejected_requests (
    id TEXT PRIMARY KEY,
    source TEXT NOT NULL,
    at BIGINT NOT NULL,
    request {blob} NOT NULL
);

CREATE INDEX rejected_requests_at ON rejected_requests (at, id);
