-- name: read
-- Every log of some gateways. There are few: a gateway has one for each stream, and more only after a restore.
SELECT gateway_id, stream, epoch, frame, seq, digest
FROM stream_cursor
WHERE gateway_id = ANY(%(gateways)s::integer[])

-- name: share_sites
-- Merges at a site go on side by side, but not beside a rebuild of its balances. A row lock needs a privilege on the
-- table that dashboards lack, an advisory lock none. A new gateway or location of the site does not wait for it.
SELECT FROM site WHERE site_id = ANY(%(sites)s::integer[]) ORDER BY site_id FOR SHARE

-- name: own_site
SELECT FROM site WHERE site_id = %(site_id)s FOR NO KEY UPDATE

-- name: create_missing
-- A first frame needs a row to lock. Frame 0 says that nothing has been merged.
INSERT INTO stream_cursor (gateway_id, stream, epoch, frame, seq, digest)
SELECT gateway_id, stream, epoch, 0, 0, ''
FROM unnest(%(gateways)s::integer[], %(streams)s::smallint[], %(epochs)s::text[]) AS t (gateway_id, stream, epoch)
ORDER BY gateway_id, stream, epoch
ON CONFLICT DO NOTHING

-- name: lock
-- In key order, so that workers cannot deadlock. Two workers may both believe they hold a shard; this row decides.
SELECT gateway_id, stream, epoch, frame, seq, digest
FROM stream_cursor c
WHERE (gateway_id, stream, epoch) IN (
    SELECT gateway_id, stream, epoch COLLATE "C"
    FROM unnest(%(gateways)s::integer[], %(streams)s::smallint[], %(epochs)s::text[]) AS t (gateway_id, stream, epoch)
)
ORDER BY gateway_id, stream, epoch
FOR UPDATE

-- name: advance
UPDATE stream_cursor c
SET frame = t.frame, seq = t.seq, digest = t.digest, updated_at = now()
FROM unnest(
    %(gateways)s::integer[], %(streams)s::smallint[], %(epochs)s::text[], %(frames)s::bigint[], %(seqs)s::bigint[],
    %(digests)s::text[]
) AS t (gateway_id, stream, epoch, frame, seq, digest)
WHERE c.gateway_id = t.gateway_id AND c.stream = t.stream AND c.epoch = t.epoch COLLATE "C"

-- name: of_shards
-- The logs that may still be written, of the active gateways of some shards: those written to lately, and the one each
-- gateway last announced, whether anything of it was merged or not.
SELECT g.name, w.stream, e.epoch, c.frame, c.seq, c.digest
FROM gateway g
CROSS JOIN (VALUES (1::smallint), (2::smallint)) AS w (stream)
CROSS JOIN LATERAL (
    SELECT epoch FROM stream_cursor
    WHERE gateway_id = g.gateway_id AND updated_at > now() - interval '30 days'
    UNION
    SELECT epoch FROM gateway_status WHERE gateway_id = g.gateway_id
) AS e
LEFT JOIN stream_cursor c ON c.gateway_id = g.gateway_id AND c.stream = w.stream AND c.epoch = e.epoch COLLATE "C"
WHERE g.shard = ANY(%(shards)s::smallint[]) AND g.state = 'active'
ORDER BY g.name, w.stream, e.epoch

-- name: of_gateways
-- Both streams of the active ones among some gateways, in the epoch each has announced.
SELECT g.name, w.stream, t.epoch, c.frame, c.seq, c.digest
FROM unnest(%(names)s::text[], %(epochs)s::text[]) AS t (name, epoch)
JOIN gateway g ON g.name = t.name COLLATE "C"
CROSS JOIN (VALUES (1::smallint), (2::smallint)) AS w (stream)
LEFT JOIN stream_cursor c ON c.gateway_id = g.gateway_id AND c.stream = w.stream AND c.epoch = t.epoch COLLATE "C"
WHERE g.state = 'active'
ORDER BY g.name, w.stream, t.epoch

-- name: verdicts
-- What was rejected of ledger logs: (gateway, epoch, {seq: reason}), of so many of the latest frames of each.
SELECT t.name, t.epoch, f.verdicts
FROM unnest(%(names)s::text[], %(epochs)s::text[]) AS t (name, epoch)
JOIN gateway g ON g.name = t.name COLLATE "C"
JOIN epoch e ON e.gateway_id = g.gateway_id AND e.ulid = t.epoch COLLATE "C"
CROSS JOIN LATERAL (
    SELECT verdicts FROM frame
    WHERE gateway_id = g.gateway_id AND epoch_id = e.epoch_id AND stream = 1 AND verdicts IS NOT NULL
    ORDER BY frame DESC
    LIMIT %(limit)s
) AS f

-- name: merged
-- Every log of some gateways that something was merged of.
SELECT g.name, c.stream, c.epoch, c.frame, c.seq, c.digest
FROM gateway g
JOIN stream_cursor c USING (gateway_id)
WHERE g.name = ANY(%(names)s::text[]) AND c.frame > 0
ORDER BY g.name, c.stream, c.epoch
