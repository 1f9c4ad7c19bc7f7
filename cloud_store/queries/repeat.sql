-- name: after
-- How much of each other each of these logs knew when it began.
SELECT gateway_id, ulid, epoch_id, after FROM epoch WHERE gateway_id = ANY(%(gateways)s::integer[])

-- name: set_after
UPDATE epoch SET after = %(after)s WHERE gateway_id = %(gateway_id)s AND ulid = %(epoch)s

-- name: events
-- Which of these device events are in other logs of the gateway already. An event that comes again says the same, so
-- the item narrows the search.
WITH wanted AS (
    SELECT device, event FROM unnest(%(devices)s::text[], %(events)s::text[]) AS t (device, event)
), item_ids AS (
    SELECT item_id FROM item WHERE tenant_id = %(tenant_id)s AND sku = ANY(%(skus)s::text[])
), found AS (
    SELECT m.device_id, m.event, m.epoch_id, m.seq
    FROM movement m
    WHERE m.item_id IN (SELECT item_id FROM item_ids) AND m.gateway_id = %(gateway_id)s
        AND m.epoch_id = ANY(%(epochs)s::integer[]) AND m.event = ANY(%(events)s::text[])
    UNION ALL
    SELECT c.device_id, c.event, c.epoch_id, c.seq
    FROM count c
    WHERE c.item_id IN (SELECT item_id FROM item_ids) AND c.gateway_id = %(gateway_id)s
        AND c.epoch_id = ANY(%(epochs)s::integer[]) AND c.event = ANY(%(events)s::text[])
)
SELECT d.name, found.event, e.ulid, found.seq
FROM found
JOIN device d USING (device_id)
JOIN epoch e USING (epoch_id)
JOIN wanted ON wanted.device = d.name AND wanted.event = found.event COLLATE "C"
