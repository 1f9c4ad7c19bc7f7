-- name: lock
SELECT site_id, position, digest FROM site_digest WHERE site_id = ANY(%(sites)s::integer[]) ORDER BY site_id FOR UPDATE

-- name: create_missing
-- A new site needs a row to lock: of two workers that meet it at once, the second waits here for the first.
INSERT INTO site_digest (site_id) SELECT unnest(%(sites)s::integer[]) ORDER BY 1 ON CONFLICT DO NOTHING

-- name: store
UPDATE site_digest d
SET position = t.position, digest = t.digest, recent = (ARRAY[t.position, t.digest] || d.recent)[1:%(kept)s]
FROM unnest(%(sites)s::integer[], %(positions)s::bigint[], %(digests)s::bigint[]) AS t (site_id, position, digest)
WHERE d.site_id = t.site_id

-- name: logs
-- Where the ledger logs of some sites stand, once those of this transaction have moved.
SELECT g.site_id, g.name, c.epoch, c.seq
FROM stream_cursor c JOIN gateway g USING (gateway_id)
WHERE g.site_id = ANY(%(sites)s::integer[]) AND c.stream = 1

-- name: balances
SELECT l.name, i.sku, lot.name, b.on_hand
FROM balance b
JOIN location l USING (location_id)
JOIN item i USING (item_id)
JOIN lot ON lot.lot_id = b.lot_id
WHERE l.site_id = %(site_id)s AND b.on_hand <> 0

-- name: of_gateway
SELECT g.site_id, d.position, d.digest, d.recent,
    d.scanned_at IS NULL OR d.scanned_at < now() - %(scan_s)s * interval '1 second' AS scan_due,
    d.damaged
FROM gateway g JOIN site_digest d USING (site_id)
WHERE g.name = %(gateway)s AND g.state = 'active' AND d.digest IS NOT NULL

-- name: site
SELECT t.name, s.name FROM site s JOIN tenant t USING (tenant_id) WHERE s.site_id = %(site_id)s

-- name: scanned
UPDATE site_digest SET scanned_at = now(), damaged = %(damaged)s WHERE site_id = %(site_id)s

-- name: proved
UPDATE gateway_status s
SET stock_proved_at = CASE WHEN %(differs)s THEN s.stock_proved_at ELSE now() END, stock_differs = %(differs)s
FROM gateway g
WHERE g.gateway_id = s.gateway_id AND g.name = %(gateway)s
