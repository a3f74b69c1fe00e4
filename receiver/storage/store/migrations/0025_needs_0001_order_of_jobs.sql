-- A claim in order looks for earlier events of the same job or ref that are still to be sent. These indexes give
-- the latest of them first, and the search reads no event.

DROP INDEX events_job;
CREATE INDEX events_job ON events (job_id, source, recorded_at DESC, id DESC) WHERE job_id IS NOT NULL;
DROP INDEX events_ref;
CREATE INDEX events_ref ON events (ref, source, recorded_at DESC, id DESC) WHERE ref IS NOT NULL;
