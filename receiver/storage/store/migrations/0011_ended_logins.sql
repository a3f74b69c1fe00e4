-- Logins of the console that were ended before their time: by their id, or all of a token's until then.
CREATE TABLE ended_logins (
    subject TEXT PRIMARY KEY,
    at BIGINT NOT NULL
);
