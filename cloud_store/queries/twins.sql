-- name: due
-- Twins to push: changed since the last push, or pushed a while ago to a gateway that is there and has not taken it.
SELECT g.name, t.version, t.state
FROM twin t
JOIN gateway g USING (gateway_id)
LEFT JOIN gateway_status s USING (gateway_id)
WHERE t.version > t.reported_version AND g.state = 'active' AND g.shard = ANY(%(shards)s::smallint[])
    AND (t.pushed_version < t.version
        OR (s.state = 'online' AND (t.reported ->> 'refused')::bigint IS DISTINCT FROM t.version
            AND t.pushed_at < now() - %(again_s)s::double precision * interval '1 second'))
ORDER BY t.changed_at, t.gateway_id
LIMIT %(limit)s

-- name: pushed
UPDATE twin t
SET pushed_version = greatest(t.pushed_version, p.version), pushed_at = now()
FROM unnest(%(names)s::text[], %(versions)s::bigint[]) AS p (name, version)
JOIN gateway g ON g.name = p.name COLLATE "C"
WHERE t.gateway_id = g.gateway_id

-- name: set_aside
UPDATE twin t SET pushed_version = t.version, pushed_at = now()
FROM gateway g
WHERE g.name = ANY(%(names)s::text[]) AND t.gateway_id = g.gateway_id

-- name: report
-- What an active gateway says; returns the document when the gateway has not got it. A gateway that is ahead of us took
-- what we have lost: our document gets a version that it will take. One that is ahead by more than we can have lost is
-- not believed, so that no gateway can lead our numbers to their end.
INSERT INTO twin AS t (gateway_id, version, state, reported_version, reported, reported_at)
SELECT g.gateway_id, %(version)s, '{}'::jsonb, %(version)s, %(reported)s, now()
FROM gateway g
LEFT JOIN twin known USING (gateway_id)
WHERE g.name = %(gateway)s AND g.state = 'active'
    AND %(version)s <= coalesce(known.version, 0) + %(lead_max)s
ON CONFLICT (gateway_id) DO UPDATE
SET reported_version = excluded.reported_version, reported = excluded.reported, reported_at = now(),
    version = CASE WHEN excluded.reported_version > t.version THEN excluded.reported_version + 1 ELSE t.version END
RETURNING t.version, t.state, t.reported_version

-- name: known_version
-- The version of an active gateway's document; 0 before the first.
SELECT coalesce(t.version, 0) FROM gateway g LEFT JOIN twin t USING (gateway_id)
WHERE g.name = %(gateway)s AND g.state = 'active'

-- name: selected
-- The gateways that a change is for.
SELECT g.gateway_id
FROM gateway g
JOIN site s USING (site_id)
JOIN tenant n ON n.tenant_id = g.tenant_id
WHERE (%(names)s::text[] IS NULL OR g.name = ANY(%(names)s::text[]))
    AND (%(tenant)s::text IS NULL OR n.name = %(tenant)s::text)
    AND (%(site)s::text IS NULL OR s.name = %(site)s::text)
ORDER BY g.gateway_id

-- name: lock
-- The documents of some gateways, in the order of their numbers, locked.
SELECT gateway_id, version, state FROM twin WHERE gateway_id = ANY(%(gateways)s::integer[]) ORDER BY gateway_id FOR UPDATE

-- name: create_missing
INSERT INTO twin (gateway_id, version, state)
SELECT gateway_id, 0, '{}'::jsonb FROM unnest(%(gateways)s::integer[]) AS gateway_id
ORDER BY gateway_id
ON CONFLICT DO NOTHING

-- name: store
UPDATE twin SET version = %(version)s, state = %(state)s, changed_at = now() WHERE gateway_id = %(gateway_id)s

-- name: note_change
INSERT INTO twin_change (gateway_id, version, changed_by, patch)
VALUES (%(gateway_id)s, %(version)s, %(who)s, %(patch)s)

-- name: show
SELECT g.name AS gateway, n.name AS tenant, s.name AS site, t.version, t.state, t.changed_at, t.pushed_at,
    t.reported_version, t.reported, t.reported_at
FROM gateway g
JOIN site s USING (site_id)
JOIN tenant n ON n.tenant_id = g.tenant_id
LEFT JOIN twin t USING (gateway_id)
WHERE g.name = %(gateway)s

-- name: overview
-- Twins by how far they are.
SELECT n.name AS tenant, s.name AS site, g.name AS gateway, t.version, t.reported_version,
    CASE
        WHEN t.reported ->> 'refused' IS NOT NULL AND (t.reported ->> 'refused')::bigint = t.version THEN 'refused'
        WHEN t.version > t.reported_version THEN 'waiting'
        WHEN t.reported -> 'errors' <> '{}'::jsonb THEN 'errors'
        ELSE 'in force'
    END AS state,
    t.changed_at, t.reported_at
FROM twin t
JOIN gateway g USING (gateway_id)
JOIN site s USING (site_id)
JOIN tenant n ON n.tenant_id = g.tenant_id
WHERE (%(tenant)s::text IS NULL OR n.name = %(tenant)s::text) AND (%(site)s::text IS NULL OR s.name = %(site)s::text)
    AND g.name > %(after)s::text COLLATE "C"
ORDER BY g.name
LIMIT %(limit)s

-- name: history
SELECT version, changed_at, changed_by, patch
FROM twin_change
JOIN gateway USING (gateway_id)
WHERE name = %(gateway)s
ORDER BY version DESC
LIMIT %(limit)s
