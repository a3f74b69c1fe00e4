-- An event holds most of its callback's body already: where this is 1, `body` is only what it differs by from the event's data.

ALTER TABLE callbacks ADD COLUMN differs BIGINT NOT NULL DEFAULT 0;
