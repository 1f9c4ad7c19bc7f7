-- name: open_buckets
-- A tenant begins with a full bucket. Only tenants with a quota have one.
INSERT INTO ingest_credit (tenant_id, entries, at)
SELECT tenant_id, entries_per_s_max * %(burst_s)s::float8, clock_timestamp()
FROM tenant_quota
WHERE tenant_id = ANY(%(tenants)s::integer[]) AND entries_per_s_max IS NOT NULL
ORDER BY tenant_id
ON CONFLICT DO NOTHING

-- name: lock_buckets
-- In key order, so that workers cannot deadlock.
SELECT FROM ingest_credit WHERE tenant_id = ANY(%(tenants)s::integer[]) ORDER BY tenant_id FOR UPDATE

-- name: charge
-- Fill each bucket for the time since it was last looked at, then take out what was merged.
UPDATE ingest_credit c
SET entries = least(
        q.entries_per_s_max * %(burst_s)s::float8,
        c.entries + q.entries_per_s_max * greatest(0, extract(epoch FROM clock_timestamp() - c.at))::float8
    ) - t.entries,
    at = greatest(c.at, clock_timestamp())
FROM unnest(%(tenants)s::integer[], %(entries)s::bigint[]) AS t (tenant_id, entries)
JOIN tenant_quota q USING (tenant_id)
WHERE c.tenant_id = t.tenant_id AND q.entries_per_s_max IS NOT NULL
RETURNING c.tenant_id, c.entries, q.entries_per_s_max::float8

-- name: change
INSERT INTO tenant_quota AS q (
    tenant_id, gateways_max, devices_max, entries_per_s_max, requests_per_minute_max, names_max
)
VALUES (
    %(tenant_id)s, %(gateways_max)s, %(devices_max)s, %(entries_per_s_max)s, %(requests_per_minute_max)s, %(names_max)s
)
ON CONFLICT (tenant_id) DO UPDATE
SET gateways_max = CASE WHEN %(set_gateways_max)s THEN excluded.gateways_max ELSE q.gateways_max END,
    devices_max = CASE WHEN %(set_devices_max)s THEN excluded.devices_max ELSE q.devices_max END,
    entries_per_s_max = CASE WHEN %(set_entries_per_s_max)s THEN excluded.entries_per_s_max ELSE q.entries_per_s_max END,
    requests_per_minute_max = CASE WHEN %(set_requests_per_minute_max)s THEN excluded.requests_per_minute_max
        ELSE q.requests_per_minute_max END,
    names_max = CASE WHEN %(set_names_max)s THEN excluded.names_max ELSE q.names_max END

-- name: listed
SELECT t.name AS tenant, (SELECT count(*) FROM gateway g WHERE g.tenant_id = t.tenant_id) AS gateways, q.gateways_max,
    (SELECT count(*) FROM device d JOIN gateway g USING (gateway_id) WHERE g.tenant_id = t.tenant_id) AS devices,
    q.devices_max, q.entries_per_s_max, q.requests_per_minute_max, coalesce(n.names, 0) AS names, q.names_max
FROM tenant t
LEFT JOIN tenant_names n USING (tenant_id)
LEFT JOIN tenant_quota q USING (tenant_id)
WHERE %(tenant)s::text IS NULL OR t.name = %(tenant)s
ORDER BY t.name

-- name: lock
SELECT FROM tenant WHERE tenant_id = %(tenant_id)s FOR NO KEY UPDATE

-- name: room_gateways
SELECT (SELECT count(*) FROM gateway g WHERE g.tenant_id = t.tenant_id), q.gateways_max, t.name
FROM tenant t JOIN tenant_quota q USING (tenant_id) WHERE tenant_id = %(tenant_id)s

-- name: room_devices
SELECT (SELECT count(*) FROM device d JOIN gateway g USING (gateway_id) WHERE g.tenant_id = t.tenant_id), q.devices_max,
    t.name
FROM tenant t JOIN tenant_quota q USING (tenant_id) WHERE tenant_id = %(tenant_id)s
