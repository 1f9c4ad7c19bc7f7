-- name: meta
SELECT key, value FROM meta;

-- name: stock
-- On hand of shelves, zero cells included when they were ever used, so that an empty shelf is seen as empty. From the
-- table itself, as the digest of all balances is, which vouches for it: an index may have lost a row.
SELECT b.sku, b.location, b.lot, b.on_hand, b.counted_hlc, json_extract(c.body, '$.unit'),
       json_extract(c.body, '$.scale')
FROM balance AS b NOT INDEXED
LEFT JOIN catalog_item AS c ON c.sku = b.sku
WHERE (:sku IS NULL OR b.sku = :sku)
  AND (:location IS NULL OR b.location = :location)
  AND (:virtual OR b.location NOT LIKE '@%')
  AND (:zero OR b.on_hand <> 0)
ORDER BY b.sku, b.location, b.lot
LIMIT :limit;

-- name: history
-- Of one log. What another gateway has done is in the cloud, or it would not be known here.
SELECT l.gateway, m.seq, m.hlc, coalesce(e.body, s.body), m.variance,
       m.log > 0 OR m.seq <= (SELECT acked_seq FROM stream WHERE name = 'ledger'), coalesce(s.at_ms, b.at_ms), NULL
FROM movement AS m
JOIN log AS l USING (log)
LEFT JOIN entry AS e ON m.log = 0 AND e.seq = m.seq
LEFT JOIN site_entry AS s ON s.log = m.log AND s.seq = m.seq
LEFT JOIN bounded AS b ON m.log = 0 AND b.stream = 'ledger' AND b.seq = m.seq
WHERE m.log = :log AND (:sku IS NULL OR m.sku = :sku)
  AND (:location IS NULL OR m.source = :location OR m.destination = :location)
  AND (:device IS NULL OR json_extract(coalesce(e.body, s.body), '$.device') = :device)
  AND (:actor IS NULL OR json_extract(coalesce(e.body, s.body), '$.actor') = :actor)
  AND (:since_ms IS NULL AND :until_ms IS NULL OR coalesce(s.at_ms, b.at_ms,
        (SELECT zero_ms + json_extract(e.body, '$.mono_ms') - coalesce(json_extract(e.body, '$.late_ms'), 0)
         FROM boot WHERE boot = json_extract(e.body, '$.boot')), m.hlc >> 16)
    BETWEEN coalesce(:since_ms, 0) AND coalesce(:until_ms - 1, 9e18))
ORDER BY m.seq DESC
LIMIT :limit;

-- name: rejected
-- Entries of this ledger that the cloud could not use; they are not in the stock.
SELECT l.gateway, e.seq, e.hlc, e.body, NULL, 1, NULL, v.reason
FROM verdict AS v
JOIN entry AS e USING (seq)
JOIN log AS l ON l.log = 0
WHERE v.stream = 'ledger' AND (:sku IS NULL OR json_extract(e.body, '$.sku') = :sku)
  AND (:location IS NULL OR :location IN (json_extract(e.body, '$.source'), json_extract(e.body, '$.destination'),
                                          json_extract(e.body, '$.location')))
  AND (:device IS NULL OR json_extract(e.body, '$.device') = :device)
  AND (:actor IS NULL OR json_extract(e.body, '$.actor') = :actor)
  AND (:since_ms IS NULL AND :until_ms IS NULL OR coalesce(
        (SELECT zero_ms + json_extract(e.body, '$.mono_ms') - coalesce(json_extract(e.body, '$.late_ms'), 0)
         FROM boot WHERE boot = json_extract(e.body, '$.boot')), e.hlc >> 16)
    BETWEEN coalesce(:since_ms, 0) AND coalesce(:until_ms - 1, 9e18))
ORDER BY e.hlc DESC
LIMIT :limit;

-- name: zeros
SELECT boot, zero_ms FROM boot WHERE zero_ms IS NOT NULL;

-- name: site_logs
SELECT log, gateway, epoch, frame, seq FROM log WHERE log > 0 AND NOT staged ORDER BY gateway, epoch;

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

-- name: dead_letters_to_retry
-- With the moment of their arrival; letters of before it was noted have the wall clock's time alone.
SELECT id, topic, payload, coalesce(boot, ''), coalesce(mono_ms, 0), at_ms FROM dead_letter ORDER BY id LIMIT :limit;

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
-- One page.
SELECT seq, body FROM entry WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?;

-- name: all_balances
SELECT location, sku, lot, on_hand, moved, counted_hlc, counted_log, counted_seq, last_hlc, last_log, last_seq
FROM balance
ORDER BY location, sku, lot;

-- name: all_frames
SELECT stream, frame, first_seq, entries, digest, body FROM frame ORDER BY stream, frame;

-- name: movements_of_log
SELECT seq, hlc, kind, sku, lot, quantity, source, destination, variance FROM movement WHERE log = ? ORDER BY seq;

-- name: movement_of_entry
SELECT seq, hlc, kind, sku, lot, quantity, source, destination, variance FROM movement WHERE log = ? AND seq = ?;

-- name: late
SELECT seq FROM late ORDER BY seq;

-- name: late_entries
-- What is not in the order of its log: delivered late, or by another gateway whose clock does not rise.
SELECT 0, seq, hlc, body FROM entry WHERE json_extract(body, '$.late_ms') IS NOT NULL
UNION ALL
SELECT s.log, s.seq, s.hlc, s.body
FROM (
    SELECT log, seq, hlc, body,
        max(hlc) OVER (PARTITION BY log ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS latest
    FROM site_entry
) AS s JOIN log USING (log)
WHERE NOT staged AND (s.hlc < s.latest OR json_extract(s.body, '$.late_ms') IS NOT NULL);

-- name: entries_of_log
SELECT seq, hlc, body FROM site_entry WHERE log = ? ORDER BY seq;

-- name: seen_event
SELECT log, seq FROM seen WHERE device = ? AND event = ?;

-- name: seen_of_log
SELECT device, event, seq FROM seen WHERE log = ? ORDER BY seq;

-- name: variance
SELECT variance FROM movement WHERE log = 0 AND seq = ?;

-- name: tables
SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name;
