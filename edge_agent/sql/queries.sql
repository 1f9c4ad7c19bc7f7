-- name: meta
SELECT key, value FROM meta;

-- name: stock
-- On hand of shelves, zero cells included when they were ever used, so that an empty shelf is seen as empty.
SELECT sku, location, lot, on_hand, counted_hlc FROM balance
WHERE (:sku IS NULL OR sku = :sku)
  AND (:location IS NULL OR location = :location)
  AND (:virtual OR location NOT LIKE '@%')
  AND (:zero OR on_hand <> 0)
ORDER BY sku, location, lot
LIMIT :limit;

-- name: history
SELECT m.seq, m.hlc, m.kind, m.sku, m.lot, m.quantity, m.source, m.destination, m.variance,
       e.body, v.reason AS verdict, m.seq <= (SELECT acked_seq FROM stream WHERE name = 'ledger') AS in_cloud
FROM movement AS m
JOIN entry AS e USING (seq)
LEFT JOIN verdict AS v ON v.stream = 'ledger' AND v.seq = m.seq
WHERE (:sku IS NULL OR m.sku = :sku)
  AND (:location IS NULL OR m.source = :location OR m.destination = :location)
ORDER BY m.seq DESC
LIMIT :limit;

-- name: readings
SELECT id, hlc, device, body FROM reading
WHERE (:device IS NULL OR device = :device)
ORDER BY id DESC
LIMIT :limit;

-- name: devices
SELECT name, kind, state, seen_ms FROM device ORDER BY name;

-- name: device_known
SELECT 1 FROM device WHERE name = ?;

-- name: dead_letters
SELECT id, at_ms, topic, payload, reason FROM dead_letter ORDER BY id LIMIT :limit;

-- name: dead_letter_count
SELECT count(*) FROM dead_letter;

-- name: verdict_count
SELECT count(*) FROM verdict;

-- name: counters
SELECT name, value FROM counter ORDER BY name;

-- name: entry_count
SELECT coalesce(max(seq), 0) FROM entry;

-- name: below_zero
-- Shelves with less than nothing: something was not booked, and a count is due.
SELECT count(*) FROM balance WHERE on_hand < 0 AND location NOT LIKE '@%';

-- name: online_devices
SELECT count(*) FROM device WHERE state = 'online';

-- name: export
SELECT seq, body FROM entry WHERE seq > ? ORDER BY seq;

-- name: all_balances
SELECT location, sku, lot, on_hand, moved, counted_hlc, counted_seq, last_hlc, last_seq FROM balance
ORDER BY location, sku, lot;

-- name: all_frames
SELECT stream, frame, first_seq, entries, digest, body FROM frame ORDER BY stream, frame;

-- name: all_movements
SELECT seq, hlc, kind, sku, lot, quantity, source, destination, variance FROM movement ORDER BY seq;

-- name: all_seen
SELECT device, event, seq FROM seen ORDER BY seq;

-- name: variance
SELECT variance FROM movement WHERE seq = ?;

-- name: clear_balance
DELETE FROM balance;

-- name: clear_movement
DELETE FROM movement;

-- name: clear_seen
DELETE FROM seen;
