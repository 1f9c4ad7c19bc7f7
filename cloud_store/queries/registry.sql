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

-- name: add_item
-- A stub becomes a real item; an item that is already registered is left alone, and so is one that would stay as it is.
INSERT INTO item AS i (
    tenant_id, sku, name, gtin, unit, scale, lot_tracked, serial_tracked, expiry_tracked, reorder_point, retired,
    catalog_version
)
VALUES (
    %(tenant_id)s, %(sku)s, %(name)s, %(gtin)s, %(unit)s, %(scale)s, %(lot_tracked)s, %(serial_tracked)s,
    %(expiry_tracked)s, %(reorder_point)s, %(retired)s, %(catalog_version)s
)
ON CONFLICT (tenant_id, sku) DO UPDATE
SET name = excluded.name, gtin = excluded.gtin, unit = excluded.unit, scale = excluded.scale, stub = false,
    lot_tracked = excluded.lot_tracked, serial_tracked = excluded.serial_tracked,
    expiry_tracked = excluded.expiry_tracked, reorder_point = excluded.reorder_point, retired = excluded.retired,
    catalog_version = excluded.catalog_version
WHERE i.stub OR (%(replace)s AND (
    (i.name, i.gtin, i.unit, i.scale, i.lot_tracked, i.serial_tracked, i.expiry_tracked, i.reorder_point, i.retired)
    IS DISTINCT FROM (excluded.name, excluded.gtin, excluded.unit, excluded.scale, excluded.lot_tracked,
        excluded.serial_tracked, excluded.expiry_tracked, excluded.reorder_point, excluded.retired)
))
RETURNING item_id

-- name: items_named
SELECT sku, name, gtin, unit, scale, lot_tracked, serial_tracked, expiry_tracked, reorder_point, retired
FROM item
WHERE tenant_id = %(tenant_id)s AND sku = ANY(%(skus)s) AND NOT stub

-- name: shared_gtin
-- GTINs of 8, 12 and 13 digits are GTINs of 14 with zeros before them.
SELECT lpad(gtin, 14, '0'), array_agg(sku ORDER BY sku)
FROM item
WHERE tenant_id = %(tenant_id)s
    AND lpad(gtin, 14, '0') IN (SELECT lpad(given, 14, '0') FROM unnest(%(gtins)s::text[]) AS given)
GROUP BY 1
HAVING count(*) > 1
ORDER BY 1
LIMIT 1

-- name: next_catalog_version
-- Locks the tenant's catalogue to the end of the transaction, so that versions are committed in their order.
INSERT INTO catalog AS c (tenant_id, version)
VALUES (%(tenant_id)s, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)
ON CONFLICT (tenant_id) DO UPDATE SET version = greatest(c.version + 1, excluded.version)
RETURNING version

-- name: add_location
INSERT INTO location AS l (site_id, name, catalog_version) VALUES (%(site_id)s, %(name)s, %(catalog_version)s)
ON CONFLICT (site_id, name) DO UPDATE SET stub = false, catalog_version = excluded.catalog_version
WHERE l.catalog_version IS NULL

-- name: locations
SELECT t.name AS tenant, s.name AS site, l.name, l.stub, meant.name AS merged_into
FROM location l
JOIN site s USING (site_id)
JOIN tenant t USING (tenant_id)
LEFT JOIN location meant ON meant.location_id = l.merged_into
WHERE NOT l.virtual AND (%(tenant)s::text IS NULL OR t.name = %(tenant)s) AND (%(site)s::text IS NULL OR s.name = %(site)s)
ORDER BY t.name, s.name, l.name

-- name: items
SELECT i.tenant_id, t.name AS tenant, i.sku, i.name, i.gtin, i.unit, i.scale, i.lot_tracked, i.serial_tracked,
    i.expiry_tracked, i.reorder_point, i.retired, i.stub, meant.sku AS merged_into
FROM item i
JOIN tenant t USING (tenant_id)
LEFT JOIN item meant ON meant.item_id = i.merged_into
WHERE (%(tenant)s::text IS NULL OR t.name = %(tenant)s) AND (i.tenant_id, i.sku) > (%(after_tenant)s, %(after_sku)s)
ORDER BY i.tenant_id, i.sku
LIMIT %(limit)s
