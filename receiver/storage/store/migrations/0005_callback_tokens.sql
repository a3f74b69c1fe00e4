-- What a short callback token stands for: its URL has no room for it.

CREATE TABLE callback_tokens (
    id TEXT PRIMARY KEY,
    source TEXT NOT NULL,
    ref TEXT,
    format TEXT NOT NULL,
    expires_at BIGINT NOT NULL,
    expect_by BIGINT
);

CREATE INDEX callback_tokens_expire ON callback_tokens (expires_at, id);
CREATE INDEX callback_tokens_ref ON callback_tokens (ref) WHERE ref IS NOT NULL;
