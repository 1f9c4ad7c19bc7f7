-- name: act_as
SELECT set_config('stocktide.actor', %(actor)s, %(local)s)

-- name: record
-- The actor and the login are defaults of the table.
INSERT INTO audit_log (tenant_id, action, object, detail) VALUES (%(tenant_id)s, %(action)s, %(object)s, %(detail)s)

-- name: newest
SELECT a.audit_id, a.at, a.actor, a.login, t.name AS tenant, a.action, a.object, a.detail
FROM audit_log a
LEFT JOIN tenant t USING (tenant_id)
WHERE (%(tenant)s::text IS NULL OR t.name = %(tenant)s) AND (%(before)s::bigint IS NULL OR a.audit_id < %(before)s)
ORDER BY a.audit_id DESC
LIMIT %(limit)s
