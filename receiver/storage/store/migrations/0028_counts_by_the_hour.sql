-- What came out how often in each hour, of minutes that are too old to be kept one by one.

CREATE TABLE tallies_by_hour (
    hour BIGINT NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    outcome TEXT NOT NULL,
    count BIGINT NOT NULL,
    PRIMARY KEY (hour, kind, name, outcome)
);
