-- Until when a destination's rate is used up, in microseconds.

ALTER TABLE destinations ADD COLUMN rate_at BIGINT NOT NULL DEFAULT 0;
