-- name: following
-- The stored count after each of some keys, by the key's place from 0; a key after which there is none is left out.
SELECT t.place - 1, next.count_id, next.quantity, next.variance, next.hlc, next.gateway_name, next.epoch, next.seq
FROM unnest(
    %(locations)s::bigint[], %(items)s::bigint[], %(lots)s::bigint[], %(hlcs)s::bigint[], %(gateways)s::text[],
    %(epochs)s::text[], %(seqs)s::bigint[]
) WITH ORDINALITY AS t (location_id, item_id, lot_id, hlc, gateway_name, epoch, seq, place)
CROSS JOIN LATERAL (
    SELECT c.count_id, c.quantity, c.variance, c.hlc, c.gateway_name, c.epoch, c.seq
    FROM count c
    WHERE (c.location_id, c.item_id, c.lot_id) = (t.location_id, t.item_id, t.lot_id)
        AND (c.hlc, c.gateway_name, c.epoch, c.seq)
            > (t.hlc, t.gateway_name COLLATE "C", t.epoch COLLATE "C", t.seq)
    ORDER BY c.hlc, c.gateway_name, c.epoch, c.seq
    LIMIT 1
) AS next

-- name: cells
-- Balances of some cells with their hours: the sum, the first and the last.
WITH wanted AS (
    SELECT * FROM unnest(%(locations)s::bigint[], %(items)s::bigint[], %(lots)s::bigint[]) AS t (location_id, item_id, lot_id)
), hour AS (
    SELECT h.location_id, h.item_id, h.lot_id, h.hour, h.moved FROM wanted JOIN cell_history h USING (location_id, item_id, lot_id)
    UNION ALL
    SELECT location_id, item_id, lot_id, hour, moved FROM cell_history_new WHERE location_id = ANY(%(locations)s::integer[])
), summed AS (
    SELECT location_id, item_id, lot_id, sum(moved)::bigint AS moved, min(hour) AS first, max(hour) AS last
    FROM hour
    GROUP BY location_id, item_id, lot_id
)
SELECT b.location_id, b.item_id, b.lot_id, b.on_hand, b.moved, b.history_whole, coalesce(h.moved, 0),
    coalesce(h.first, 0), coalesce(h.last, 0)
FROM wanted
JOIN balance b USING (location_id, item_id, lot_id)
LEFT JOIN summed h USING (location_id, item_id, lot_id)

-- name: lock_history
-- What folds history into this table waits, and so does another merge that makes some again; reading goes on.
LOCK TABLE cell_history IN SHARE ROW EXCLUSIVE MODE

-- name: forget_history
WITH cell AS (
    SELECT * FROM unnest(%(locations)s::bigint[], %(items)s::bigint[], %(lots)s::bigint[]) AS t (location_id, item_id, lot_id)
), folded AS (
    DELETE FROM cell_history h USING cell t
    WHERE (h.location_id, h.item_id, h.lot_id) = (t.location_id, t.item_id, t.lot_id)
)
DELETE FROM cell_history_new h USING cell t
WHERE (h.location_id, h.item_id, h.lot_id) = (t.location_id, t.item_id, t.lot_id)

-- name: make_history
INSERT INTO cell_history (location_id, item_id, lot_id, hour, at_hour, known_hour, moved)
SELECT t.location_id, t.item_id, t.lot_id, m.hlc / %(hour_of_hlc)s, floor(extract(epoch FROM m.at) / 3600), -1, sum(m.quantity)
FROM unnest(%(locations)s::bigint[], %(items)s::bigint[], %(lots)s::bigint[]) AS t (location_id, item_id, lot_id)
CROSS JOIN LATERAL (
    SELECT at, hlc, quantity FROM movement
    WHERE kind NOT IN (2, 4, 6) AND destination_id = t.location_id AND item_id = t.item_id AND lot_id = t.lot_id
    UNION ALL
    SELECT at, hlc, -quantity FROM movement
    WHERE kind NOT IN (1, 5) AND source_id = t.location_id AND item_id = t.item_id AND lot_id = t.lot_id
) AS m
GROUP BY 1, 2, 3, 4, 5

-- name: set_whole
UPDATE balance b
SET history_whole = true
FROM unnest(%(locations)s::bigint[], %(items)s::bigint[], %(lots)s::bigint[]) AS t (location_id, item_id, lot_id)
WHERE (b.location_id, b.item_id, b.lot_id) = (t.location_id, t.item_id, t.lot_id)

-- name: hours
-- What was moved in the whole hours between two, by the range's place from 0.
WITH range AS (
    SELECT *
    FROM unnest(
        %(locations)s::bigint[], %(items)s::bigint[], %(lots)s::bigint[], %(after)s::bigint[], %(before)s::bigint[]
    ) WITH ORDINALITY AS r (location_id, item_id, lot_id, after, before, place)
), hour AS (
    SELECT r.place, h.moved
    FROM range r
    JOIN cell_history h ON (h.location_id, h.item_id, h.lot_id) = (r.location_id, r.item_id, r.lot_id)
        AND h.hour > r.after AND h.hour < r.before
    UNION ALL
    SELECT r.place, h.moved
    FROM (SELECT * FROM cell_history_new WHERE location_id = ANY(%(locations)s::integer[])) AS h
    JOIN range r ON (h.location_id, h.item_id, h.lot_id) = (r.location_id, r.item_id, r.lot_id)
        AND h.hour > r.after AND h.hour < r.before
)
SELECT place - 1, sum(moved)::bigint FROM hour GROUP BY place

-- name: moved
-- What was moved in some ranges of cells, each after one key and before another: entries with a clock between theirs, and
-- of those with the same clock as one of them the ones that the whole key puts inside.
WITH range AS (
    SELECT *
    FROM unnest(
        %(locations)s::bigint[], %(items)s::bigint[], %(lots)s::bigint[], %(after_hlcs)s::bigint[],
        %(after_gateways)s::text[], %(after_epochs)s::text[], %(after_seqs)s::bigint[], %(before_hlcs)s::bigint[],
        %(before_gateways)s::text[], %(before_epochs)s::text[], %(before_seqs)s::bigint[]
    ) WITH ORDINALITY AS t (
        location_id, item_id, lot_id, after_hlc, after_gateway, after_epoch, after_seq, before_hlc, before_gateway,
        before_epoch, before_seq, place
    )
)
SELECT r.place - 1, (coalesce(came.quantity, 0) - coalesce(went.quantity, 0) + coalesce(tied.quantity, 0))::bigint
FROM range r
CROSS JOIN LATERAL (
    SELECT sum(m.quantity) AS quantity FROM movement m
    WHERE m.kind NOT IN (2, 4, 6) AND m.destination_id = r.location_id AND m.item_id = r.item_id AND m.lot_id = r.lot_id
        AND m.hlc > r.after_hlc AND m.hlc < r.before_hlc
) AS came
CROSS JOIN LATERAL (
    SELECT sum(m.quantity) AS quantity FROM movement m
    WHERE m.kind NOT IN (1, 5) AND m.source_id = r.location_id AND m.item_id = r.item_id AND m.lot_id = r.lot_id
        AND m.hlc > r.after_hlc AND m.hlc < r.before_hlc
) AS went
CROSS JOIN LATERAL (
    SELECT sum(m.quantity) AS quantity
    FROM (
        SELECT hlc, gateway_id, epoch_id, seq, quantity FROM movement
        WHERE kind NOT IN (2, 4, 6) AND destination_id = r.location_id AND item_id = r.item_id AND lot_id = r.lot_id
            AND hlc = ANY(ARRAY[r.after_hlc, r.before_hlc])
        UNION ALL
        SELECT hlc, gateway_id, epoch_id, seq, -quantity FROM movement
        WHERE kind NOT IN (1, 5) AND source_id = r.location_id AND item_id = r.item_id AND lot_id = r.lot_id
            AND hlc = ANY(ARRAY[r.after_hlc, r.before_hlc])
    ) AS m
    JOIN gateway g USING (gateway_id)
    JOIN epoch e ON e.epoch_id = m.epoch_id
    WHERE (m.hlc, g.name, e.ulid, m.seq)
            > (r.after_hlc, r.after_gateway COLLATE "C", r.after_epoch COLLATE "C", r.after_seq)
        AND (m.hlc, g.name, e.ulid, m.seq)
            < (r.before_hlc, r.before_gateway COLLATE "C", r.before_epoch COLLATE "C", r.before_seq)
) AS tied

-- name: set_variances
UPDATE count c
SET variance = t.variance
FROM unnest(%(counts)s::bigint[], %(variances)s::bigint[]) AS t (count_id, variance)
WHERE c.count_id = t.count_id

-- name: set_balances
-- Cells in which a new count is the latest.
UPDATE balance b
SET on_hand = b.on_hand + t.added, counted_hlc = t.counted_hlc
FROM unnest(
    %(locations)s::bigint[], %(items)s::bigint[], %(lots)s::bigint[], %(added)s::bigint[], %(counted_hlcs)s::bigint[]
) AS t (location_id, item_id, lot_id, added, counted_hlc)
WHERE (b.location_id, b.item_id, b.lot_id) = (t.location_id, t.item_id, t.lot_id)

-- name: fold_history
-- In key order, as every writer of hours does it.
WITH taken AS (
    DELETE FROM cell_history_new
    WHERE ctid = ANY(ARRAY(SELECT ctid FROM cell_history_new LIMIT %(rows)s FOR UPDATE SKIP LOCKED))
    RETURNING location_id, item_id, lot_id, hour, at_hour, known_hour, moved
), folded AS (
    INSERT INTO cell_history AS h (location_id, item_id, lot_id, hour, at_hour, known_hour, moved)
    SELECT location_id, item_id, lot_id, hour, at_hour, known_hour, sum(moved)
    FROM taken
    GROUP BY location_id, item_id, lot_id, hour, at_hour, known_hour
    ORDER BY location_id, item_id, lot_id, hour, at_hour, known_hour
    ON CONFLICT (location_id, item_id, lot_id, hour, at_hour, known_hour) DO UPDATE SET moved = h.moved + excluded.moved
)
SELECT count(*) FROM taken

-- name: insert
-- Counts whose variances are known.
INSERT INTO count (
    at, hlc, seq, quantity, variance, device_at, claimed_ms, tenant_id, gateway_id, epoch_id, item_id, lot_id,
    location_id, device_id, gateway_name, epoch, serial, event, actor, reference
)
SELECT *
FROM unnest(
    %(at)s::timestamptz[], %(hlc)s::bigint[], %(seq)s::bigint[], %(quantity)s::bigint[], %(variance)s::bigint[],
    %(device_at)s::timestamptz[], %(claimed_ms)s::bigint[], %(tenant_id)s::integer[], %(gateway_id)s::integer[],
    %(epoch_id)s::integer[], %(item_id)s::integer[], %(lot_id)s::integer[], %(location_id)s::integer[],
    %(device_id)s::integer[], %(gateway_name)s::text[], %(epoch)s::text[], %(serial)s::text[], %(event)s::text[],
    %(actor)s::text[], %(reference)s::text[]
)
