-- name: logs
SELECT log, gateway, epoch FROM log WHERE NOT staged;

-- name: insert_movement
INSERT INTO movement (log, seq, hlc, kind, sku, lot, quantity, source, destination, variance)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: balance
SELECT on_hand, moved, counted_hlc, counted_log, counted_seq, last_hlc, last_log, last_seq FROM balance
WHERE location = ? AND sku = ? AND lot = ?;

-- name: upsert_balance
INSERT OR REPLACE INTO balance
    (location, sku, lot, on_hand, moved, counted_hlc, counted_log, counted_seq, last_hlc, last_log, last_seq)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: count_before
-- The count that a replay of a cell can begin after.
SELECT m.hlc, m.log, m.seq, m.quantity
FROM movement AS m JOIN log AS l USING (log)
WHERE m.kind = 'count' AND m.sku = :sku AND m.destination = :location AND m.lot = :lot AND m.hlc <= :hlc
    AND (m.hlc, l.gateway, l.epoch, m.seq) < (:hlc, :gateway, :epoch, :seq)
ORDER BY m.hlc DESC, l.gateway DESC, l.epoch DESC, m.seq DESC
LIMIT 1;

-- name: cell_history
-- What happened in a cell from a clock reading on, in the order of the site's entries.
SELECT m.hlc, m.log, m.seq, m.kind, m.quantity, m.source, m.variance
FROM movement AS m JOIN log AS l USING (log)
WHERE m.sku = :sku AND m.lot = :lot AND (m.source = :location OR m.destination = :location) AND m.hlc >= :hlc
ORDER BY m.hlc, l.gateway, l.epoch, m.seq;

-- name: last_movement
SELECT m.hlc, m.log, m.seq
FROM movement AS m JOIN log AS l USING (log)
WHERE m.sku = :sku AND m.lot = :lot AND (m.source = :location OR m.destination = :location) AND m.kind <> 'count'
ORDER BY m.hlc DESC, l.gateway DESC, l.epoch DESC, m.seq DESC
LIMIT 1;

-- name: set_variance
UPDATE movement SET variance = ? WHERE log = ? AND seq = ?;

-- name: movement_row
SELECT hlc, kind, sku, lot, quantity, source, destination, variance FROM movement WHERE log = ? AND seq = ?;

-- name: delete_movement
DELETE FROM movement WHERE log = ? AND seq = ?;

-- name: entries_that_count
-- The ledger's own entries without those that the cloud has rejected.
SELECT 0, seq, body FROM entry
WHERE seq NOT IN (SELECT seq FROM verdict WHERE stream = 'ledger') ORDER BY seq;

-- name: site_entries
SELECT s.log, s.seq, s.body FROM site_entry AS s JOIN log USING (log) WHERE NOT staged ORDER BY s.log, s.seq;

-- name: insert_seen_elsewhere
INSERT OR IGNORE INTO seen (device, event, seq, log) VALUES (?, ?, ?, ?);

-- name: clear_balance
DELETE FROM balance;

-- name: clear_movement
DELETE FROM movement;

-- name: clear_late
DELETE FROM late;

-- name: derive_late
INSERT INTO late (seq, run)
SELECT seq, min(seq) OVER (PARTITION BY island)
FROM (
    SELECT seq, seq - row_number() OVER (ORDER BY seq) AS island FROM entry
    WHERE json_extract(body, '$.late_ms') IS NOT NULL
);

-- name: clear_seen
DELETE FROM seen;

-- name: rejected_entries
SELECT seq, body FROM entry WHERE seq IN (SELECT seq FROM verdict WHERE stream = 'ledger') ORDER BY seq;
