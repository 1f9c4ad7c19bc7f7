-- name: add_items
-- Sorted, so that two workers that meet the same new words lock them in the same order.
INSERT INTO item (tenant_id, sku, stub)
SELECT DISTINCT tenant_id, word, true FROM unnest(%(owners)s::integer[], %(words)s::text[]) AS t (tenant_id, word)
ORDER BY tenant_id, word
ON CONFLICT DO NOTHING

-- name: items
SELECT tenant_id, sku, item_id
FROM item JOIN unnest(%(owners)s::integer[], %(words)s::text[]) AS t (tenant_id, sku) USING (tenant_id, sku)

-- name: add_locations
INSERT INTO location (site_id, name, stub)
SELECT DISTINCT site_id, word, word NOT LIKE '@%%'
FROM unnest(%(owners)s::integer[], %(words)s::text[]) AS t (site_id, word)
ORDER BY site_id, word
ON CONFLICT DO NOTHING

-- name: locations
SELECT site_id, name, location_id
FROM location JOIN unnest(%(owners)s::integer[], %(words)s::text[]) AS t (site_id, name) USING (site_id, name)

-- name: add_lots
INSERT INTO lot (item_id, name)
SELECT DISTINCT item_id, word FROM unnest(%(owners)s::integer[], %(words)s::text[]) AS t (item_id, word)
ORDER BY item_id, word
ON CONFLICT DO NOTHING

-- name: lots
SELECT item_id, name, lot_id
FROM lot JOIN unnest(%(owners)s::integer[], %(words)s::text[]) AS t (item_id, name) USING (item_id, name)

-- name: add_devices
INSERT INTO device (gateway_id, name)
SELECT DISTINCT gateway_id, word FROM unnest(%(owners)s::integer[], %(words)s::text[]) AS t (gateway_id, word)
ORDER BY gateway_id, word
ON CONFLICT DO NOTHING

-- name: devices
SELECT gateway_id, name, device_id
FROM device JOIN unnest(%(owners)s::integer[], %(words)s::text[]) AS t (gateway_id, name) USING (gateway_id, name)

-- name: add_epochs
INSERT INTO epoch (gateway_id, ulid)
SELECT DISTINCT gateway_id, word FROM unnest(%(owners)s::integer[], %(words)s::text[]) AS t (gateway_id, word)
ORDER BY gateway_id, word
ON CONFLICT DO NOTHING

-- name: epochs
SELECT gateway_id, ulid, epoch_id
FROM epoch JOIN unnest(%(owners)s::integer[], %(words)s::text[]) AS t (gateway_id, ulid) USING (gateway_id, ulid)

-- name: add_metrics
INSERT INTO metric (tenant_id, name)
SELECT DISTINCT owner, word FROM unnest(%(owners)s::integer[], %(words)s::text[]) AS t (owner, word)
ORDER BY owner, word
ON CONFLICT DO NOTHING

-- name: metrics
SELECT tenant_id, name, metric_id
FROM metric JOIN unnest(%(owners)s::integer[], %(words)s::text[]) AS t (tenant_id, name) USING (tenant_id, name)

-- name: names_of_tenants
-- How many names each tenant has, and may have.
SELECT t.tenant_id, t.name, coalesce(n.names, 0), coalesce(q.names_max, %(usual_max)s)
FROM tenant t
LEFT JOIN tenant_names n USING (tenant_id)
LEFT JOIN tenant_quota q USING (tenant_id)
WHERE t.tenant_id = ANY(%(tenants)s::integer[])

-- name: count_names
INSERT INTO tenant_names AS n (tenant_id, names)
SELECT tenant_id, names FROM unnest(%(tenants)s::integer[], %(names)s::bigint[]) AS t (tenant_id, names)
ORDER BY tenant_id
ON CONFLICT (tenant_id) DO UPDATE SET names = n.names + excluded.names
