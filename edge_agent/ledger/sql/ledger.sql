-- name: tail
-- The last entry: where the sequence, the clock and the digest chain go on.
SELECT seq, hlc, digest FROM entry ORDER BY seq DESC LIMIT 1;

-- name: note_latest
-- The own log's latest clock reading, where the last entry came late and has an earlier one.
UPDATE log SET hlc = max(hlc, ?) WHERE log = 0;

-- name: noted_latest
SELECT hlc FROM log WHERE log = 0;

-- name: recorded
-- When an entry was recorded: boot, monotonic clock, and the time by its clock reading.
SELECT json_extract(body, '$.boot'), json_extract(body, '$.mono_ms'),
    (hlc >> 16) + coalesce(json_extract(body, '$.late_ms'), 0)
FROM entry WHERE seq = ?;

-- name: on_time_before
-- The last entry before a number that was not delivered late.
SELECT hlc, seq FROM entry WHERE seq = coalesce((SELECT run FROM late WHERE seq = :seq - 1), :seq) - 1;

-- name: reading_near
-- The clock reading of a moment of this boot, by its monotonic clock: that of the last entry that was recorded on time
-- before, or else of the one before, which came late itself, or of the one after.
SELECT hlc, json_extract(body, '$.mono_ms') - coalesce(json_extract(body, '$.late_ms'), 0)
FROM entry
WHERE seq IN (:before, :seq, :seq - 1) AND json_extract(body, '$.boot') = :boot
ORDER BY seq = :before DESC, seq LIMIT 1;

-- name: on_time_from
-- The first entry from a number on that was not.
SELECT hlc FROM entry
WHERE seq = coalesce((SELECT max(seq) + 1 FROM late WHERE run = (SELECT run FROM late WHERE seq = :seq)), :seq);

-- name: insert_late
INSERT INTO late (seq, run) VALUES (:seq, coalesce((SELECT run FROM late WHERE seq = :seq - 1), :seq));

-- name: insert_entry
INSERT INTO entry (seq, hlc, body, digest) VALUES (?, ?, ?, ?);

-- name: insert_seen
-- A repeated event id changes nothing; rowcount tells.
INSERT OR IGNORE INTO seen (device, event, seq) VALUES (?, ?, ?);

-- name: seen_entry
-- What a device's event id stands for; no body where its entry is not here any more.
SELECT coalesce(e.body, s.body) FROM seen
LEFT JOIN entry AS e ON seen.log = 0 AND e.seq = seen.seq
LEFT JOIN site_entry AS s ON s.log = seen.log AND s.seq = seen.seq
WHERE seen.device = ? AND seen.event = ?;

-- name: kept_reading
SELECT body FROM reading WHERE device = ? AND event = ?;

-- name: reading_tail
SELECT id, hlc FROM reading ORDER BY id DESC LIMIT 1;

-- name: insert_reading
INSERT OR IGNORE INTO reading (hlc, device, event, body) VALUES (?, ?, ?, ?);

-- name: insert_dead_letter
INSERT INTO dead_letter (at_ms, topic, payload, reason, boot, mono_ms) VALUES (?, ?, ?, ?, ?, ?);

-- name: trim_dead_letters
-- Keep the newest of each topic, which has its device in it, and of what is left the newest: a device that is wrong
-- without end pushes out its own only.
DELETE FROM dead_letter
WHERE id NOT IN (
    SELECT id
    FROM (SELECT id, row_number() OVER (PARTITION BY topic ORDER BY id DESC) AS place FROM dead_letter)
    WHERE place <= :of_topic_max
    ORDER BY id DESC
    LIMIT :of_all_max
);

-- name: delete_dead_letter
DELETE FROM dead_letter WHERE id = ?;

-- name: count_up
INSERT INTO counter (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value;

-- name: insert_boot
INSERT OR IGNORE INTO boot (boot, first_ms) VALUES (?, ?);

-- name: set_boot_zero
UPDATE boot SET zero_ms = ? WHERE boot = ?;

-- name: boot_zero
SELECT zero_ms FROM boot WHERE boot = ?;

-- name: insert_own_log
INSERT INTO log (log, gateway, epoch) VALUES (?, ?, ?);

-- name: observed
SELECT coalesce(max(hlc), 0) FROM log
WHERE hlc <= ? OR gateway = (SELECT gateway FROM log WHERE log = 0);

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

-- name: reading_count
SELECT count(*) FROM reading;

-- name: drop_sealed_readings
-- The oldest readings that are in a frame already: nothing is lost with them.
DELETE FROM reading WHERE id IN (
    SELECT id FROM reading WHERE id <= (SELECT source_id FROM stream WHERE name = 'readings') ORDER BY id LIMIT ?
);

-- name: thin_waiting_readings
-- Every other one of the oldest waiting readings: done again and again, a long outage keeps its outline.
DELETE FROM reading WHERE id IN (
    SELECT id FROM (
        SELECT id, row_number() OVER (ORDER BY id) AS nth FROM reading
        WHERE id > (SELECT source_id FROM stream WHERE name = 'readings') ORDER BY id LIMIT 2 * ?
    ) WHERE nth % 2 = 1
);

-- name: migrations_made
-- In a ledger that does not state its version yet.
SELECT count(*) FROM _sqlite_migrations WHERE migration_set = 'stocktide.edge';
