-- Every statement of the store, once, in the subset that SQLite and PostgreSQL share.
--
--   :name            a parameter
--   {rows: a, b}     after `WITH name`: (a, b) AS (VALUES (?, ?), (?, ?), …), one row of parameters per item; such a
--                    statement has no other parameters
--   {insert: a, b}   after `INSERT INTO table`: (a, b) VALUES (?, ?), (?, ?), …; the same
--   {lock}           what keeps two claims apart: empty on SQLite, which has one writer; a row lock on PostgreSQL
--   {or_rollback}    what a refused row undoes: on SQLite the whole transaction, as its callers do anyway. Else SQLite copies
--                    every page that a statement of many rows changes, to undo that statement alone
--   {position}       the position of the events that a transaction records
--   {end}            a position that no event is above
--   {horizon}        a position below which no transaction still under way can record
--   {conditions}     the conditions of a listing, put together by `listed` from fixed texts
--   {table}, …       a slot of a section whose statements are one text for several tables. A line `-- with:` under the
--                    section's heading names the slots, each further one fills them; a statement is made for every line
--                    if its own name has the first slot, and has the name so filled
--
-- CAST appears where numbers pass through a list of rows: PostgreSQL takes a parameter there for text otherwise.

-- ==================== callbacks and events ====================

-- name: insert_callbacks
-- Writes callbacks, and returns those that were not known by one of their keys.
INSERT {or_rollback} INTO callbacks {insert: id, source, idempotency_key, second_key, method, content_type, received_at, body_size,
    body_sha256, body, proofs, arrival, event_id, differs}
ON CONFLICT DO NOTHING
RETURNING id

-- name: first_event
-- The event of the first callback with one of these keys: what a duplicate is a duplicate of.
SELECT event_id
FROM callbacks
WHERE source = :source AND (idempotency_key = :idempotency_key OR second_key = :second_key)
ORDER BY id
LIMIT 1

-- name: callback_between_keys
-- One callback whose identity lies in a range.
SELECT id
FROM callbacks
WHERE source = :source AND idempotency_key >= :first AND idempotency_key < :beyond
LIMIT 1

-- name: read_again
-- The events that were made of these events' callbacks when they were read again, or will be once their result is there.
WITH wanted {rows: source, first, beyond}
SELECT callbacks.event_id
FROM wanted
JOIN callbacks ON callbacks.source = wanted.source
    AND callbacks.idempotency_key >= wanted.first AND callbacks.idempotency_key < wanted.beyond

-- name: callback_body
-- The body kept with the callback behind an event. Both have one millisecond, which bounds the search by id.
SELECT c.body, c.differs, e.data
FROM callbacks AS c
JOIN events AS e ON e.id = c.event_id
WHERE c.id >= :first AND c.id < :beyond AND c.event_id = :event_id
ORDER BY c.body IS NULL, c.received_at, c.id
LIMIT 1

-- name: callback_of_event
-- The callback behind an event, without its body. Both have one millisecond, which bounds the search by id.
SELECT id, event_id, source, method, content_type, received_at, body_size, body_sha256, proofs,
    arrival
FROM callbacks
WHERE id >= :first AND id < :beyond AND event_id = :event_id
ORDER BY received_at, id
LIMIT 1

-- name: event_routing
-- What was decided of an event's destinations when it was recorded.
SELECT routing
FROM events
WHERE id = :id

-- name: insert_events
-- Writes events.
INSERT {or_rollback} INTO events {insert: id, type, source, provider, job_id, ref, stage, occurred_at, recorded_at, data, blob_key,
    size, duration_ms, routing; position={position}}

-- name: next_position
-- Makes the position of a transaction's events, in a database where one transaction writes at a time.
UPDATE event_positions SET last = last + 1

-- name: raise_positions
-- Begins above every position there is: a database that was copied may count its transactions anew.
UPDATE event_positions
SET last = last + (SELECT COALESCE(max(position), 0) FROM events) - {position}
WHERE (SELECT COALESCE(max(position), 0) FROM events) > {position}

-- name: positions
-- The position of the oldest event that is kept, and one that no event is above.
SELECT (SELECT min(position) FROM events), {end}

-- name: event_type
-- The type of one event, a failure's or a result's.
SELECT type
FROM events
WHERE id = :id

-- name: ended_jobs
-- Which of these jobs have ended, or will when their result is fetched: progress that comes after is late.
WITH wanted {rows: job_id, source}
SELECT job_id, source
FROM wanted
WHERE EXISTS (
    SELECT 1
    FROM events
    WHERE events.job_id = wanted.job_id AND events.source = wanted.source AND events.stage = 'final'
)
OR EXISTS (
    SELECT 1
    FROM pickups
    WHERE pickups.job_id = wanted.job_id AND pickups.source = wanted.source AND pickups.draft IS NOT NULL
)

-- name: list_events
-- Events, those recorded last first: the id of an awaited event is older than the event.
SELECT id, type, source, provider, job_id, ref, stage, occurred_at, recorded_at, data, blob_key, size, duration_ms
FROM events
WHERE {conditions}
ORDER BY recorded_at DESC, id DESC
LIMIT :limit

-- ==================== events in the order of recording ====================
-- with: way    | order | settled
-- with: onward | ASC   | AND e.position < {horizon}
-- with: back   | DESC  |

-- name: events_{way}
-- Events in the order of recording; onward, those alone that no transaction under way can still come before.
SELECT
    e.position, e.id, e.type, e.source, e.provider, e.job_id, e.ref, e.stage, e.occurred_at, e.recorded_at, e.data,
    e.blob_key, e.size, e.duration_ms
FROM events AS e
WHERE {conditions} {settled}
ORDER BY e.position {order}, e.id {order}
LIMIT :limit

-- name: place_of_events_{way}
-- Where a page of these has to end that may look at so many rows.
SELECT e.position, e.id
FROM events AS e
WHERE {conditions} {settled}
ORDER BY e.position {order}, e.id {order}
LIMIT 1 OFFSET :looked_at

-- name: position_at
-- The position of the last event that was recorded before a time.
SELECT position
FROM events
WHERE recorded_at < :at
ORDER BY recorded_at DESC, id DESC
LIMIT 1

-- ==================== listings ====================
-- with: listed            | from       | key             | order
-- with: deliveries        | deliveries | d.id            | d.id DESC
-- with: deliveries_onward | deliveries | d.id            | d.id
-- with: pickups           | pickups    | id              | id DESC
-- with: submissions       | submissions | id             | id DESC
-- with: acts              | acts       | id              | id DESC
-- with: operations        | operations | id              | id DESC

-- name: place_of_{listed}
-- Where a page of a listing has to end that may look at so many rows.
SELECT {key}
FROM {from} AS d
WHERE {conditions}
ORDER BY {order}
LIMIT 1 OFFSET :looked_at

-- ==================== deliveries, newest or oldest first ====================
-- with: list_deliveries | order
-- with: list_deliveries | DESC
-- with: list_deliveries_onward | ASC

-- name: {list_deliveries}
-- Deliveries in one order.
SELECT
    d.id, d.event_id, e.type, d.destination, d.state, d.attempts, d.round_start, d.due_at, d.claimed_by, d.created_at,
    d.updated_at, d.last_outcome, e.job_id, e.ref, NULL
FROM deliveries AS d
JOIN events AS e ON e.id = d.event_id
WHERE {conditions}
ORDER BY d.id {order}
LIMIT :limit

-- ==================== the two queues: deliveries and pickups ====================
-- with: table      | queue       | busy       | log             | key         | outcome_too                | set_too | noted
-- with: deliveries | destination | delivering | attempts        | delivery_id | , round_start              | round_start = CAST(settled.round_start AS BIGINT), order_key = CASE settled.state WHEN 'delivered' THEN NULL WHEN 'dead' THEN '-' || deliveries.order_key ELSE deliveries.order_key END, | detail, response
-- with: pickups    | source      | collecting | pickup_attempts | pickup_id   | , failures, last_detail    | failures = CAST(settled.failures AS BIGINT), last_detail = settled.last_detail, | detail

-- name: due_pickups
-- The oldest pickups of a source that are due, as they are before they are claimed.
SELECT
    d.id, d.source, d.kind, d.key, d.job_id, d.ref, d.target, d.event_id, d.draft, d.format, d.deadline_at, d.state,
    d.attempts, d.failures, d.due_at, d.claimed_by, d.created_at, d.updated_at, d.last_outcome, d.last_detail
FROM pickups AS d
WHERE d.source = :queue AND d.due_at <= :now
ORDER BY d.due_at, d.id
LIMIT :limit
{lock}

-- name: claim_{table}
-- Claims the rows that were just selected as due: until the lease ends, nobody else selects them.
WITH taken {rows: id, claimed_by, due_at, updated_at}
UPDATE {or_rollback} {table}
SET
    state = '{busy}',
    claimed_by = taken.claimed_by,
    due_at = CAST(taken.due_at AS BIGINT),
    updated_at = CAST(taken.updated_at AS BIGINT)
FROM taken
WHERE {table}.id = taken.id

-- name: settle_{table}
-- Writes what attempts led to, and returns the rows whose claim was still held: a claim that was lost changes nothing. As
-- COALESCE, here and below: PostgreSQL would read all claimed rows for each, having seen none of them in its statistics.
WITH settled {rows: id, claimed_by, state, due_at, last_outcome, updated_at{outcome_too}}
UPDATE {or_rollback} {table}
SET
    state = settled.state,
    attempts = {table}.attempts + 1,
    due_at = CAST(settled.due_at AS BIGINT),
    claimed_by = NULL,
    last_outcome = settled.last_outcome,
    {set_too}
    updated_at = CAST(settled.updated_at AS BIGINT)
FROM settled
WHERE {table}.id = settled.id AND COALESCE({table}.claimed_by, '') = settled.claimed_by
RETURNING {table}.id

-- name: release_{table}
-- Hands claims back unattempted, due at once, and returns those that were still held.
WITH released {rows: id, claimed_by, due_at}
UPDATE {table}
SET
    state = 'pending',
    claimed_by = NULL,
    due_at = CAST(released.due_at AS BIGINT),
    updated_at = CAST(released.due_at AS BIGINT)
FROM released
WHERE {table}.id = released.id AND COALESCE({table}.claimed_by, '') = released.claimed_by
RETURNING {table}.id

-- name: claims_of_{table}
-- The claims that there are; all rows that were claimed at once have one.
SELECT DISTINCT claimed_by
FROM {table}
WHERE claimed_by IS NOT NULL

-- name: take_over_{table}
-- Hands back the rows of claims whose processes have ended, unattempted and due at once.
WITH ended {rows: claimed_by, due_at}
UPDATE {table}
SET
    state = 'pending',
    claimed_by = NULL,
    due_at = CAST(ended.due_at AS BIGINT),
    updated_at = CAST(ended.due_at AS BIGINT)
FROM ended
WHERE {table}.claimed_by = ended.claimed_by
RETURNING {table}.{queue}

-- name: next_due_{table}
-- When a destination or a source has something to claim next.
SELECT min(due_at)
FROM {table}
WHERE {queue} = :queue AND due_at IS NOT NULL

-- name: count_due_{table}
-- How much is due to each destination or source, and since when.
SELECT {queue}, count(*), min(due_at)
FROM {table}
WHERE due_at <= :now
GROUP BY {queue}
ORDER BY {queue}

-- name: log_{table}
-- Writes attempts that were made.
INSERT {or_rollback} INTO {log} {insert: {key}, number, started_at, duration_ms, outcome, status, {noted}}

-- name: attempts_of_{table}
-- The attempts of one row, first to last.
SELECT {key}, number, started_at, duration_ms, outcome, status, {noted}
FROM {log}
WHERE {key} = :id
ORDER BY number

-- ==================== deliveries ====================

-- name: insert_deliveries
-- Writes deliveries, due at once, each with what it is ordered by at its destination.
WITH made {rows: id, event_id, destination, due_at, created_at, updated_at, job, ref}
INSERT {or_rollback} INTO deliveries (id, event_id, destination, due_at, created_at, updated_at, order_key, order_at)
SELECT
    made.id,
    made.event_id,
    made.destination,
    CAST(made.due_at AS BIGINT),
    CAST(made.created_at AS BIGINT),
    CAST(made.updated_at AS BIGINT),
    CASE h.ordered WHEN 'job' THEN made.job WHEN 'ref' THEN made.ref END,
    CASE WHEN h.ordered IS NOT NULL THEN CAST(made.created_at AS BIGINT) END
FROM made
LEFT JOIN destinations AS h ON h.name = made.destination

-- name: lock_events
-- Which of these events are there, kept from being removed or given deliveries by another process meanwhile.
WITH wanted {rows: id}
SELECT d.id
FROM wanted
JOIN events AS d ON d.id = wanted.id
{lock}

-- name: replay_deliveries
-- Begins another round for deliveries that have ended; their attempts stay, and are numbered on.
WITH replayed {rows: id, due_at}
UPDATE deliveries
SET
    state = 'pending',
    round_start = attempts,
    due_at = CAST(replayed.due_at AS BIGINT),
    updated_at = CAST(replayed.due_at AS BIGINT)
FROM replayed
WHERE deliveries.id = replayed.id AND deliveries.state IN ('delivered', 'dead')
RETURNING deliveries.id

-- name: order_deliveries
-- Gives deliveries what they are ordered by, where their destination gets events in order.
WITH wanted {rows: id}
UPDATE deliveries
SET
    order_key = CASE d.state WHEN 'dead' THEN '-' ELSE '' END || e.source || ' ' || COALESCE(CASE h.ordered WHEN 'job' THEN e.job_id ELSE e.ref END, e.id),
    order_at = e.recorded_at
FROM wanted
JOIN deliveries AS d ON d.id = wanted.id
JOIN events AS e ON e.id = d.event_id
JOIN destinations AS h ON h.name = d.destination
WHERE deliveries.id = d.id AND h.ordered IS NOT NULL

-- name: deliveries_to_order
-- All of a destination's that can keep others back.
SELECT id
FROM deliveries
WHERE destination = :name AND (due_at IS NOT NULL OR state = 'dead')

-- name: count_dead
-- How many dead letters each destination has.
SELECT destination, count(*)
FROM deliveries
WHERE state = 'dead'
GROUP BY destination
ORDER BY destination

-- ==================== deliveries that are due ====================
-- In order, one is not due before the earlier ones of its job (or with its ref) have ended; with :hold, those that died have not.
-- The first ones of jobs are given by their ids.
-- with: due                     | within                       | before
-- with: due_deliveries          | d.destination = :queue AND   |
-- with: due_deliveries_in_order | d.destination = :queue AND   | AND NOT EXISTS (SELECT 1 FROM deliveries AS p WHERE p.destination = :queue AND p.order_key = d.order_key AND (p.order_at, p.event_id) < (d.order_at, d.event_id)) AND NOT (CAST(:hold AS BIGINT) = 1 AND EXISTS (SELECT 1 FROM deliveries AS p WHERE p.destination = :queue AND p.order_key = '-' || d.order_key AND (p.order_at, p.event_id) < (d.order_at, d.event_id)))
-- with: due_deliveries_of_jobs  |                              | AND d.id {among_ids}

-- name: {due}
-- The oldest deliveries of a destination that are due, with their events. Leases that ran out are due again. Nothing is due
-- to a destination that is held; a probe, which names none as :held, is not kept back by that. With a rate, attempts are :apart
-- microseconds apart, and as many as the bucket of :full microseconds still holds are due; the row is locked before.
SELECT
    d.id, d.attempts, d.round_start,
    e.id, e.type, e.source, e.provider, e.job_id, e.ref, e.stage, e.occurred_at, e.recorded_at, e.data, e.blob_key,
    e.size, e.duration_ms
FROM deliveries AS d
JOIN events AS e ON e.id = d.event_id
WHERE
    {within}
    d.due_at <= :now
    AND NOT EXISTS (
        SELECT 1
        FROM destinations AS h
        WHERE
            h.name = :held
            AND (h.paused_at IS NOT NULL OR h.disabled_at IS NOT NULL OR h.opened_at IS NOT NULL OR h.held_until > :now)
    )
    {before}
ORDER BY d.due_at, d.id
LIMIT CASE
    WHEN CAST(:apart AS BIGINT) = 0 THEN CAST(:limit AS BIGINT)
    ELSE (
        SELECT
            CASE
                WHEN r.free >= CAST(:limit AS BIGINT) * CAST(:apart AS BIGINT) THEN CAST(:limit AS BIGINT)
                WHEN r.free <= 0 THEN 0
                ELSE r.free / CAST(:apart AS BIGINT)
            END
        FROM (
            SELECT 1000 * CAST(:now AS BIGINT) + CAST(:full AS BIGINT) - rate_at AS free
            FROM destinations
            WHERE name = :queue
        ) AS r
    )
END
{lock}

-- ==================== deliveries in order ====================

-- name: order_of_destination
SELECT ordered
FROM destinations
WHERE name = :name

-- name: set_order
-- In what order a destination gets events from now on.
INSERT INTO destinations (name, ordered, updated_at) VALUES (:name, :order, :at)
ON CONFLICT (name) DO UPDATE SET ordered = excluded.ordered

-- name: deliveries_behind
-- Which of these deliveries wait for an earlier one, as the statements above have it.
WITH asked {rows: id, hold}
SELECT d.id
FROM asked
JOIN deliveries AS d ON d.id = asked.id
WHERE
    EXISTS (
        SELECT 1
        FROM deliveries AS p
        WHERE
            p.destination = d.destination AND p.order_key = d.order_key
            AND (p.order_at, p.event_id) < (d.order_at, d.event_id)
    )
    OR CAST(asked.hold AS BIGINT) = 1 AND EXISTS (
        SELECT 1
        FROM deliveries AS p
        WHERE
            p.destination = d.destination AND p.order_key = '-' || d.order_key
            AND (p.order_at, p.event_id) < (d.order_at, d.event_id)
    )

-- name: count_behind
-- How many of the :limit oldest deliveries that are due to a destination wait for an earlier one.
SELECT count(*)
FROM (
    SELECT order_key, order_at, event_id
    FROM deliveries
    WHERE destination = :queue AND due_at <= :now
    ORDER BY due_at, id
    LIMIT :limit
) AS d
WHERE
    EXISTS (
        SELECT 1
        FROM deliveries AS p
        WHERE
            p.destination = :queue AND p.order_key = d.order_key
            AND (p.order_at, p.event_id) < (d.order_at, d.event_id)
    )
    OR CAST(:hold AS BIGINT) = 1 AND EXISTS (
        SELECT 1
        FROM deliveries AS p
        WHERE
            p.destination = :queue AND p.order_key = '-' || d.order_key
            AND (p.order_at, p.event_id) < (d.order_at, d.event_id)
    )

-- name: first_of_jobs
-- The first delivery of each of the next :limit jobs after :after that has not ended, in the order of keys: one step each,
-- however many wait behind it; when it is due, and with :hold whether one that died comes before it.
WITH RECURSIVE jobs (id, order_key, order_at, event_id, due_at) AS (
    SELECT d.id, d.order_key, d.order_at, d.event_id, d.due_at
    FROM deliveries AS d
    WHERE
        d.id = (
            SELECT p.id
            FROM deliveries AS p
            WHERE p.destination = :queue AND p.order_key > :after
            ORDER BY p.order_key, p.order_at, p.event_id
            LIMIT 1
        )
    UNION ALL
    SELECT d.id, d.order_key, d.order_at, d.event_id, d.due_at
    FROM jobs
    JOIN deliveries AS d ON d.id = (
        SELECT p.id
        FROM deliveries AS p
        WHERE p.destination = :queue AND p.order_key > jobs.order_key
        ORDER BY p.order_key, p.order_at, p.event_id
        LIMIT 1
    )
)
SELECT
    order_key,
    id,
    due_at <= :now AND NOT (
        CAST(:hold AS BIGINT) = 1 AND EXISTS (
            SELECT 1
            FROM deliveries AS p
            WHERE
                p.destination = :queue AND p.order_key = '-' || jobs.order_key
                AND (p.order_at, p.event_id) < (jobs.order_at, jobs.event_id)
            )
    )
FROM jobs
LIMIT :limit

-- ==================== destinations ====================

-- name: lock_destination
-- One destination's row, made if it is not there, which no other transaction changes until this one ends.
INSERT INTO destinations (name, updated_at) VALUES (:name, :at)
ON CONFLICT (name) DO UPDATE SET name = excluded.name
RETURNING name, paused_at, disabled_at, failures, failing_since, opened_at, probes, held_until - CAST(:now AS BIGINT),
    recover_from, recover_until, recover_at, updated_at, rate_at / 1000 - CAST(:now AS BIGINT)

-- name: update_destination
-- Writes what is now known of a destination.
UPDATE destinations
SET
    paused_at = :paused_at,
    disabled_at = :disabled_at,
    failures = :failures,
    failing_since = :failing_since,
    opened_at = :opened_at,
    probes = :probes,
    held_until = CAST(:now AS BIGINT) + CAST(:held_for AS BIGINT),
    recover_from = :recover_from,
    recover_until = :recover_until,
    recover_at = :recover_at,
    updated_at = :at
WHERE name = :name

-- name: lock_rate
-- Nobody else uses a destination's rate until this transaction ends. A row that is there is locked, and not written.
INSERT INTO destinations (name, updated_at) VALUES (:name, :at)
ON CONFLICT (name) DO UPDATE SET name = excluded.name WHERE FALSE

-- name: use_rate
-- Uses so many microseconds of a destination's rate; what was left unused before :now is lost.
UPDATE destinations
SET
    rate_at = CAST(:used AS BIGINT)
        + CASE WHEN rate_at > 1000 * CAST(:now AS BIGINT) THEN rate_at ELSE 1000 * CAST(:now AS BIGINT) END
WHERE name = :name

-- name: take_probe
-- Lets one process probe a destination that fails, and nobody else until :now and :wait.
UPDATE destinations
SET held_until = CAST(:now AS BIGINT) + CAST(:wait AS BIGINT)
WHERE name = :name AND opened_at IS NOT NULL AND paused_at IS NULL AND disabled_at IS NULL AND held_until <= :now
RETURNING name

-- name: list_destinations
-- What is known of destinations.
SELECT name, paused_at, disabled_at, failures, failing_since, opened_at, probes, held_until - CAST(:now AS BIGINT),
    recover_from, recover_until, recover_at, updated_at, rate_at / 1000 - CAST(:now AS BIGINT)
FROM destinations
ORDER BY name

-- name: outage_letters
-- The oldest dead letters of a destination that died within a time.
SELECT id
FROM deliveries
WHERE destination = :name AND state = 'dead' AND updated_at >= :first AND updated_at <= :last
ORDER BY id
LIMIT :limit

-- ==================== pickups ====================

-- name: insert_pickups
-- Writes pickups, and returns those whose result is not fetched, awaited or had already.
INSERT INTO pickups {insert: id, source, kind, key, job_id, ref, target, event_id, draft, format, deadline_at, state,
    attempts, failures, due_at, claimed_by, created_at, updated_at, last_outcome, last_detail}
ON CONFLICT (source, key) WHERE state <> 'gone' DO NOTHING
RETURNING id

-- name: existing_pickups
-- The pickups that have these keys and did not end without a result; there is one for each key at most.
WITH wanted {rows: source, key}
SELECT pickups.source, pickups.key, pickups.id, pickups.event_id
FROM wanted
JOIN pickups ON pickups.source = wanted.source AND pickups.key = wanted.key
WHERE pickups.state <> 'gone'

-- name: reschedule_pickup
-- Gives a pickup that has not ended what a callback brought, due at once; an attempt under way loses its claim by it.
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

-- name: resolve_pickups
-- Updates pickups by a callback that they wait for: a final one collects them, another brings the job id they lack.
WITH answered {rows: source, key, job_id, event_id, updated_at}
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

-- name: resolve_gone_pickups
-- The same for the last pickup of a key that had been given up, unless the key has another by now. As `id || ''`, or the newest
-- would be looked for among all of the source.
WITH answered {rows: source, key, job_id, event_id, updated_at}
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
        SELECT max(gone.id || '')
        FROM pickups AS gone
        WHERE gone.source = answered.source AND gone.key = answered.key AND gone.state = 'gone'
    )
    AND NOT EXISTS (
        SELECT 1
        FROM pickups AS other
        WHERE other.source = answered.source AND other.key = answered.key AND other.state <> 'gone'
    )

-- name: supersede_pickup
-- Ends a pickup with another's event, which had the same result first.
UPDATE pickups SET state = :state, event_id = :event_id, due_at = NULL WHERE id = :id

-- name: awaited_or_erased
-- Whether an event that is not there will be, or was there and is erased: either way the result has its event.
SELECT id
FROM pickups
WHERE event_id = :id AND due_at IS NOT NULL
UNION ALL
SELECT id
FROM callbacks
WHERE id >= :first AND id < :beyond AND event_id = :id AND method = 'ERASED'
LIMIT 1

-- name: drop_pickups
-- Removes pickups whatever their state: those of callbacks that turned out known, and those that are erased.
WITH unwanted {rows: id}
DELETE FROM pickups
WHERE id IN (SELECT id FROM unwanted)

-- name: list_pickups
-- Pickups, newest first.
SELECT
    id, source, kind, key, job_id, ref, target, event_id, draft, format, deadline_at, state, attempts, failures, due_at,
    claimed_by, created_at, updated_at, last_outcome, last_detail
FROM pickups
WHERE {conditions}
ORDER BY id DESC
LIMIT :limit

-- ==================== short callback tokens ====================

-- name: insert_tokens
-- Writes what short tokens stand for.
INSERT INTO callback_tokens {insert: source, id, ref, format, issued_at, expires_at, expect_by}

-- name: token_claims
-- What a short token stands for.
SELECT source, id, ref, format, issued_at, expires_at, expect_by
FROM callback_tokens
WHERE id = :id

-- name: erase_refs
-- Has short tokens carry an erased ref no longer; they go on proving callbacks until they expire.
UPDATE callback_tokens
SET ref = NULL
WHERE ref = :ref

-- name: erase_token_refs
-- The same for the tokens of one job's submissions.
UPDATE callback_tokens
SET ref = NULL
WHERE id IN (SELECT token_id FROM submissions WHERE job_id = :job_id AND source = :source)

-- ==================== submissions ====================

-- name: insert_submissions
-- Writes submissions, and returns those whose idempotency key no other has.
INSERT INTO submissions {insert: id, application, source, request, token_id, ref, job_id, state, status,
    idempotency_key, fingerprint, delivered, answer, created_at, updated_at}
ON CONFLICT (application, source, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
RETURNING id

-- name: earlier_submission
-- The submission with this one's idempotency key; or an identical one that may have made a job, and whose caller has no answer.
-- `+ 0` keeps SQLite from going through all that the application submitted lately.
SELECT
    id, application, source, request, token_id, ref, job_id, state, status, idempotency_key, fingerprint, delivered,
    answer, created_at, updated_at
FROM submissions
WHERE id <> :id AND id IN (
    SELECT id
    FROM submissions
    WHERE application = :application AND source = :source AND idempotency_key = :idempotency_key
    UNION ALL
    SELECT id
    FROM submissions
    WHERE application = :application AND fingerprint = :fingerprint AND delivered = 0 AND created_at + 0 >= :since
        AND state <> 'refused'
)
ORDER BY CASE WHEN idempotency_key = :idempotency_key THEN 0 ELSE 1 END
LIMIT 1

-- name: list_submissions
-- Submissions, newest first.
SELECT
    id, application, source, request, token_id, ref, job_id, state, status, idempotency_key, fingerprint, delivered,
    answer, created_at, updated_at
FROM submissions
WHERE {conditions}
ORDER BY id DESC
LIMIT :limit

-- name: count_usage
-- Counts what a process takes of an application's limit, anew in each window of time. Who is one window behind counts in the one
-- that has begun; where the row is further ahead, a clock was wrong.
INSERT INTO submission_usage (application, what, time_window, used)
VALUES (:application, :what, :window, :amount)
ON CONFLICT (application, what) DO UPDATE SET
    used = CASE
        WHEN submission_usage.time_window - excluded.time_window IN (0, 1) THEN submission_usage.used
        ELSE 0
    END + excluded.used,
    time_window = CASE
        WHEN submission_usage.time_window - excluded.time_window = 1 THEN submission_usage.time_window
        ELSE excluded.time_window
    END
RETURNING used

-- name: fingerprint_submission
-- Notes the fingerprint of a submission whose body has ended.
UPDATE submissions SET fingerprint = :fingerprint WHERE id = :id

-- name: end_submission
-- Writes what a submission came to. Only an accepted one is remembered by its idempotency key.
-- What is known stays when the one that closes what was left open comes late.
UPDATE submissions
SET
    state = :state,
    status = :status,
    job_id = :job_id,
    answer = :answer,
    idempotency_key = CASE WHEN :state = 'accepted' THEN idempotency_key END,
    updated_at = :updated_at
WHERE id = :id AND (state IN ('open', 'unknown') OR :state <> 'unknown')

-- name: drop_submission
-- Removes a submission of which nothing was sent.
DELETE FROM submissions WHERE id = :id

-- name: drop_expectation
-- Removes an expectation whose callback will not come; one that was answered or asked about stays.
DELETE FROM pickups
WHERE source = :source AND key = :key AND kind = 'expected' AND state = 'pending'

-- name: deliver_submission
-- Notes that the caller has its answer.
UPDATE submissions SET delivered = 1 WHERE id = :id

-- name: forget_answers
-- Removes kept answers and the idempotency keys that find them.
UPDATE submissions
SET answer = NULL, idempotency_key = NULL
WHERE (answer IS NOT NULL OR idempotency_key IS NOT NULL) AND state <> 'open' AND created_at < :before

-- name: old_submissions
-- Submissions; an open one stays.
SELECT s.id, s.state = 'open' OR s.updated_at >= :before
FROM (
    SELECT id, state, updated_at
    FROM submissions
    WHERE id > :after AND id < :bound
    ORDER BY id
    LIMIT :limit
) AS s
ORDER BY s.id

-- name: erase_submissions
-- Removes the submissions of a job.
DELETE FROM submissions WHERE job_id = :job_id AND source = :source

-- name: erase_submissions_of_ref
-- Removes the submissions with a ref.
DELETE FROM submissions WHERE ref = :ref

-- ==================== rejections ====================

-- name: insert_rejections
-- Writes rejections.
INSERT INTO rejections {insert: id, source, at, status, kind, reason, method, peer, content_type, user_agent,
    token_id, ref, setting, headers}

-- name: trim_rejections
-- Removes all of a source's rejections of one kind but the newest; {conditions} choose those with a token of ours, or the rest.
DELETE FROM rejections
WHERE
    source = :source
    AND kind = :kind
    AND {conditions}
    AND id <= (
        SELECT id
        FROM rejections
        WHERE source = :source AND kind = :kind AND {conditions}
        ORDER BY id DESC
        LIMIT 1
        OFFSET :keep
    )

-- name: erase_rejections
-- Removes rejections of a ref.
DELETE FROM rejections
WHERE ref = :ref

-- name: list_rejections
-- Rejections, newest first.
SELECT id, source, at, status, kind, reason, method, peer, content_type, user_agent, token_id, ref, setting, headers,
    EXISTS (SELECT 1 FROM rejected_requests AS kept WHERE kept.id = rejections.id)
FROM rejections
WHERE {conditions}
ORDER BY id DESC
LIMIT :limit

-- name: insert_rejected_requests
-- Keeps the requests of rejections.
INSERT INTO rejected_requests {insert: id, source, at, request}

-- name: trim_rejected_requests
-- Removes all requests of a source, or of all, but the newest.
DELETE FROM rejected_requests
WHERE
    {conditions}
    AND id <= (
        SELECT id
        FROM rejected_requests
        WHERE {conditions}
        ORDER BY id DESC
        LIMIT 1
        OFFSET :keep
    )

-- name: forget_lone_requests
-- Removes requests whose rejection is gone.
DELETE FROM rejected_requests
WHERE NOT EXISTS (SELECT 1 FROM rejections WHERE rejections.id = rejected_requests.id)

-- name: list_rejected_requests
-- Requests of rejections.
SELECT id, request
FROM rejected_requests
WHERE {conditions}
ORDER BY id
LIMIT :limit

-- ==================== acts ====================

-- name: insert_acts
-- Notes acts, and returns those whose key was not known.
INSERT INTO acts {insert: id, at, token, action, subject, detail, peer, key, digest, status, answer}
ON CONFLICT (token, key) WHERE key IS NOT NULL DO NOTHING
RETURNING id

-- name: end_act
-- Notes how an act was answered.
UPDATE acts SET status = :status, answer = :answer WHERE id = :id

-- name: list_acts
-- Acts, newest first.
SELECT id, at, token, action, subject, detail, peer, key, digest, status, answer
FROM acts
WHERE {conditions}
ORDER BY id DESC
LIMIT :limit

-- ==================== operations on many rows ====================
-- with: operation | columns
-- with: operation | id, kind, selection, rate, state, place, total, done, changed, requested_by, created_at, updated_at, due_at

-- name: insert_{operation}s
-- Writes operations.
INSERT INTO operations {insert: {columns}}

-- name: claim_{operation}
-- Takes the operation that has been due longest, of those that {conditions} choose, for :wait milliseconds.
UPDATE operations
SET due_at = CAST(:now AS BIGINT) + CAST(:wait AS BIGINT), updated_at = :at
WHERE id = (
    SELECT d.id
    FROM operations AS d
    WHERE d.due_at <= :now AND {conditions}
    ORDER BY d.due_at, d.id
    LIMIT 1
    {lock}
)
RETURNING {columns}

-- name: due_operations
-- One operation that may be taken.
SELECT id
FROM operations
WHERE due_at <= :now
LIMIT 1

-- name: advance_operation
-- Writes how far an operation has come, if it still runs and nobody else did this batch.
UPDATE operations
SET
    place = :place,
    done = done + CAST(:rows AS BIGINT),
    state = :state,
    due_at = CAST(:now AS BIGINT) + CAST(:wait AS BIGINT),
    updated_at = :at
WHERE id = :id AND state = 'running' AND place = :before
RETURNING id

-- name: count_operation
-- Counts rows that an operation has changed.
UPDATE operations SET changed = changed + CAST(:changed AS BIGINT) WHERE id = :id

-- name: change_operation
-- Runs or stops an operation that is not done.
UPDATE operations
SET
    state = :state,
    rate = COALESCE(CAST(:rate AS BIGINT), rate),
    due_at = CAST(:now AS BIGINT) + CAST(:wait AS BIGINT),
    updated_at = :at
WHERE id = :id AND state <> 'done'

-- name: list_{operation}s
-- Operations, newest first.
SELECT {columns}
FROM operations
WHERE {conditions}
ORDER BY id DESC
LIMIT :limit

-- ==================== counts by the minute, and processes ====================

-- name: add_tallies
-- Adds to counts.
INSERT INTO tallies {insert: minute, kind, name, outcome, count}
ON CONFLICT (minute, kind, name, outcome) DO UPDATE SET count = tallies.count + excluded.count

-- name: tallies_between
-- The counts of minutes and hours that began in a time, added up by steps of so many milliseconds.
SELECT at / :step * :step AS began, kind, name, outcome, CAST(SUM(count) AS BIGINT)
FROM (
    SELECT minute AS at, kind, name, outcome, count
    FROM tallies
    WHERE minute >= :since AND minute < :until
    UNION ALL
    SELECT hour, kind, name, outcome, count
    FROM tallies_by_hour
    WHERE hour >= :since AND hour < :until
) AS counts
GROUP BY began, kind, name, outcome
ORDER BY began, kind, name, outcome

-- name: forget_tallies
-- Removes the counts of minutes that began before a time, and returns them.
DELETE FROM tallies WHERE minute < :before RETURNING minute, kind, name, outcome, count

-- name: add_hours
-- Adds to the counts of hours.
INSERT INTO tallies_by_hour {insert: hour, kind, name, outcome, count}
ON CONFLICT (hour, kind, name, outcome) DO UPDATE SET count = tallies_by_hour.count + excluded.count

-- name: forget_hours
-- Removes the counts of hours that began before a time.
DELETE FROM tallies_by_hour WHERE hour < :before

-- name: note_processes
-- Notes that processes live.
INSERT INTO processes {insert: id, host, version, role, started_at, seen_at}
ON CONFLICT (id) DO UPDATE SET role = excluded.role, seen_at = excluded.seen_at

-- name: list_processes
-- The processes, those that began last first.
SELECT id, host, version, role, started_at, seen_at
FROM processes
ORDER BY started_at DESC, id DESC

-- name: forget_processes
-- Removes processes that were not seen since a time.
DELETE FROM processes WHERE seen_at < :before

-- ==================== schema and health ====================

-- name: ping
-- Changes a row of this process's own: the proof that the database can be written.
INSERT INTO pings (id, count) VALUES (:id, 1)
ON CONFLICT (id) DO UPDATE SET count = pings.count + 1
RETURNING id

-- name: create_migrations
-- Makes the table that lists what was applied.
CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY, applied_at BIGINT NOT NULL)

-- name: list_migrations
-- The migrations that were applied.
SELECT name FROM migrations ORDER BY name

-- name: insert_migration
-- Notes a migration that was applied.
INSERT INTO migrations (name, applied_at) VALUES (:name, :applied_at)

-- ==================== retention: what is looked at, and whether it stays ====================
-- Each walk goes along an index from :after, a batch at a time; the second column is true for what stays.

-- name: old_bodies
-- Callbacks that have a body; it stays while something of its event is under way.
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

-- name: old_audio
-- Events that link to an object; the link stays while a delivery is under way.
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

-- name: old_events
-- Events; one stays while a delivery or pickup of it is under way, and as long as its dead letters do.
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

-- name: old_callbacks
-- Callbacks; one stays while its event is there or awaited. Erased ones have a walk of their own.
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

-- name: old_pickups
-- Pickups; one stays until it has ended.
SELECT p.id, p.due_at IS NOT NULL OR p.updated_at >= :before
FROM (
    SELECT id, due_at, updated_at
    FROM pickups
    WHERE id > :after AND id < :bound
    ORDER BY id
    LIMIT :limit
) AS p
ORDER BY p.id

-- ==================== retention: attempts, which stay while their row is of use ====================
-- with: attempts        | key         | table      | of_use
-- with: attempts        | delivery_id | deliveries | deliveries.state <> 'delivered'
-- with: pickup_attempts | pickup_id   | pickups    | pickups.due_at IS NOT NULL

-- name: old_{attempts}
-- Rows that have attempts.
SELECT
    a.{key},
    EXISTS (
        SELECT 1
        FROM {table}
        WHERE {table}.id = a.{key} AND ({of_use} OR {table}.updated_at >= :before)
    )
FROM (
    SELECT DISTINCT {key}
    FROM {attempts}
    WHERE {key} > :after AND {key} < :bound
    ORDER BY {key}
    LIMIT :limit
) AS a
ORDER BY a.{key}

-- ==================== retention: what has an index by its time, and goes when that is up ====================
-- with: what              | from              | at          | still
-- with: dead_letters      | deliveries        | updated_at  | AND state = 'dead'
-- with: keys              | callbacks         | received_at | AND method = 'ERASED'
-- with: tokens            | callback_tokens   | expires_at  |
-- with: operations        | operations        | updated_at  | AND due_at IS NULL
-- with: rejected_requests | rejected_requests | at          |

-- name: old_{what}
-- Rows whose time is up: dead letters, callbacks of which only the keys were kept, and so on.
SELECT id, FALSE
FROM {from}
WHERE {at} < :before {still}
ORDER BY {at}, id
LIMIT :limit

-- ==================== retention: what is removed ====================
-- with: what            | from            | key         | still              | returned
-- with: attempts        | attempts        | delivery_id |                    | delivery_id
-- with: pickup_attempts | pickup_attempts | pickup_id   |                    | pickup_id
-- with: dead_letters    | deliveries      | id          | AND state = 'dead' | id
-- with: deliveries      | deliveries      | event_id    | AND due_at IS NULL | id
-- with: events          | events          | id          | AND NOT EXISTS (SELECT 1 FROM deliveries WHERE deliveries.event_id = events.id) | id, blob_key
-- with: callbacks       | callbacks       | id          |                    | id
-- with: pickups         | pickups         | id          | AND due_at IS NULL | id
-- with: tokens          | callback_tokens | id          |                    | id
-- with: submissions     | submissions     | id          | AND state <> 'open' | id
-- with: rejected_requests | rejected_requests | id      |                    | id
-- with: operations      | operations      | id          | AND due_at IS NULL | id

-- name: forget_{what}
-- Removes rows, and checks again whether they may go: another process may have begun one anew meanwhile.
WITH old {rows: id}
DELETE FROM {from}
WHERE {key} IN (SELECT id FROM old) {still}
RETURNING {returned}

-- name: forget_bodies
-- Removes the bodies of callbacks.
WITH old {rows: id}
UPDATE callbacks
SET body = NULL
WHERE id IN (SELECT id FROM old) AND body IS NOT NULL
RETURNING id

-- name: forget_audio
-- Removes events' links to objects.
WITH old {rows: id}
UPDATE events
SET blob_key = NULL
WHERE id IN (SELECT id FROM old) AND blob_key IS NOT NULL
RETURNING id

-- name: known_blobs
-- Which of these objects an event links to, once for each such event.
WITH wanted {rows: blob_key}
SELECT events.blob_key
FROM wanted
JOIN events ON events.blob_key = wanted.blob_key

-- ==================== erasure ====================

-- name: callbacks_between
-- Callbacks of some milliseconds: those that lead to events of the same.
SELECT id, source, idempotency_key, second_key, event_id, method
FROM callbacks
WHERE id >= :first AND id < :beyond

-- name: callbacks_of_pickups
-- Callbacks that have the key of a pickup.
WITH wanted {rows: source, key}
SELECT callbacks.id, callbacks.source, callbacks.idempotency_key, callbacks.second_key, callbacks.event_id, callbacks.method
FROM wanted
JOIN callbacks
    ON callbacks.source = wanted.source AND (callbacks.idempotency_key = wanted.key OR callbacks.second_key = wanted.key)

-- name: deliveries_of_events
-- Deliveries of these events.
WITH wanted {rows: event_id}
SELECT deliveries.id, deliveries.event_id, deliveries.destination, deliveries.state, deliveries.attempts
FROM wanted
JOIN deliveries ON deliveries.event_id = wanted.event_id

-- name: known_events
-- Which of these events are there.
WITH wanted {rows: id}
SELECT events.id
FROM wanted
JOIN events ON events.id = wanted.id

-- name: result_keys
-- The keys of those pickups that fetch a result.
WITH wanted {rows: id}
SELECT pickups.source, pickups.key, pickups.event_id
FROM wanted
JOIN pickups ON pickups.id = wanted.id
WHERE pickups.kind = 'result'

-- name: erase_deliveries
-- Removes the deliveries of events, under way or not.
WITH erased {rows: id}
DELETE FROM deliveries
WHERE event_id IN (SELECT id FROM erased)
RETURNING id

-- name: erase_callbacks
-- Leaves nothing of callbacks but their keys, so that what the provider sends again is a duplicate.
WITH erased {rows: id, received_at}
UPDATE callbacks
SET
    method = 'ERASED',
    content_type = '',
    received_at = CAST(erased.received_at AS BIGINT),
    body_size = 0,
    body_sha256 = '',
    body = NULL,
    proofs = '',
    arrival = NULL
FROM erased
WHERE callbacks.id = erased.id

-- name: add_tombstone
-- Notes how much was removed, added up over the batches of one erasure.
INSERT INTO tombstones {insert: id, kind, digest, erased_at, events, callbacks, deliveries, pickups, blobs,
    journal_entries}
ON CONFLICT (id) DO UPDATE SET
    events = tombstones.events + excluded.events,
    callbacks = tombstones.callbacks + excluded.callbacks,
    deliveries = tombstones.deliveries + excluded.deliveries,
    pickups = tombstones.pickups + excluded.pickups,
    blobs = tombstones.blobs + excluded.blobs,
    journal_entries = tombstones.journal_entries + excluded.journal_entries

-- name: list_tombstones
-- Tombstones, newest first.
SELECT id, kind, digest, erased_at, events, callbacks, deliveries, pickups, blobs, journal_entries
FROM tombstones
WHERE {conditions}
ORDER BY id DESC
LIMIT :limit

-- ==================== logins of the console ====================

-- name: end_login
-- Notes that a login, or all of a token's, ended.
INSERT INTO ended_logins (subject, at)
VALUES (:subject, :at)
ON CONFLICT (subject) DO UPDATE SET at = excluded.at

-- name: ended_login
-- Whether a login was ended.
SELECT subject
FROM ended_logins
WHERE subject = :id OR (subject = :everywhere AND at >= :issued_at)
LIMIT 1

-- name: forget_ended_logins
-- Removes the ends of logins that would be over by now.
DELETE FROM ended_logins
WHERE at < :before
