-- What was done over the API, by whom and when; a key keeps an act from being done twice.

CREATE TABLE acts (
    id TEXT PRIMARY KEY,
    at BIGINT NOT NULL,
    token TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail TEXT NOT NULL,
    peer TEXT,
    key TEXT,
    digest TEXT NOT NULL,
    status BIGINT,
    answer {blob}
);

CREATE UNIQUE INDEX acts_key ON acts (token, key) WHERE key IS NOT NULL;
