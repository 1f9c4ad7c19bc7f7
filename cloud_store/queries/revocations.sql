-- name: due
SELECT name, cut_asked_at FROM gateway
WHERE cut_asked_at IS NOT NULL AND shard = ANY(%(shards)s::smallint[])
ORDER BY cut_asked_at, gateway_id
LIMIT %(limit)s

-- name: done
-- Another wish that came meanwhile stays.
UPDATE gateway SET cut_asked_at = NULL WHERE name = %(name)s AND cut_asked_at = %(asked_at)s
