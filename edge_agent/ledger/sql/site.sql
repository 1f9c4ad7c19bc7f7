-- name: log
SELECT log, frame, seq, digest, hlc FROM log WHERE gateway = ? AND epoch = ? AND staged = ? AND log > 0;

-- name: insert_log
INSERT INTO log (gateway, epoch, staged, frame, seq, digest) VALUES (?, ?, ?, ?, ?, ?);

-- name: advance_log
UPDATE log SET frame = ?, seq = ?, digest = ?, hlc = max(hlc, ?) WHERE log = ?;

-- name: insert_site_entry
INSERT INTO site_entry (log, seq, hlc, at_ms, body) VALUES (?, ?, ?, ?, ?);

-- name: known_logs
SELECT gateway, epoch, frame, seq FROM log WHERE log > 0 AND NOT staged;

-- name: own_log
SELECT gateway, epoch FROM log WHERE log = 0;

-- name: known_with_staged
SELECT gateway, epoch, frame, seq, frame > 0 AND digest = '' FROM log WHERE log > 0;

-- name: staged_entries
SELECT seq, body FROM site_entry WHERE log = ? AND seq > ? ORDER BY seq;

-- name: entries_after
SELECT seq, body FROM entry WHERE seq > ? ORDER BY seq;

-- name: copy_entries
-- What is in the cloud of this ledger's own log, without what it has rejected, becomes an older log. Its true time is
-- the boot's where that is known.
INSERT INTO site_entry (log, seq, hlc, at_ms, body)
SELECT :log, e.seq, e.hlc,
    coalesce(
        t.at_ms,
        b.zero_ms + json_extract(e.body, '$.mono_ms') - coalesce(json_extract(e.body, '$.late_ms'), 0),
        e.hlc >> 16
    ), e.body
FROM entry AS e
LEFT JOIN boot AS b ON b.boot = json_extract(e.body, '$.boot')
LEFT JOIN bounded AS t ON t.stream = 'ledger' AND t.seq = e.seq
WHERE e.seq <= :seq AND e.seq NOT IN (SELECT seq FROM verdict WHERE stream = 'ledger');

-- name: delete_log
DELETE FROM log WHERE log = ?;

-- name: delete_site_entries
DELETE FROM site_entry WHERE log = ? AND seq > ?;

-- name: site_entries_after
SELECT body, at_ms FROM site_entry WHERE log = ? AND seq > ? ORDER BY seq;

-- name: note_boot_zero
-- When a boot of another machine of this gateway began, as an entry tells.
INSERT INTO boot (boot, first_ms, zero_ms) VALUES (:boot, :zero_ms, :zero_ms)
ON CONFLICT (boot) DO UPDATE SET zero_ms = coalesce(zero_ms, excluded.zero_ms);

-- name: mark_diverged
-- The cloud has another history of this log; its digest is no frame's any more.
UPDATE log SET digest = '' WHERE log = ?;

-- name: own_older_logs
SELECT log, epoch, frame, digest FROM log
WHERE log > 0 AND NOT staged AND gateway = (SELECT gateway FROM log WHERE log = 0) ORDER BY epoch;

-- name: other_logs
-- The logs of the site's other gateways.
SELECT log, gateway, epoch, frame, digest FROM log
WHERE log > 0 AND NOT staged AND gateway <> (SELECT gateway FROM log WHERE log = 0) ORDER BY log;

-- name: unstage
UPDATE log SET staged = 0, hlc = max(hlc, ?) WHERE log = ?;

-- name: set_own_epoch
UPDATE log SET epoch = ? WHERE log = 0;

-- name: devices_heard
SELECT DISTINCT json_extract(body, '$.device') FROM site_entry
WHERE log IN (SELECT log FROM log WHERE gateway = (SELECT gateway FROM log WHERE log = 0)) ORDER BY 1;

-- name: delete_meta
DELETE FROM meta WHERE key = ?;

-- name: own_older_entries
-- What is in a log of this gateway already, other than the one that is written now.
SELECT body FROM site_entry
WHERE log IN (SELECT log FROM log WHERE gateway = (SELECT gateway FROM log WHERE log = 0));

-- name: delete_entries
DELETE FROM entry;

-- name: delete_frames
DELETE FROM frame;

-- name: delete_verdicts
DELETE FROM verdict;

-- name: delete_bounded
DELETE FROM bounded;

-- name: reading_not_acked
-- The first of the readings that are in a frame which the cloud has not acknowledged.
SELECT id FROM reading WHERE id <= :source_id ORDER BY id DESC LIMIT 1 OFFSET :waiting;

-- name: restart_stream
UPDATE stream SET sealed_frame = 0, sealed_seq = 0, sealed_digest = ?, source_id = ?, acked_frame = 0, acked_seq = 0,
    fork = NULL
WHERE name = ?;
