-- name: items
-- Locked, so that of two merges that concern one item the second sees the first. No key is changed: lots refer to it.
SELECT item_id AS id, sku AS name, merged_into, stub, unit, scale
FROM item
WHERE tenant_id = %(owner)s AND sku = ANY(%(names)s)
ORDER BY item_id
FOR NO KEY UPDATE

-- name: locations
SELECT location_id AS id, name, merged_into, stub, '' AS unit, 0 AS scale
FROM location
WHERE site_id = %(owner)s AND NOT virtual AND name = ANY(%(names)s)
ORDER BY location_id
FOR NO KEY UPDATE

-- name: merge_items
-- What stood for the old one stands for the new one with it.
UPDATE item SET merged_into = %(new)s WHERE item_id = %(old)s OR merged_into = %(old)s

-- name: merge_locations
UPDATE location SET merged_into = %(new)s WHERE location_id = %(old)s OR merged_into = %(old)s

-- name: split_items
UPDATE item SET merged_into = NULL WHERE item_id = %(old)s

-- name: split_locations
UPDATE location SET merged_into = NULL WHERE location_id = %(old)s

-- name: site
SELECT site_id FROM site WHERE tenant_id = %(tenant_id)s AND name = %(site)s
