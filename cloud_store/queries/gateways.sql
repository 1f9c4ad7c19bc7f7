-- name: named
SELECT name, gateway_id, tenant_id, site_id, state FROM gateway WHERE name = ANY(%(names)s)
