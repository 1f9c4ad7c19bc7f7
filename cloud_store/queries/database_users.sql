-- name: bind
INSERT INTO database_user (role_name, tenant_id) VALUES (%(role)s, %(tenant_id)s)

-- name: unbind
DELETE FROM database_user WHERE role_name = %(role)s RETURNING tenant_id

-- name: end
UPDATE database_user SET dropped_at = coalesce(dropped_at, now()) WHERE role_name = %(role)s RETURNING tenant_id

-- name: end_overdue
SELECT role_name, ended, what FROM stocktide_end_overdue_sessions(%(statement_s)s, %(idle_s)s)

-- name: end_sessions
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %(role)s

-- name: listed
SELECT u.role_name AS name, t.name AS tenant, u.created_at,
    CASE WHEN u.dropped_at IS NULL THEN 'active' ELSE 'ended' END AS state
FROM database_user u
JOIN tenant t USING (tenant_id)
WHERE %(tenant)s::text IS NULL OR t.name = %(tenant)s
ORDER BY u.role_name
