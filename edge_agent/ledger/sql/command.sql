-- name: command_reply
SELECT reply FROM command_done WHERE id = ?;

-- name: note_command
INSERT INTO command_done (id, at_ms, reply) VALUES (?, ?, ?);

-- name: trim_commands
DELETE FROM command_done WHERE id IN (
    SELECT id FROM command_done ORDER BY at_ms DESC LIMIT -1 OFFSET ?
);

-- name: insert_recount
INSERT INTO recount (location, sku, note, asked_ms, asked_hlc) VALUES (?, ?, ?, ?, ?);

-- name: recounts
-- What is still to be counted: goods, or what ought to be goods, of which the last count is older than the request.
SELECT r.location, b.sku, b.lot, r.note, r.asked_ms
FROM recount r
JOIN balance b ON b.location = r.location AND (r.sku IS NULL OR b.sku = r.sku)
WHERE coalesce(b.counted_hlc, -1) < r.asked_hlc AND (b.on_hand <> 0 OR r.sku IS NOT NULL)
ORDER BY r.asked_ms, r.location, b.sku, b.lot;

-- name: trim_recounts
DELETE FROM recount WHERE NOT EXISTS (
    SELECT 1 FROM balance b
    WHERE b.location = recount.location AND (recount.sku IS NULL OR b.sku = recount.sku)
        AND coalesce(b.counted_hlc, -1) < recount.asked_hlc AND (b.on_hand <> 0 OR recount.sku IS NOT NULL)
) AND asked_ms < ?;
