-- name: book
-- Adds to cells in key order and returns the ones that a count may concern: those that are counted now, of those that
-- were counted before the ones that are late or were counted at `recent_hlc` or later; and those out of their domain. The
-- row locks are held to the end of the transaction, so whatever history is read after this is complete for these cells.
WITH booked AS (
    INSERT INTO balance AS b (location_id, item_id, lot_id, on_hand, moved, last_hlc, history_whole)
    SELECT location_id, item_id, lot_id, on_hand, moved, last_hlc, true
    FROM unnest(
        %(locations)s::bigint[], %(items)s::bigint[], %(lots)s::bigint[], %(on_hand)s::bigint[],
        %(moved)s::bigint[], %(last_hlc)s::bigint[]
    ) AS t (location_id, item_id, lot_id, on_hand, moved, last_hlc)
    ORDER BY location_id, item_id, lot_id
    ON CONFLICT (location_id, item_id, lot_id) DO UPDATE
    SET on_hand = b.on_hand + excluded.on_hand, moved = b.moved + excluded.moved,
        last_hlc = greatest(b.last_hlc, excluded.last_hlc)
    RETURNING location_id, item_id, lot_id, on_hand, moved, counted_hlc, last_hlc
)
SELECT location_id, item_id, lot_id, on_hand, moved, counted_hlc, last_hlc
FROM booked
WHERE counted_hlc >= %(recent_hlc)s OR greatest(@on_hand, @moved) > %(balance_max)s
    OR (counted_hlc IS NOT NULL AND (location_id, item_id, lot_id) IN (
        SELECT * FROM unnest(%(late_locations)s::bigint[], %(late_items)s::bigint[], %(late_lots)s::bigint[])))
    OR (location_id, item_id, lot_id) IN (
        SELECT * FROM unnest(%(counted_locations)s::bigint[], %(counted_items)s::bigint[], %(counted_lots)s::bigint[]))

-- name: settle
-- The end of a cell whose new entries are all later than what it had: computed beside the database, written here.
UPDATE balance b
SET on_hand = t.on_hand, counted_hlc = t.counted_hlc, last_hlc = t.last_hlc
FROM unnest(
    %(locations)s::bigint[], %(items)s::bigint[], %(lots)s::bigint[], %(on_hand)s::bigint[],
    %(counted_hlc)s::bigint[], %(last_hlc)s::bigint[]
) AS t (location_id, item_id, lot_id, on_hand, counted_hlc, last_hlc)
WHERE (b.location_id, b.item_id, b.lot_id) = (t.location_id, t.item_id, t.lot_id)

-- name: cover_late
-- Movements that are perhaps earlier than a count already taken. Each belongs to the first count after it: it changes
-- that count's variance and is taken back from on hand, where `book` has put it. Returns what was taken back.
WITH late AS (
    SELECT *
    FROM unnest(
        %(locations)s::bigint[], %(items)s::bigint[], %(lots)s::bigint[], %(hlcs)s::bigint[], %(gateways)s::text[],
        %(epochs)s::text[], %(seqs)s::bigint[], %(quantities)s::bigint[]
    ) AS t (location_id, item_id, lot_id, hlc, gateway_name, epoch, seq, quantity)
), covered AS (
    SELECT late.*, next.count_id
    FROM late
    CROSS JOIN LATERAL (
        SELECT c.count_id
        FROM count c
        WHERE (c.location_id, c.item_id, c.lot_id) = (late.location_id, late.item_id, late.lot_id)
            AND (c.hlc, c.gateway_name, c.epoch, c.seq)
                > (late.hlc, late.gateway_name COLLATE "C", late.epoch COLLATE "C", late.seq)
        ORDER BY c.hlc, c.gateway_name, c.epoch, c.seq
        LIMIT 1
    ) AS next
), variances AS (
    UPDATE count c
    SET variance = c.variance - s.quantity
    FROM (SELECT count_id, sum(quantity) AS quantity FROM covered GROUP BY count_id) AS s
    WHERE c.count_id = s.count_id
), cells AS (
    SELECT location_id, item_id, lot_id, sum(quantity) AS quantity FROM covered GROUP BY location_id, item_id, lot_id
)
UPDATE balance b
SET on_hand = b.on_hand - cells.quantity
FROM cells
WHERE (b.location_id, b.item_id, b.lot_id) = (cells.location_id, cells.item_id, cells.lot_id)
RETURNING b.location_id, b.item_id, b.lot_id, cells.quantity::bigint

-- name: raise_last
UPDATE balance b
SET last_hlc = greatest(b.last_hlc, t.last_hlc)
FROM unnest(
    %(locations)s::bigint[], %(items)s::bigint[], %(lots)s::bigint[], %(last_hlcs)s::bigint[]
) AS t (location_id, item_id, lot_id, last_hlc)
WHERE (b.location_id, b.item_id, b.lot_id) = (t.location_id, t.item_id, t.lot_id)
