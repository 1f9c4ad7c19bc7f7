-- name: lock_tenant
-- One release of a tenant is added at a time, so that numbers grow.
SELECT tenant_id FROM tenant WHERE tenant_id = %(tenant_id)s FOR UPDATE

-- name: greatest
SELECT coalesce(max(release), 0) FROM firmware_release WHERE tenant_id = %(tenant_id)s AND model = %(model)s

-- name: image_of_version
SELECT sha256 FROM firmware_release
WHERE tenant_id = %(tenant_id)s AND model = %(model)s AND version = %(version)s
LIMIT 1

-- name: add_image
INSERT INTO firmware_image (tenant_id, sha256, size, body) VALUES (%(tenant_id)s, %(sha256)s, %(size)s, %(body)s)
ON CONFLICT DO NOTHING

-- name: add_release
INSERT INTO firmware_release (tenant_id, model, release, version, replaces, sha256, signature, created_by)
VALUES (%(tenant_id)s, %(model)s, %(release)s, %(version)s, %(replaces)s, %(sha256)s, %(signature)s, %(who)s)

-- name: releases
SELECT n.name AS tenant, r.model, r.version, r.release, r.replaces, i.size, r.sha256, r.signature, r.created_at,
    r.created_by
FROM firmware_release r
JOIN firmware_image i USING (tenant_id, sha256)
JOIN tenant n USING (tenant_id)
WHERE (%(tenant)s::text IS NULL OR n.name = %(tenant)s) AND (%(model)s::text IS NULL OR r.model = %(model)s)
    AND (%(version)s::text IS NULL OR r.version = %(version)s)
    AND (%(replaces)s::text IS NULL OR r.replaces = %(replaces)s)
ORDER BY n.name, r.model, r.release DESC
LIMIT %(limit)s

-- name: tenants_of
SELECT DISTINCT n.name FROM gateway g JOIN tenant n USING (tenant_id) WHERE g.gateway_id = ANY(%(gateways)s::integer[])

-- name: piece
-- A piece of an image of the gateway's own tenant; without one, whether the gateway may ask at all.
SELECT i.size, substring(i.body FROM %(offset)s + 1 FOR %(bytes)s)
FROM gateway g
LEFT JOIN firmware_image i ON i.tenant_id = g.tenant_id AND i.sha256 = %(sha256)s
WHERE g.name = %(gateway)s AND g.state = 'active'
