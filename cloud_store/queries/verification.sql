-- name: sites
SELECT t.name, s.name, s.site_id
FROM site s JOIN tenant t USING (tenant_id)
WHERE t.name = %(tenant)s AND (%(site)s::text IS NULL OR s.name = %(site)s)
ORDER BY s.name

-- name: entry_count
SELECT coalesce(sum(c.seq), 0)::bigint FROM stream_cursor c JOIN gateway g USING (gateway_id)
WHERE g.site_id = %(site_id)s AND c.stream = 1

-- name: entries
-- Every entry of a site in the order of its key, by ids. A movement has no count_id.
SELECT m.hlc, g.name, e.ulid, m.seq, m.item_id, m.lot_id, m.quantity, m.source_id, m.destination_id,
    NULL::bigint AS count_id, NULL::bigint AS variance
FROM movement m JOIN gateway g USING (gateway_id) JOIN epoch e USING (epoch_id)
WHERE g.site_id = %(site_id)s
UNION ALL
SELECT c.hlc, g.name, e.ulid, c.seq, c.item_id, c.lot_id, c.quantity, NULL, c.location_id, c.count_id, c.variance
FROM count c JOIN gateway g USING (gateway_id) JOIN epoch e USING (epoch_id)
WHERE g.site_id = %(site_id)s
ORDER BY 1, 2, 3, 4

-- name: balances
SELECT b.location_id, b.item_id, b.lot_id, b.on_hand, b.moved, coalesce(b.counted_hlc, -1), b.last_hlc
FROM balance b JOIN location l USING (location_id)
WHERE l.site_id = %(site_id)s

-- name: adjust
SELECT location_id FROM location WHERE site_id = %(site_id)s AND name = '@adjust'

-- name: names
SELECT l.name, i.sku, lot.name
FROM location l, item i, lot
WHERE l.location_id = %(location_id)s AND i.item_id = %(item_id)s AND lot.lot_id = %(lot_id)s

-- name: set_balance
INSERT INTO balance (location_id, item_id, lot_id, on_hand, moved, counted_hlc, last_hlc)
VALUES (%(location_id)s, %(item_id)s, %(lot_id)s, %(on_hand)s, %(moved)s, nullif(%(counted_hlc)s, -1), %(last_hlc)s)
ON CONFLICT (location_id, item_id, lot_id) DO UPDATE
SET on_hand = excluded.on_hand, moved = excluded.moved, counted_hlc = excluded.counted_hlc, last_hlc = excluded.last_hlc

-- name: forget_history
-- It is made again when it is needed.
WITH cell AS (
    UPDATE balance b SET history_whole = false FROM location l
    WHERE l.location_id = b.location_id AND l.site_id = %(site_id)s AND b.history_whole
), folded AS (
    DELETE FROM cell_history h USING location l WHERE l.location_id = h.location_id AND l.site_id = %(site_id)s
)
DELETE FROM cell_history_new h USING location l WHERE l.location_id = h.location_id AND l.site_id = %(site_id)s

-- name: delete_balance
DELETE FROM balance WHERE location_id = %(location_id)s AND item_id = %(item_id)s AND lot_id = %(lot_id)s

-- name: set_variance
UPDATE count SET variance = %(variance)s WHERE count_id = %(count_id)s
