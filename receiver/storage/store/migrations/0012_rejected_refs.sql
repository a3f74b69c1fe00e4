-- Which issued URL a refused callback came over, and what it was about.

ALTER TABLE rejections ADD COLUMN token_id TEXT;
ALTER TABLE rejections ADD COLUMN ref TEXT;

CREATE INDEX rejections_ref ON rejections (ref) WHERE ref IS NOT NULL;
