-- name: raise
-- An open alarm of the kind is only counted up. None for what an operator has asked the gateway to do within a day.
INSERT INTO alarm AS a (tenant_id, site_id, gateway, kind, detail)
SELECT tenant_id, site_id, name, %(kind)s, %(detail)s FROM gateway g
WHERE name = %(gateway)s AND NOT EXISTS (
    SELECT FROM command c
    WHERE c.gateway_id = g.gateway_id AND c.name = %(unless_sent)s AND c.sent_at > now() - interval '1 day'
)
ON CONFLICT (gateway, kind) WHERE cleared_at IS NULL DO UPDATE
SET detail = excluded.detail, last_at = now(), times = a.times + 1

-- name: reopen
-- The one that ended within a day goes on.
UPDATE alarm SET cleared_at = NULL, last_at = now(), times = times + 1
WHERE alarm_id = (
    SELECT alarm_id FROM alarm
    WHERE gateway = %(gateway)s AND kind = %(kind)s AND cleared_at > now() - interval '1 day'
    ORDER BY cleared_at DESC LIMIT 1
)
AND NOT EXISTS (SELECT FROM alarm WHERE gateway = %(gateway)s AND kind = %(kind)s AND cleared_at IS NULL)

-- name: report
-- One that says the same as before is not written again.
INSERT INTO alarm AS a (tenant_id, site_id, gateway, kind, detail)
SELECT tenant_id, site_id, name, %(kind)s, %(detail)s FROM gateway WHERE name = %(gateway)s
ON CONFLICT (gateway, kind) WHERE cleared_at IS NULL DO UPDATE
SET detail = excluded.detail, last_at = now(), times = a.times + 1
WHERE a.detail IS DISTINCT FROM excluded.detail

-- name: end
UPDATE alarm SET cleared_at = now()
WHERE gateway = ANY(%(gateways)s) AND kind = %(kind)s AND cleared_at IS NULL

-- name: clear
UPDATE alarm SET cleared_at = now()
WHERE gateway = %(gateway)s AND (%(kind)s::text IS NULL OR kind = %(kind)s) AND cleared_at IS NULL
RETURNING kind, tenant_id

-- name: alarms
SELECT t.name AS tenant, s.name AS site, a.gateway, a.kind, a.detail, a.first_at, a.last_at, a.times, a.cleared_at
FROM alarm a
LEFT JOIN tenant t USING (tenant_id)
LEFT JOIN site s USING (site_id)
WHERE (%(tenant)s::text IS NULL OR t.name = %(tenant)s) AND (%(all)s OR a.cleared_at IS NULL)
ORDER BY a.last_at DESC
LIMIT %(limit)s
