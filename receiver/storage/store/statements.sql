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
OR EXISTS (
    SELECT 1
    FROM pickups
    WHERE pickups.job_id = asked.job_id AND pickups.source = asked.source AND pickups.draft IS NOT NULL
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
WHERE
    id >= :first
    AND id < :beyond
    AND event_id = :event_id
    AND EXISTS (SELECT 1 FROM events WHERE events.id = :event_id)
ORDER BY body IS NULL, received_at, id
LIMIT 1

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

-- name: insert_pickups
INSERT INTO pickups (
    id, source, kind, key, job_id, ref, target, event_id, draft, format, deadline_at, due_at, created_at, updated_at
)
VALUES {rows: id, source, kind, key, job_id, ref, target, event_id, draft, format, deadline_at, due_at, created_at,
    updated_at}
ON CONFLICT (source, key) WHERE state <> 'gone' DO NOTHING
RETURNING id

-- name: standing_pickups
WITH asked (source, key) AS (VALUES {rows: source, key})
SELECT pickups.source, pickups.key, pickups.id, pickups.event_id
FROM asked
JOIN pickups ON pickups.source = asked.source AND pickups.key = asked.key
WHERE pickups.state <> 'gone'

-- name: hasten_pickup
UPDATE pickups
SET
    state = 'pending',
    claimed_by = NULL,
    target = COALESCE(:target, target),
    draft = COALESCE(:draft, draft),
    job_id = COALESCE(job_id, :job_id),
    ref = COALESCE(ref, :ref),
    format = CASE WHEN format = '{}' THEN :format ELSE format END,
    deadline_at = CASE WHEN deadline_at < :deadline_at THEN :deadline_at ELSE deadline_at END,
    due_at = :now,
    updated_at = :now
WHERE id = :id AND state IN ('pending', 'collecting')
RETURNING id

-- name: drop_pickups
WITH unwanted (id) AS (VALUES {rows: id})
DELETE FROM pickups
WHERE id IN (SELECT id FROM unwanted)

-- name: answer_pickups
WITH answered (source, key, job_id, event_id, updated_at) AS (
    VALUES {rows: source, key, job_id, event_id, updated_at}
)
UPDATE pickups
SET
    state = CASE WHEN answered.event_id IS NULL THEN pickups.state ELSE 'collected' END,
    event_id = COALESCE(answered.event_id, pickups.event_id),
    job_id = COALESCE(pickups.job_id, answered.job_id),
    due_at = CASE WHEN answered.event_id IS NULL THEN pickups.due_at END,
    claimed_by = CASE WHEN answered.event_id IS NULL THEN pickups.claimed_by END,
    last_outcome = CASE WHEN answered.event_id IS NULL THEN pickups.last_outcome ELSE 'answered' END,
    updated_at = CAST(answered.updated_at AS BIGINT)
FROM answered
WHERE
    pickups.source = answered.source
    AND pickups.key = answered.key
    AND pickups.state <> 'gone'
    AND pickups.state <> 'collected'
RETURNING pickups.source, pickups.key

-- name: answer_gone_pickups
WITH answered (source, key, job_id, event_id, updated_at) AS (
    VALUES {rows: source, key, job_id, event_id, updated_at}
)
UPDATE pickups
SET
    state = CASE WHEN answered.event_id IS NULL THEN pickups.state ELSE 'collected' END,
    event_id = COALESCE(answered.event_id, pickups.event_id),
    job_id = COALESCE(pickups.job_id, answered.job_id),
    last_outcome = CASE WHEN answered.event_id IS NULL THEN pickups.last_outcome ELSE 'late' END,
    updated_at = CAST(answered.updated_at AS BIGINT)
FROM answered
WHERE
    pickups.id = (
        SELECT max(gone.id)
        FROM pickups AS gone
        WHERE gone.source = answered.source AND gone.key = answered.key AND gone.state = 'gone'
    )
    AND NOT EXISTS (
        SELECT 1
        FROM pickups AS other
        WHERE other.source = answered.source AND other.key = answered.key AND other.state <> 'gone'
    )

-- name: due_pickups
SELECT
    d.id, d.source, d.kind, d.key, d.job_id, d.ref, d.target, d.event_id, d.draft, d.format, d.deadline_at, d.state,
    d.attempts, d.failures, d.due_at, d.claimed_by, d.created_at, d.updated_at, d.last_outcome, d.last_detail
FROM pickups AS d
WHERE d.source = :source AND d.due_at <= :now
ORDER BY d.due_at, d.id
LIMIT :limit
{lock}

-- name: claim_pickups
WITH taken (id, claimed_by, due_at, updated_at) AS (VALUES {rows: id, claimed_by, due_at, updated_at})
UPDATE pickups
SET
    state = 'collecting',
    claimed_by = taken.claimed_by,
    due_at = CAST(taken.due_at AS BIGINT),
    updated_at = CAST(taken.updated_at AS BIGINT)
FROM taken
WHERE pickups.id = taken.id

-- name: settle_pickups
WITH settled (id, claimed_by, attempts, state, due_at, failures, last_outcome, last_detail, updated_at) AS (
    VALUES {rows: id, claimed_by, attempts, state, due_at, failures, last_outcome, last_detail, updated_at}
)
UPDATE pickups
SET
    state = settled.state,
    attempts = pickups.attempts + 1,
    failures = CAST(settled.failures AS BIGINT),
    due_at = CAST(settled.due_at AS BIGINT),
    claimed_by = NULL,
    last_outcome = settled.last_outcome,
    last_detail = settled.last_detail,
    updated_at = CAST(settled.updated_at AS BIGINT)
FROM settled
WHERE
    pickups.id = settled.id
    AND pickups.state = 'collecting'
    AND pickups.claimed_by = settled.claimed_by
    AND pickups.attempts = CAST(settled.attempts AS BIGINT)
RETURNING pickups.id

-- name: insert_pickup_attempts
INSERT INTO pickup_attempts (pickup_id, number, started_at, duration_ms, outcome, status, detail)
VALUES {rows: pickup_id, number, started_at, duration_ms, outcome, status, detail}

-- name: event_type
SELECT type
FROM events
WHERE id = :id

-- name: awaited_or_erased
SELECT id
FROM pickups
WHERE event_id = :id AND due_at IS NOT NULL
UNION ALL
SELECT id
FROM callbacks
WHERE id >= :first AND id < :beyond AND event_id = :id AND method = 'ERASED'
LIMIT 1

-- name: yield_pickup
UPDATE pickups SET state = :state, event_id = :event_id, due_at = NULL WHERE id = :id

-- name: release_pickups
WITH released (id, claimed_by, attempts, due_at) AS (VALUES {rows: id, claimed_by, attempts, due_at})
UPDATE pickups
SET
    state = 'pending',
    claimed_by = NULL,
    due_at = CAST(released.due_at AS BIGINT),
    updated_at = CAST(released.due_at AS BIGINT)
FROM released
WHERE
    pickups.id = released.id
    AND pickups.state = 'collecting'
    AND pickups.claimed_by = released.claimed_by
    AND pickups.attempts = CAST(released.attempts AS BIGINT)
RETURNING pickups.id

-- name: next_due_pickup
SELECT min(due_at)
FROM pickups
WHERE source = :source AND due_at IS NOT NULL

-- name: list_pickups
SELECT
    id, source, kind, key, job_id, ref, target, event_id, draft, format, deadline_at, state, attempts, failures, due_at,
    claimed_by, created_at, updated_at, last_outcome, last_detail
FROM pickups
WHERE {wanted}
ORDER BY id DESC
LIMIT :limit

-- name: list_pickup_attempts
SELECT pickup_id, number, started_at, duration_ms, outcome, status, detail
FROM pickup_attempts
WHERE pickup_id = :pickup_id
ORDER BY number

-- name: count_due_pickups
SELECT source, count(*), min(due_at)
FROM pickups
WHERE due_at <= :now
GROUP BY source
ORDER BY source

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
INSERT INTO pings (id, count) VALUES (:id, 1)
ON CONFLICT (id) DO UPDATE SET count = pings.count + 1
RETURNING id

-- name: create_migrations
CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY, applied_at BIGINT NOT NULL)

-- name: list_migrations
SELECT name FROM migrations ORDER BY name

-- name: insert_migration
INSERT INTO migrations (name, applied_at) VALUES (:name, :applied_at)

-- name: old_bodies
SELECT
    c.id,
    c.received_at >= :before
        OR EXISTS (SELECT 1 FROM deliveries WHERE deliveries.event_id = c.event_id AND deliveries.due_at IS NOT NULL)
        OR EXISTS (SELECT 1 FROM pickups WHERE pickups.event_id = c.event_id AND pickups.due_at IS NOT NULL)
FROM (
    SELECT id, event_id, received_at
    FROM callbacks
    WHERE body IS NOT NULL AND id > :after AND id < :bound
    ORDER BY id
    LIMIT :limit
) AS c
ORDER BY c.id

-- name: forget_bodies
WITH old (id) AS (VALUES {rows: id})
UPDATE callbacks
SET body = NULL
WHERE id IN (SELECT id FROM old) AND body IS NOT NULL
RETURNING id

-- name: old_attempts
SELECT
    a.delivery_id,
    EXISTS (
        SELECT 1
        FROM deliveries
        WHERE deliveries.id = a.delivery_id AND (deliveries.state <> 'delivered' OR deliveries.updated_at >= :before)
    )
FROM (
    SELECT DISTINCT delivery_id
    FROM attempts
    WHERE delivery_id > :after AND delivery_id < :bound
    ORDER BY delivery_id
    LIMIT :limit
) AS a
ORDER BY a.delivery_id

-- name: forget_attempts
WITH old (id) AS (VALUES {rows: id})
DELETE FROM attempts
WHERE delivery_id IN (SELECT id FROM old)
RETURNING delivery_id

-- name: old_pickup_attempts
SELECT
    a.pickup_id,
    EXISTS (
        SELECT 1
        FROM pickups
        WHERE pickups.id = a.pickup_id AND (pickups.due_at IS NOT NULL OR pickups.updated_at >= :before)
    )
FROM (
    SELECT DISTINCT pickup_id
    FROM pickup_attempts
    WHERE pickup_id > :after AND pickup_id < :bound
    ORDER BY pickup_id
    LIMIT :limit
) AS a
ORDER BY a.pickup_id

-- name: forget_pickup_attempts
WITH old (id) AS (VALUES {rows: id})
DELETE FROM pickup_attempts
WHERE pickup_id IN (SELECT id FROM old)
RETURNING pickup_id

-- name: old_audio
SELECT
    e.id,
    e.recorded_at >= :before
        OR EXISTS (SELECT 1 FROM deliveries WHERE deliveries.event_id = e.id AND deliveries.due_at IS NOT NULL),
    e.blob_key
FROM (
    SELECT id, recorded_at, blob_key
    FROM events
    WHERE blob_key IS NOT NULL AND id > :after AND id < :bound
    ORDER BY id
    LIMIT :limit
) AS e
ORDER BY e.id

-- name: forget_audio
WITH old (id) AS (VALUES {rows: id})
UPDATE events
SET blob_key = NULL
WHERE id IN (SELECT id FROM old) AND blob_key IS NOT NULL
RETURNING id

-- name: old_dead_letters
SELECT id, FALSE
FROM deliveries
WHERE state = 'dead' AND updated_at < :before
ORDER BY updated_at, id
LIMIT :limit

-- name: forget_dead_letters
WITH old (id) AS (VALUES {rows: id})
DELETE FROM deliveries
WHERE id IN (SELECT id FROM old) AND state = 'dead'
RETURNING id

-- name: old_events
SELECT
    e.id,
    e.recorded_at >= :before
        OR EXISTS (
            SELECT 1
            FROM deliveries
            WHERE
                deliveries.event_id = e.id
                AND (
                    deliveries.due_at IS NOT NULL
                    OR (deliveries.state = 'dead' AND deliveries.updated_at >= :dead_before)
                )
        )
        OR EXISTS (SELECT 1 FROM pickups WHERE pickups.event_id = e.id AND pickups.due_at IS NOT NULL)
FROM (
    SELECT id, recorded_at
    FROM events
    WHERE id > :after AND id < :bound
    ORDER BY id
    LIMIT :limit
) AS e
ORDER BY e.id

-- name: forget_deliveries
WITH old (id) AS (VALUES {rows: id})
DELETE FROM deliveries
WHERE event_id IN (SELECT id FROM old) AND due_at IS NULL
RETURNING id

-- name: forget_events
WITH old (id) AS (VALUES {rows: id})
DELETE FROM events
WHERE
    id IN (SELECT id FROM old)
    AND NOT EXISTS (SELECT 1 FROM deliveries WHERE deliveries.event_id = events.id)
RETURNING id, blob_key

-- name: old_callbacks
SELECT
    c.id,
    c.received_at >= :before
        OR c.method = 'ERASED'
        OR EXISTS (SELECT 1 FROM events WHERE events.id = c.event_id)
        OR EXISTS (SELECT 1 FROM pickups WHERE pickups.event_id = c.event_id AND pickups.due_at IS NOT NULL)
FROM (
    SELECT id, event_id, received_at, method
    FROM callbacks
    WHERE id > :after AND id < :bound
    ORDER BY id
    LIMIT :limit
) AS c
ORDER BY c.id

-- name: forget_callbacks
WITH old (id) AS (VALUES {rows: id})
DELETE FROM callbacks
WHERE id IN (SELECT id FROM old)
RETURNING id

-- name: callbacks_between
SELECT id, source, idempotency_key, second_key, event_id, method
FROM callbacks
WHERE id >= :first AND id < :beyond

-- name: callbacks_of_pickups
WITH asked (source, key) AS (VALUES {rows: source, key})
SELECT callbacks.id, callbacks.source, callbacks.idempotency_key, callbacks.second_key, callbacks.event_id, callbacks.method
FROM asked
JOIN callbacks
    ON callbacks.source = asked.source AND (callbacks.idempotency_key = asked.key OR callbacks.second_key = asked.key)

-- name: old_pickups
SELECT p.id, p.due_at IS NOT NULL OR p.updated_at >= :before
FROM (
    SELECT id, due_at, updated_at
    FROM pickups
    WHERE id > :after AND id < :bound
    ORDER BY id
    LIMIT :limit
) AS p
ORDER BY p.id

-- name: forget_pickups
WITH old (id) AS (VALUES {rows: id})
DELETE FROM pickups
WHERE id IN (SELECT id FROM old) AND due_at IS NULL
RETURNING id

-- name: old_keys
SELECT id, FALSE
FROM callbacks
WHERE method = 'ERASED' AND received_at < :before
ORDER BY received_at, id
LIMIT :limit

-- name: known_blobs
WITH asked (blob_key) AS (VALUES {rows: blob_key})
SELECT events.blob_key
FROM asked
JOIN events ON events.blob_key = asked.blob_key

-- name: deliveries_of_events
WITH asked (event_id) AS (VALUES {rows: event_id})
SELECT deliveries.id
FROM asked
JOIN deliveries ON deliveries.event_id = asked.event_id

-- name: known_events
WITH asked (id) AS (VALUES {rows: id})
SELECT events.id
FROM asked
JOIN events ON events.id = asked.id

-- name: result_keys
WITH asked (id) AS (VALUES {rows: id})
SELECT pickups.source, pickups.key, pickups.event_id
FROM asked
JOIN pickups ON pickups.id = asked.id
WHERE pickups.kind = 'result'

-- name: erase_deliveries
WITH erased (id) AS (VALUES {rows: id})
DELETE FROM deliveries
WHERE event_id IN (SELECT id FROM erased)
RETURNING id

-- name: erase_callbacks
WITH erased (id, received_at) AS (VALUES {rows: id, received_at})
UPDATE callbacks
SET
    method = 'ERASED',
    content_type = '',
    received_at = CAST(erased.received_at AS BIGINT),
    body_size = 0,
    body_sha256 = '',
    body = NULL,
    proofs = ''
FROM erased
WHERE callbacks.id = erased.id

-- name: add_tombstone
INSERT INTO tombstones (
    id, kind, digest, erased_at, events, callbacks, deliveries, pickups, blobs, journal_entries
)
VALUES {rows: id, kind, digest, erased_at, events, callbacks, deliveries, pickups, blobs, journal_entries}
ON CONFLICT (id) DO UPDATE SET
    events = tombstones.events + excluded.events,
    callbacks = tombstones.callbacks + excluded.callbacks,
    deliveries = tombstones.deliveries + excluded.deliveries,
    pickups = tombstones.pickups + excluded.pickups,
    blobs = tombstones.blobs + excluded.blobs,
    journal_entries = tombstones.journal_entries + excluded.journal_entries

-- name: list_tombstones
SELECT id, kind, digest, erased_at, events, callbacks, deliveries, pickups, blobs, journal_entries
FROM tombstones
WHERE {wanted}
ORDER BY id DESC
LIMIT :limit
