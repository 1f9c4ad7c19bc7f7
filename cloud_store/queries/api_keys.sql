-- name: create
INSERT INTO api_key (prefix, tenant_id, digest, name, role, scopes, expires_at, made_by)
VALUES (%(prefix)s, %(tenant_id)s, %(digest)s, %(name)s, %(role)s, %(scopes)s, %(expires_at)s, %(made_by)s)

-- name: in_force
SELECT count(*) FROM api_key WHERE tenant_id = %(tenant_id)s AND revoked_at IS NULL AND expires_at > now()

-- name: expiry
SELECT expires_at FROM api_key WHERE prefix = %(prefix)s

-- name: listed
SELECT t.name AS tenant, k.prefix, k.name, k.role, k.scopes, k.created_at, k.expires_at, k.last_used_at, k.revoked_at,
    CASE WHEN k.revoked_at IS NOT NULL THEN 'revoked' WHEN k.expires_at <= now() THEN 'expired' ELSE 'active' END AS state
FROM api_key k
JOIN tenant t USING (tenant_id)
WHERE (%(tenant)s::text IS NULL OR t.name = %(tenant)s)
    AND (%(after)s::text IS NULL OR (k.created_at, k.prefix) < (
        SELECT l.created_at, l.prefix FROM api_key l WHERE l.prefix = %(after)s
    ))
ORDER BY k.created_at DESC, k.prefix DESC
LIMIT %(limit)s

-- name: owner
SELECT tenant_id FROM api_key WHERE prefix = %(prefix)s

-- name: revoke
-- A key and all that it has made, and those have.
WITH RECURSIVE family AS (
    SELECT prefix FROM api_key WHERE prefix = %(prefix)s
    UNION
    SELECT k.prefix FROM api_key k JOIN family f ON k.made_by = f.prefix
)
UPDATE api_key SET revoked_at = now() WHERE prefix IN (SELECT prefix FROM family) AND revoked_at IS NULL
RETURNING prefix

-- name: writing
-- The API's sessions only read unless a transaction says otherwise.
SET TRANSACTION READ WRITE

-- name: holder
SELECT tenant_id, tenant, name, role, scopes, expired, revoked FROM stocktide_key(%(prefix)s, %(digest)s)
