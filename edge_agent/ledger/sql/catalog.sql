-- name: catalog_position
SELECT version, key, complete FROM catalog;

-- name: move_catalog
UPDATE catalog SET version = ?, key = ?, complete = ?;

-- name: set_item
INSERT INTO catalog_item (sku, body) VALUES (?, ?) ON CONFLICT (sku) DO UPDATE SET body = excluded.body;

-- name: set_location
INSERT OR IGNORE INTO catalog_location (name) VALUES (?);

-- name: forget_items
DELETE FROM catalog_item;

-- name: forget_locations
DELETE FROM catalog_location;

-- name: catalog_items
SELECT body FROM catalog_item WHERE :sku IS NULL OR sku = :sku ORDER BY sku LIMIT :limit;

-- name: catalog_item
SELECT body FROM catalog_item WHERE sku = ?;

-- name: catalog_locations
SELECT name FROM catalog_location ORDER BY name;

-- name: catalog_size
SELECT (SELECT count(*) FROM catalog_item), (SELECT count(*) FROM catalog_location);
