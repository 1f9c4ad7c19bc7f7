-- name: tail
-- The last entry: where the sequence, the clock and the digest chain go on.
SELECT seq, hlc, digest FROM entry ORDER BY seq DESC LIMIT 1;

-- name: insert_entry
INSERT INTO entry (seq, hlc, body, digest) VALUES (?, ?, ?, ?);

-- name: insert_seen
-- A repeated event id changes nothing; rowcount tells.
INSERT OR IGNORE INTO seen (device, event, seq) VALUES (?, ?, ?);

-- name: insert_movement
INSERT INTO movement (seq, hlc, kind, sku, lot, quantity, source, destination, variance)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: balance
SELECT on_hand, moved, counted_hlc, counted_seq, last_hlc, last_seq FROM balance
WHERE location = ? AND sku = ? AND lot = ?;

-- name: upsert_balance
INSERT OR REPLACE INTO balance
    (location, sku, lot, on_hand, moved, counted_hlc, counted_seq, last_hlc, last_seq)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: reading_tail
SELECT id, hlc FROM reading ORDER BY id DESC LIMIT 1;

-- name: insert_reading
INSERT OR IGNORE INTO reading (hlc, device, event, body) VALUES (?, ?, ?, ?);

-- name: insert_dead_letter
INSERT INTO dead_letter (at_ms, topic, payload, reason) VALUES (?, ?, ?, ?);

-- name: trim_dead_letters
-- Keep the newest: the bound is on how many there are, not on how long.
DELETE FROM dead_letter WHERE id <= (SELECT max(id) FROM dead_letter) - ?;

-- name: delete_dead_letter
DELETE FROM dead_letter WHERE id = ?;

-- name: count_up
INSERT INTO counter (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value;

-- name: insert_boot
INSERT OR IGNORE INTO boot (boot, first_ms) VALUES (?, ?);

-- name: set_boot_offset
UPDATE boot SET offset_ms = ? WHERE boot = ?;

-- name: insert_device
INSERT INTO device (name, kind) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET kind = excluded.kind;

-- name: delete_device
DELETE FROM device WHERE name = ?;

-- name: device_status
UPDATE device SET state = ?, seen_ms = ? WHERE name = ?;

-- name: set_meta
INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?);

-- name: all_entries
SELECT seq, hlc, body, digest FROM entry ORDER BY seq;

-- name: oldest_readings
-- Thin first: every other of the oldest readings that are already in a frame, then the oldest whatever they are.
SELECT id FROM reading WHERE id <= ? ORDER BY id LIMIT ?;

-- name: delete_readings_to
DELETE FROM reading WHERE id <= ?;

-- name: thin_readings_to
-- Every other reading of the older half goes, so that a long outage keeps its outline.
DELETE FROM reading WHERE id > ? AND id <= ? AND id % 2 = 1;

-- name: reading_extent
SELECT count(*), coalesce(min(id), 0), coalesce(max(id), 0) FROM reading;
