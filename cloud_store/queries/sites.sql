-- name: peers
-- The active gateways of some sites that are there, as far as is known: who is not asks when it comes.
SELECT g.site_id, g.name
FROM gateway g
JOIN gateway_status s USING (gateway_id)
WHERE g.site_id = ANY(%(sites)s::integer[]) AND g.state = 'active' AND s.state = 'online'
ORDER BY g.site_id, g.name

-- name: is_active
SELECT EXISTS (SELECT FROM gateway WHERE name = %(gateway)s AND state = 'active')

-- name: heads
-- Where every ledger log of an active gateway's site stands.
SELECT o.name, c.epoch, c.frame, c.seq, c.digest, o.gateway_id, e.epoch_id
FROM gateway me
JOIN gateway o ON o.site_id = me.site_id
JOIN stream_cursor c ON c.gateway_id = o.gateway_id AND c.stream = 1 AND c.frame > 0
JOIN epoch e ON e.gateway_id = o.gateway_id AND e.ulid = c.epoch
WHERE me.name = %(gateway)s AND me.state = 'active'
-- Beyond the limit the gateway's own logs come first, then those that live.
ORDER BY o.gateway_id <> me.gateway_id, c.updated_at DESC, o.name
LIMIT %(limit)s

-- name: frames
-- The frames of one log after a number. Each frame is there once, because its cursor moved with it.
SELECT frame, extract(epoch FROM received_at) * 1000, payload, verdicts
FROM frame
WHERE gateway_id = %(gateway_id)s AND epoch_id = %(epoch_id)s AND stream = 1 AND frame > %(after)s
    AND frame <= %(last)s AND payload IS NOT NULL
ORDER BY frame
LIMIT %(limit)s
