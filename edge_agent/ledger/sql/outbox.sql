-- name: insert_stream
INSERT OR IGNORE INTO stream (name, sealed_digest) VALUES (?, ?);

-- name: stream
SELECT sealed_frame, sealed_seq, sealed_digest, source_id, acked_frame, acked_seq, acked_ms, fork
FROM stream WHERE name = ?;

-- name: entries_to_seal
SELECT seq AS id, body FROM entry WHERE seq > ? ORDER BY seq LIMIT ?;

-- name: readings_to_seal
SELECT id, body FROM reading WHERE id > ? ORDER BY id LIMIT ?;

-- name: waiting_entries
SELECT count(*) FROM (SELECT 1 FROM entry WHERE seq > ? LIMIT 1000);

-- name: waiting_readings
SELECT count(*) FROM (SELECT 1 FROM reading WHERE id > ? LIMIT 1000);

-- name: insert_frame
INSERT INTO frame (stream, frame, first_seq, entries, digest, sealed_ms, body) VALUES (?, ?, ?, ?, ?, ?, ?);

-- name: advance_sealed
UPDATE stream SET sealed_frame = ?, sealed_seq = ?, sealed_digest = ?, source_id = ? WHERE name = ?;

-- name: frame_body
SELECT body FROM frame WHERE stream = ? AND frame = ?;

-- name: advance_acked
UPDATE stream SET acked_frame = ?, acked_seq = ?, acked_ms = ? WHERE name = ?;

-- name: mark_frames_acked
UPDATE frame SET acked_ms = ? WHERE stream = ? AND frame <= ? AND acked_ms IS NULL;

-- name: unmark_frames_acked
UPDATE frame SET acked_ms = NULL WHERE stream = ? AND frame > ?;

-- name: frame_end
-- The last sequence number of a frame, for stepping back.
SELECT first_seq + entries - 1 FROM frame WHERE stream = ? AND frame = ?;

-- name: set_fork
UPDATE stream SET fork = ? WHERE name = ?;

-- name: verdicts_known
SELECT seq FROM verdict WHERE stream = ?;

-- name: insert_verdict
INSERT OR REPLACE INTO verdict (stream, seq, reason, at_ms) VALUES (?, ?, ?, ?);

-- name: boot_zeros
SELECT boot, zero_ms FROM boot WHERE zero_ms IS NOT NULL;

-- name: delete_verdicts_after
DELETE FROM verdict WHERE stream = ? AND seq > ?;

-- name: older_logs
-- How much of this gateway's older logs the ledger knows; not those that have an event which the own log has as well,
-- because the ledger took it before it heard of them.
SELECT epoch, frame, digest FROM log
WHERE log > 0 AND NOT staged AND frame > 0 AND gateway = (SELECT gateway FROM log WHERE log = 0)
    AND log NOT IN (
        SELECT s.log FROM site_entry AS s
        JOIN seen ON seen.device = json_extract(s.body, '$.device') AND seen.event = json_extract(s.body, '$.event')
        WHERE seen.log = 0 AND s.log IN (SELECT log FROM log WHERE gateway = (SELECT gateway FROM log WHERE log = 0))
    )
ORDER BY epoch DESC LIMIT ?;

-- name: frame_digest
SELECT digest FROM frame WHERE stream = ? AND frame = ?;

-- name: insert_bounded
INSERT OR REPLACE INTO bounded (stream, seq, at_ms) VALUES (?, ?, ?);

-- name: trim_frames_by_age
-- Only what lies before the first frame to keep: the wall clock may have been set back, and a hole in the chain would
-- be worse than a frame too many.
DELETE FROM frame WHERE acked_ms < :before_ms AND NOT EXISTS (
    SELECT 1 FROM frame AS kept WHERE kept.stream = frame.stream AND kept.frame < frame.frame
        AND (kept.acked_ms IS NULL OR kept.acked_ms >= :before_ms)
);

-- name: acked_frame_bytes
SELECT coalesce(sum(length(body)), 0) FROM frame WHERE acked_ms IS NOT NULL;

-- name: oldest_acked_frames
-- By number, so that what is kept has no hole; readings before the ledger.
SELECT stream, frame, length(body) FROM frame WHERE acked_ms IS NOT NULL ORDER BY stream DESC, frame LIMIT 1000;

-- name: delete_frame
DELETE FROM frame WHERE stream = ? AND frame = ?;
