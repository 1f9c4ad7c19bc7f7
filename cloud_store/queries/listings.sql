-- name: items
SELECT i.sku, i.name, i.gtin, i.unit, i.scale, i.reorder_point, i.lot_tracked, i.serial_tracked, i.expiry_tracked,
    i.retired, i.stub, meant.sku AS merged_into
FROM item i
JOIN tenant t USING (tenant_id)
LEFT JOIN item meant ON meant.item_id = i.merged_into
WHERE t.name = %(tenant)s AND i.sku > %(after)s
    AND (%(part)s::text IS NULL OR i.sku ILIKE %(part)s OR i.name ILIKE %(part)s OR i.gtin LIKE %(part)s)
ORDER BY i.sku
LIMIT %(limit)s

-- name: sites
SELECT s.name AS site, s.created_at, (SELECT count(*) FROM gateway g WHERE g.site_id = s.site_id) AS gateways
FROM site s
JOIN tenant t USING (tenant_id)
WHERE t.name = %(tenant)s AND s.name > %(after)s
ORDER BY s.name
LIMIT %(limit)s

-- name: locations
SELECT s.name AS site, l.name AS location, l.virtual, l.stub, meant.name AS merged_into
FROM location l
JOIN site s USING (site_id)
JOIN tenant t USING (tenant_id)
LEFT JOIN location meant ON meant.location_id = l.merged_into
WHERE t.name = %(tenant)s AND (%(site)s::text IS NULL OR s.name = %(site)s) AND (%(virtual)s OR NOT l.virtual)
    AND (s.name, l.name) > (%(after_site)s, %(after_location)s)
    AND (%(part)s::text IS NULL OR l.name ILIKE %(part)s)
ORDER BY s.name, l.name
LIMIT %(limit)s

-- name: alarms
SELECT s.name AS site, a.gateway, a.kind, a.detail, a.first_at, a.last_at, a.times, a.cleared_at, a.alarm_id
FROM alarm a
JOIN tenant t USING (tenant_id)
LEFT JOIN site s USING (site_id)
WHERE t.name = %(tenant)s AND a.alarm_id < %(before)s AND (%(cleared)s OR a.cleared_at IS NULL)
ORDER BY a.alarm_id DESC
LIMIT %(limit)s
