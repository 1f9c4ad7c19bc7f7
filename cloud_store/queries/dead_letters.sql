-- name: add
-- The digest is over what arrived: the same thing again only raises its counter.
INSERT INTO dead_letter AS d (digest, tenant_id, kind, gateway, topic, reason, payload, payload_bytes)
VALUES (%(digest)s, %(tenant_id)s, %(kind)s, %(gateway)s, %(topic)s, %(reason)s, %(payload)s, %(payload_bytes)s)
ON CONFLICT (digest) DO UPDATE SET times = d.times + 1, last_at = now()

-- name: trim
-- Keeps the newest of each gateway, and of what is left the newest, so that one noisy gateway cannot push the others' out.
DELETE FROM dead_letter
WHERE dead_letter_id NOT IN (
    SELECT dead_letter_id
    FROM (
        SELECT dead_letter_id, row_number() OVER newest_first AS of_gateway,
            sum(octet_length(payload)) OVER newest_first AS bytes_of_gateway
        FROM dead_letter
        WINDOW newest_first AS (PARTITION BY gateway ORDER BY dead_letter_id DESC)
    ) AS ranked
    WHERE of_gateway <= %(rows_per_gateway_max)s AND bytes_of_gateway <= %(bytes_per_gateway_max)s
    ORDER BY dead_letter_id DESC
    LIMIT %(rows_max)s
)

-- name: newest
SELECT d.last_at, d.times, t.name AS tenant, d.gateway, d.kind, d.topic, d.reason, d.payload_bytes
FROM dead_letter d
LEFT JOIN tenant t USING (tenant_id)
WHERE (%(tenant)s::text IS NULL OR t.name = %(tenant)s) AND (%(gateway)s::text IS NULL OR d.gateway = %(gateway)s)
ORDER BY d.dead_letter_id DESC
LIMIT %(limit)s
