-- name: add_tenant
INSERT INTO tenant (name) VALUES (%(name)s) ON CONFLICT DO NOTHING RETURNING tenant_id

-- name: tenants
SELECT t.name, t.created_at,
    (SELECT count(*) FROM site s WHERE s.tenant_id = t.tenant_id) AS sites,
    (SELECT count(*) FROM gateway g WHERE g.tenant_id = t.tenant_id) AS gateways,
    (SELECT count(*) FROM item i WHERE i.tenant_id = t.tenant_id) AS items
FROM tenant t
ORDER BY t.name

-- name: tenant_id
SELECT tenant_id FROM tenant WHERE name = %(tenant)s

-- name: add_site
INSERT INTO site (tenant_id, name) VALUES (%(tenant_id)s, %(name)s) ON CONFLICT DO NOTHING RETURNING site_id

-- name: sites
SELECT t.name AS tenant, s.name, s.created_at,
    (SELECT count(*) FROM gateway g WHERE g.site_id = s.site_id) AS gateways
FROM site s
JOIN tenant t USING (tenant_id)
WHERE %(tenant)s::text IS NULL OR t.name = %(tenant)s
ORDER BY t.name, s.name

-- name: site_id
SELECT site_id FROM site JOIN tenant t USING (tenant_id) WHERE t.name = %(tenant)s AND site.name = %(site)s

-- name: add_gateway
INSERT INTO gateway (tenant_id, site_id, name, shard) VALUES (%(tenant_id)s, %(site_id)s, %(name)s, %(shard)s)
ON CONFLICT DO NOTHING
RETURNING gateway_id

-- name: set_gateway_state
UPDATE gateway SET state = %(state)s WHERE name = %(gateway)s RETURNING tenant_id

-- name: device
SELECT device_id FROM device WHERE gateway_id = %(gateway_id)s AND name = %(name)s

-- name: add_device
INSERT INTO device (gateway_id, name) VALUES (%(gateway_id)s, %(name)s) RETURNING device_id

-- name: devices
SELECT t.name AS tenant, g.name AS gateway, d.name, d.created_at
FROM device d
JOIN gateway g USING (gateway_id)
JOIN tenant t USING (tenant_id)
WHERE %(tenant)s::text IS NULL OR t.name = %(tenant)s
ORDER BY t.name, g.name, d.name

-- name: gateways_named
SELECT name, gateway_id, tenant_id, site_id, state FROM gateway WHERE name = ANY(%(names)s)

-- name: add_item
-- A stub becomes a real item; an item that is already registered is left alone.
INSERT INTO item AS i (tenant_id, sku, name, gtin, unit, scale)
VALUES (%(tenant_id)s, %(sku)s, %(name)s, %(gtin)s, %(unit)s, %(scale)s)
ON CONFLICT (tenant_id, sku) DO UPDATE
SET name = excluded.name, gtin = excluded.gtin, unit = excluded.unit, scale = excluded.scale, stub = false
WHERE i.stub OR %(replace)s
RETURNING item_id

-- name: items
SELECT i.tenant_id, t.name AS tenant, i.sku, i.name, i.gtin, i.unit, i.scale, i.stub
FROM item i
JOIN tenant t USING (tenant_id)
WHERE (%(tenant)s::text IS NULL OR t.name = %(tenant)s) AND (i.tenant_id, i.sku) > (%(after_tenant)s, %(after_sku)s)
ORDER BY i.tenant_id, i.sku
LIMIT %(limit)s
