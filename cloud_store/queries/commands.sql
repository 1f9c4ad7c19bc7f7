-- name: add
INSERT INTO command (id, gateway_id, name, arguments, created_by, expires_at)
SELECT %(id)s, gateway_id, %(name)s, %(arguments)s, %(who)s, %(expires_at)s
FROM gateway
WHERE name = %(gateway)s AND state = 'active'
RETURNING id

-- name: due
-- Commands to send: new ones, and those of gateways that are there and have not replied for a while.
SELECT g.name, c.id, c.name, c.arguments, extract(epoch FROM c.expires_at) * 1000
FROM command c
JOIN gateway g USING (gateway_id)
LEFT JOIN gateway_status s USING (gateway_id)
WHERE c.replied_at IS NULL AND c.expires_at > now() AND g.state = 'active' AND g.shard = ANY(%(shards)s::smallint[])
    AND (c.sent_at IS NULL
        OR (s.state = 'online' AND c.sent_at < now() - %(again_s)s::double precision * interval '1 second')
        OR s.heard_at > c.sent_at + interval '1 second' AND s.state = 'online'
            AND c.sent_at < now() - interval '2 seconds')
ORDER BY c.created_at, c.id
LIMIT %(limit)s

-- name: sent
UPDATE command SET sent_at = now() WHERE id = ANY(%(ids)s::text[])

-- name: fail
UPDATE command SET replied_at = now(), ok = false, reason = %(reason)s WHERE id = %(id)s AND replied_at IS NULL

-- name: reply
-- Only the gateway that was asked may answer, and the first answer counts.
UPDATE command c
SET replied_at = now(), ok = %(ok)s, reason = %(reason)s, result = %(result)s
FROM gateway g
WHERE c.id = %(id)s AND g.gateway_id = c.gateway_id AND g.name = %(gateway)s AND c.replied_at IS NULL

-- name: show
SELECT c.id, g.name AS gateway, c.name, c.arguments, c.created_at, c.created_by, c.expires_at, c.sent_at, c.replied_at,
    c.ok, c.reason, c.result,
    CASE
        WHEN c.ok THEN 'done'
        WHEN c.replied_at IS NOT NULL THEN 'failed'
        WHEN c.expires_at <= now() THEN 'expired'
        WHEN c.sent_at IS NOT NULL THEN 'sent'
        ELSE 'waiting'
    END AS state
FROM command c
JOIN gateway g USING (gateway_id)
WHERE c.id = %(id)s

-- name: newest
SELECT c.id, n.name AS tenant, g.name AS gateway, c.name, c.arguments, c.created_at, c.created_by, c.reason,
    CASE
        WHEN c.ok THEN 'done'
        WHEN c.replied_at IS NOT NULL THEN 'failed'
        WHEN c.expires_at <= now() THEN 'expired'
        WHEN c.sent_at IS NOT NULL THEN 'sent'
        ELSE 'waiting'
    END AS state
FROM command c
JOIN gateway g USING (gateway_id)
JOIN tenant n ON n.tenant_id = g.tenant_id
WHERE (%(tenant)s::text IS NULL OR n.name = %(tenant)s::text) AND (%(gateway)s::text IS NULL OR g.name = %(gateway)s::text)
ORDER BY c.created_at DESC, c.id DESC
LIMIT %(limit)s
