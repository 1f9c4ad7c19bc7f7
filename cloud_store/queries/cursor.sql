-- name: read
SELECT gateway_id, stream, epoch, frame, seq, digest
FROM stream_cursor JOIN unnest(%(gateways)s::integer[], %(streams)s::smallint[]) AS t (gateway_id, stream)
    USING (gateway_id, stream)

-- name: create_missing
-- A first frame needs a row to lock. Frame 0 and an empty epoch say that nothing has been merged.
INSERT INTO stream_cursor (gateway_id, stream, epoch, frame, seq, digest)
SELECT gateway_id, stream, '', 0, 0, ''
FROM unnest(%(gateways)s::integer[], %(streams)s::smallint[]) AS t (gateway_id, stream)
ORDER BY gateway_id, stream
ON CONFLICT DO NOTHING

-- name: lock
-- In key order, so that workers cannot deadlock. Two workers may both believe they hold a shard; this row decides.
SELECT gateway_id, stream, epoch, frame, seq, digest
FROM stream_cursor c
WHERE (gateway_id, stream) IN (
    SELECT gateway_id, stream FROM unnest(%(gateways)s::integer[], %(streams)s::smallint[]) AS t (gateway_id, stream)
)
ORDER BY gateway_id, stream
FOR UPDATE

-- name: advance
UPDATE stream_cursor c
SET epoch = t.epoch, frame = t.frame, seq = t.seq, digest = t.digest, updated_at = now()
FROM unnest(
    %(gateways)s::integer[], %(streams)s::smallint[], %(epochs)s::text[], %(frames)s::bigint[], %(seqs)s::bigint[],
    %(digests)s::text[]
) AS t (gateway_id, stream, epoch, frame, seq, digest)
WHERE c.gateway_id = t.gateway_id AND c.stream = t.stream

-- name: of_shards
-- Active gateways of some shards with their cursors, both streams each, present or not.
SELECT g.name, w.stream, c.epoch, c.frame, c.seq, c.digest
FROM gateway g
CROSS JOIN (VALUES (1::smallint), (2::smallint)) AS w (stream)
LEFT JOIN stream_cursor c ON c.gateway_id = g.gateway_id AND c.stream = w.stream
WHERE g.shard = ANY(%(shards)s::smallint[]) AND g.state = 'active'
ORDER BY g.name, w.stream

-- name: of_gateways
SELECT g.name, w.stream, c.epoch, c.frame, c.seq, c.digest
FROM gateway g
CROSS JOIN (VALUES (1::smallint), (2::smallint)) AS w (stream)
LEFT JOIN stream_cursor c ON c.gateway_id = g.gateway_id AND c.stream = w.stream
WHERE g.name = ANY(%(names)s::text[]) AND g.state = 'active'
ORDER BY g.name, w.stream
