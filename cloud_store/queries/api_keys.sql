-- name: create
INSERT INTO api_key (prefix, tenant_id, digest, name, role, scopes, expires_at)
VALUES (%(prefix)s, %(tenant_id)s, %(digest)s, %(name)s, %(role)s, %(scopes)s, %(expires_at)s)

-- name: listed
SELECT t.name AS tenant, k.prefix, k.name, k.role, k.scopes, k.created_at, k.expires_at, k.last_used_at, k.revoked_at,
    CASE WHEN k.revoked_at IS NOT NULL THEN 'revoked' WHEN k.expires_at <= now() THEN 'expired' ELSE 'active' END AS state
FROM api_key k
JOIN tenant t USING (tenant_id)
WHERE %(tenant)s::text IS NULL OR t.name = %(tenant)s
ORDER BY k.created_at DESC, k.prefix

-- name: owner
SELECT tenant_id FROM api_key WHERE prefix = %(prefix)s

-- name: revoke
UPDATE api_key SET revoked_at = now() WHERE prefix = %(prefix)s AND revoked_at IS NULL

-- name: writing
-- The API's sessions only read unless a transaction says otherwise.
SET TRANSACTION READ WRITE

-- name: holder
SELECT tenant_id, tenant, name, role, scopes, expired, revoked FROM stocktide_key(%(prefix)s, %(digest)s)
