-- name: bind
INSERT INTO database_user (role_name, tenant_id) VALUES (%(role)s, %(tenant_id)s)

-- name: unbind
DELETE FROM database_user WHERE role_name = %(role)s RETURNING tenant_id

-- name: end_sessions
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %(role)s

-- name: listed
SELECT u.role_name AS name, t.name AS tenant, u.created_at
FROM database_user u
JOIN tenant t USING (tenant_id)
WHERE %(tenant)s::text IS NULL OR t.name = %(tenant)s
ORDER BY u.role_name
