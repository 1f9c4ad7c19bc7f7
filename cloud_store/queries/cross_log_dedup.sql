-- name: after
-- How much of each other each of these logs knew when it began.
SELECT gateway_id, ulid, epoch_id, after FROM epoch WHERE gateway_id = ANY(%(gateways)s::integer[])

-- name: set_after
UPDATE epoch SET after = %(after)s WHERE gateway_id = %(gateway_id)s AND ulid = %(epoch)s

-- name: events
-- Which of these device events, and of these clock readings without an event, are in other logs of the gateway already.
-- What comes again says the same, so the item narrows the search.
WITH items AS (
    SELECT item_id, sku FROM item WHERE tenant_id = %(tenant_id)s AND sku = ANY(%(skus)s::text[])
), found AS (
    SELECT m.item_id, m.device_id, m.event, m.hlc, m.quantity, m.actor, m.reference, m.epoch_id, m.seq
    FROM movement m
    WHERE m.item_id IN (SELECT item_id FROM items) AND m.gateway_id = %(gateway_id)s
        AND m.epoch_id = ANY(%(epochs)s::integer[])
        AND (m.event = ANY(%(events)s::text[]) OR (m.event IS NULL AND m.hlc = ANY(%(hlcs)s::bigint[])))
    UNION ALL
    SELECT c.item_id, c.device_id, c.event, c.hlc, c.quantity, c.actor, c.reference, c.epoch_id, c.seq
    FROM count c
    WHERE c.item_id IN (SELECT item_id FROM items) AND c.gateway_id = %(gateway_id)s
        AND c.epoch_id = ANY(%(epochs)s::integer[])
        AND (c.event = ANY(%(events)s::text[]) OR (c.event IS NULL AND c.hlc = ANY(%(hlcs)s::bigint[])))
)
SELECT
    d.name, found.event, found.hlc, items.sku, found.quantity, found.actor, found.reference, e.ulid, found.seq
FROM found
JOIN items USING (item_id)
JOIN epoch e USING (epoch_id)
LEFT JOIN device d USING (device_id)
