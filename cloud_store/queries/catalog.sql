-- name: page
-- What follows a position: items of the gateway's tenant and locations of its site, in the order of their last change.
WITH me AS (
    SELECT g.tenant_id, g.site_id, coalesce(c.version, 0) AS head
    FROM gateway g
    LEFT JOIN catalog c USING (tenant_id)
    WHERE g.name = %(gateway)s AND g.state = 'active'
), items AS (
    SELECT i.catalog_version AS version, 'i' AS kind, i.sku AS word, to_jsonb(i) AS body
    FROM item i
    JOIN me USING (tenant_id)
    WHERE (i.catalog_version, i.sku) > (%(version)s, %(sku)s)
    ORDER BY i.catalog_version, i.sku
    LIMIT %(limit)s
), locations AS (
    SELECT l.catalog_version AS version, 'l' AS kind, l.name AS word, NULL::jsonb AS body
    FROM location l
    JOIN me USING (site_id)
    WHERE (l.catalog_version, l.name) > (%(version)s, %(location)s)
    ORDER BY l.catalog_version, l.name
    LIMIT %(limit)s
), feed AS (
    SELECT * FROM items UNION ALL SELECT * FROM locations
    ORDER BY version, kind, word
    LIMIT %(limit)s
)
SELECT me.head, feed.version, feed.kind, feed.word, feed.body
FROM me
LEFT JOIN feed ON true
ORDER BY feed.version, feed.kind, feed.word

-- name: changed
-- The gateways that are there, of tenants whose catalogue has changed since a look, in some shards.
SELECT g.name, c.version
FROM catalog c
JOIN gateway g USING (tenant_id)
JOIN gateway_status s USING (gateway_id)
WHERE c.tenant_id = ANY(%(tenants)s::integer[]) AND g.state = 'active' AND s.state = 'online'
    AND g.shard = ANY(%(shards)s::smallint[])
ORDER BY g.name

-- name: heads
SELECT tenant_id, version FROM catalog
