-- Every statement of the store, once, in the subset that SQLite and PostgreSQL share.
--
--   :name          a parameter
--   {rows: a, b}   one row of parameters per item, (?, ?), (?, ?), …; such a statement has no other parameters
--   {lock}         what keeps two claims apart: empty on SQLite, which has one writer; a row lock on PostgreSQL
--   {wanted}       the conditions of a listing, put together by sql.py from fixed texts
--
-- CAST appears where numbers pass through a list of rows: PostgreSQL takes a parameter there for text otherwise.

-- name: insert_callbacks
INSERT INTO callbacks (
    id, event_id, source, idempotency_key, second_key, method, content_type, received_at, body_size, body_sha256, body,
    proofs
)
VALUES {rows: id, event_id, source, idempotency_key, second_key, method, content_type, received_at, body_size,
    body_sha256, body, proofs}
ON CONFLICT DO NOTHING
RETURNING id

-- name: first_event
SELECT event_id
FROM callbacks
WHERE source = :source AND (idempotency_key = :idempotency_key OR second_key = :second_key)
ORDER BY id
LIMIT 1

-- name: ended_jobs
WITH asked (job_id, source) AS (VALUES {rows: job_id, source})
SELECT job_id, source
FROM asked
WHERE EXISTS (
    SELECT 1
    FROM events
    WHERE events.job_id = asked.job_id AND events.source = asked.source AND events.stage = 'final'
)

-- name: insert_events
INSERT INTO events (
    id, type, source, provider, job_id, ref, stage, occurred_at, recorded_at, data, blob_key
)
VALUES {rows: id, type, source, provider, job_id, ref, stage, occurred_at, recorded_at, data, blob_key}

-- name: insert_deliveries
INSERT INTO deliveries (id, event_id, destination, due_at, created_at, updated_at)
VALUES {rows: id, event_id, destination, due_at, created_at, updated_at}

-- name: due_deliveries
SELECT
    d.id, d.attempts, d.round_start,
    e.id, e.type, e.source, e.provider, e.job_id, e.ref, e.stage, e.occurred_at, e.recorded_at, e.data, e.blob_key
FROM deliveries AS d
JOIN events AS e ON e.id = d.event_id
WHERE d.destination = :destination AND d.due_at <= :now
ORDER BY d.due_at, d.id
LIMIT :limit
{lock}

-- name: claim_deliveries
WITH taken (id, claimed_by, due_at, updated_at) AS (VALUES {rows: id, claimed_by, due_at, updated_at})
UPDATE deliveries
SET state = 'delivering', claimed_by = taken.claimed_by, due_at = CAST(taken.due_at AS BIGINT), updated_at = CAST(taken.updated_at AS BIGINT)
FROM taken
WHERE deliveries.id = taken.id

-- name: settle_deliveries
WITH settled (id, claimed_by, attempts, state, due_at, last_outcome, updated_at) AS (
    VALUES {rows: id, claimed_by, attempts, state, due_at, last_outcome, updated_at}
)
UPDATE deliveries
SET
    state = settled.state,
    attempts = deliveries.attempts + 1,
    due_at = CAST(settled.due_at AS BIGINT),
    claimed_by = NULL,
    last_outcome = settled.last_outcome,
    updated_at = CAST(settled.updated_at AS BIGINT)
FROM settled
WHERE
    deliveries.id = settled.id
    AND deliveries.state = 'delivering'
    AND deliveries.claimed_by = settled.claimed_by
    AND deliveries.attempts = CAST(settled.attempts AS BIGINT)
RETURNING deliveries.id

-- name: insert_attempts
INSERT INTO attempts (delivery_id, number, started_at, duration_ms, outcome, status, detail, response)
VALUES {rows: delivery_id, number, started_at, duration_ms, outcome, status, detail, response}

-- name: release_deliveries
WITH released (id, claimed_by, attempts, due_at) AS (VALUES {rows: id, claimed_by, attempts, due_at})
UPDATE deliveries
SET
    state = 'pending',
    claimed_by = NULL,
    due_at = CAST(released.due_at AS BIGINT),
    updated_at = CAST(released.due_at AS BIGINT)
FROM released
WHERE
    deliveries.id = released.id
    AND deliveries.state = 'delivering'
    AND deliveries.claimed_by = released.claimed_by
    AND deliveries.attempts = CAST(released.attempts AS BIGINT)
RETURNING deliveries.id

-- name: replay_deliveries
WITH replayed (id, due_at) AS (VALUES {rows: id, due_at})
UPDATE deliveries
SET
    state = 'pending',
    round_start = attempts,
    due_at = CAST(replayed.due_at AS BIGINT),
    updated_at = CAST(replayed.due_at AS BIGINT)
FROM replayed
WHERE deliveries.id = replayed.id AND deliveries.state IN ('delivered', 'dead')
RETURNING deliveries.id

-- name: next_due
SELECT min(due_at)
FROM deliveries
WHERE destination = :destination AND due_at IS NOT NULL

-- name: list_events
SELECT id, type, source, provider, job_id, ref, stage, occurred_at, recorded_at, data, blob_key
FROM events
WHERE {wanted}
ORDER BY id DESC
LIMIT :limit

-- name: callback_body
SELECT body
FROM callbacks
WHERE id >= :first AND id < :beyond AND event_id = :event_id

-- name: list_deliveries
SELECT
    d.id, d.event_id, e.type, d.destination, d.state, d.attempts, d.round_start, d.due_at, d.claimed_by, d.created_at,
    d.updated_at, d.last_outcome
FROM deliveries AS d
JOIN events AS e ON e.id = d.event_id
WHERE {wanted}
ORDER BY d.id DESC
LIMIT :limit

-- name: list_attempts
SELECT delivery_id, number, started_at, duration_ms, outcome, status, detail, response
FROM attempts
WHERE delivery_id = :delivery_id
ORDER BY number

-- name: insert_rejections
INSERT INTO rejections (id, source, at, status, reason, method, peer, content_type, user_agent)
VALUES {rows: id, source, at, status, reason, method, peer, content_type, user_agent}

-- name: trim_rejections
DELETE FROM rejections
WHERE
    source = :source
    AND id <= (SELECT id FROM rejections WHERE source = :source ORDER BY id DESC LIMIT 1 OFFSET :keep)

-- name: list_rejections
SELECT source, at, status, reason, method, peer, content_type, user_agent
FROM rejections
WHERE {wanted}
ORDER BY id DESC
LIMIT :limit

-- name: count_due
SELECT destination, count(*), min(due_at)
FROM deliveries
WHERE due_at <= :now
GROUP BY destination
ORDER BY destination

-- name: count_dead
SELECT destination, count(*)
FROM deliveries
WHERE state = 'dead'
GROUP BY destination
ORDER BY destination

-- name: ping
UPDATE pings SET count = count + 1 WHERE id = 1

-- name: create_migrations
CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY, applied_at BIGINT NOT NULL)

-- name: list_migrations
SELECT name FROM migrations ORDER BY name

-- name: insert_migration
INSERT INTO migrations (name, applied_at) VALUES (:name, :applied_at)
