-- name: stock
-- Stock over the entries that are true by `at` and were received by `known_at`, as `wire_protocol.stock` defines it: the
-- latest count of a cell among them, or 0, plus the movements among them that are later by (hlc, gateway, epoch, seq).
-- A log is received in order, so what was known of it is a prefix: its length is looked up once for each log.
-- A cell that ever held goods has a balance. @adjust may lack one, and is what all other locations of its site leave.
-- One page looks at so many cells, empty ones included. Movements are found by shelf, from its count on; those of a virtual location
-- by the shelves at their other side.
-- `shown` has each cell with the names that it is meant by: one whose name stands for another's is added to that.
WITH family AS MATERIALIZED (
    SELECT i.item_id, i.merged_into AS shown_id FROM tenant t JOIN item i USING (tenant_id)
    WHERE t.name = %(tenant)s AND i.merged_into IS NOT NULL
    UNION
    SELECT i.merged_into, i.merged_into FROM tenant t JOIN item i USING (tenant_id)
    WHERE t.name = %(tenant)s AND i.merged_into IS NOT NULL
), lot_family AS MATERIALIZED (
    SELECT lot.lot_id, min(lot.lot_id) OVER (PARTITION BY f.shown_id, lot.name) AS shown_id
    FROM lot JOIN family f USING (item_id)
), shown AS MATERIALIZED (
    SELECT b.location_id, b.item_id, b.lot_id, l.site_id, coalesce(l.merged_into, l.location_id) AS shown_location,
        coalesce(family.shown_id, b.item_id) AS shown_item, coalesce(lot_family.shown_id, b.lot_id) AS shown_lot
    FROM tenant t
    JOIN site s USING (tenant_id)
    JOIN location l USING (site_id)
    JOIN balance b USING (location_id)
    LEFT JOIN family USING (item_id)
    LEFT JOIN lot_family USING (lot_id)
    WHERE t.name = %(tenant)s AND (%(site)s::text IS NULL OR s.name = %(site)s)
        AND (%(sku)s::text IS NULL OR coalesce(family.shown_id, b.item_id) = (
            SELECT coalesce(merged_into, item_id) FROM item WHERE tenant_id = t.tenant_id AND sku = %(sku)s))
), wanted AS (
    SELECT location_id, item_id, lot_id, adjust
    FROM (
        SELECT c.shown_location AS location_id, c.shown_item AS item_id, c.shown_lot AS lot_id, false AS adjust
        FROM shown c
        JOIN location l ON l.location_id = c.shown_location
        WHERE (%(location)s::text IS NULL OR c.shown_location = (
                SELECT coalesce(merged_into, location_id) FROM location
                WHERE site_id = c.site_id AND name = %(location)s))
            AND (%(virtual)s OR NOT l.virtual) AND l.name <> %(adjust)s
        UNION
        SELECT a.location_id, c.shown_item, c.shown_lot, true
        FROM shown c
        JOIN location a ON a.site_id = c.site_id AND a.name = %(adjust)s
        WHERE (%(location)s::text IS NULL OR a.name = %(location)s) AND %(virtual)s
    ) AS cells
    WHERE (location_id, item_id, lot_id) > (%(after_location)s, %(after_item)s, %(after_lot)s)
    ORDER BY location_id, item_id, lot_id
    LIMIT %(cells)s
), cell AS (
    SELECT c.location_id, c.item_id, c.lot_id, c.site_id, c.shown_location, c.shown_item, c.shown_lot
    FROM wanted w
    JOIN shown c ON (c.shown_location, c.shown_item, c.shown_lot) = (w.location_id, w.item_id, w.lot_id)
    WHERE NOT w.adjust
    UNION
    SELECT c.location_id, c.item_id, c.lot_id, c.site_id, c.shown_location, c.shown_item, c.shown_lot
    FROM wanted w
    JOIN location a USING (location_id)
    JOIN shown c ON (c.site_id, c.shown_item, c.shown_lot) = (a.site_id, w.item_id, w.lot_id)
        AND c.location_id <> a.location_id
    WHERE w.adjust
), log AS MATERIALIZED (
    SELECT e.epoch_id, g.name AS gateway, e.ulid AS epoch,
        CASE WHEN %(known_at)s::timestamptz IS NULL THEN 9223372036854775807 ELSE coalesce(known.seq, 0) END AS last_seq
    FROM tenant t
    JOIN site s USING (tenant_id)
    JOIN gateway g USING (site_id)
    JOIN epoch e USING (gateway_id)
    LEFT JOIN LATERAL (
        SELECT f.first_seq + f.entries - 1 AS seq
        FROM frame f
        WHERE (f.gateway_id, f.epoch_id) = (e.gateway_id, e.epoch_id) AND f.stream = %(stream)s
            AND f.received_at <= %(known_at)s::timestamptz
        ORDER BY f.frame DESC
        LIMIT 1
    ) AS known ON true
    WHERE t.name = %(tenant)s AND (%(site)s::text IS NULL OR s.name = %(site)s)
), counted AS MATERIALIZED (
    SELECT cell.*, latest.hlc, latest.gateway, latest.epoch, latest.seq, latest.quantity
    FROM cell
    LEFT JOIN LATERAL (
        SELECT c.hlc, log.gateway, log.epoch, c.seq, c.quantity
        FROM count c
        JOIN log ON log.epoch_id = c.epoch_id AND c.seq <= log.last_seq
        WHERE (c.location_id, c.item_id, c.lot_id) = (cell.location_id, cell.item_id, cell.lot_id)
            AND c.at <= coalesce(%(at)s::timestamptz, 'infinity')
        ORDER BY c.hlc DESC, c.gateway_name DESC, log.epoch DESC, c.seq DESC
        LIMIT 1
    ) AS latest ON true
), step AS (
    SELECT c.location_id, c.item_id, c.lot_id, m.hlc, m.epoch_id, m.seq, m.at, m.quantity
    FROM counted c
    JOIN location here ON here.location_id = c.location_id AND NOT here.virtual
    CROSS JOIN LATERAL (
        SELECT hlc, epoch_id, seq, at, -quantity AS quantity FROM movement
        WHERE kind NOT IN (1, 5) AND source_id = c.location_id AND item_id = c.item_id AND lot_id = c.lot_id
            AND hlc >= coalesce(c.hlc, 0)
        UNION ALL
        SELECT hlc, epoch_id, seq, at, quantity FROM movement
        WHERE kind NOT IN (2, 4, 6) AND destination_id = c.location_id AND item_id = c.item_id AND lot_id = c.lot_id
            AND hlc >= coalesce(c.hlc, 0)
    ) AS m
    UNION ALL
    SELECT c.location_id, c.item_id, c.lot_id, m.hlc, m.epoch_id, m.seq, m.at, m.quantity
    FROM counted c
    JOIN location here ON here.location_id = c.location_id AND here.virtual
    JOIN location shelf ON shelf.site_id = here.site_id AND NOT shelf.virtual
    JOIN balance b ON (b.location_id, b.item_id, b.lot_id) = (shelf.location_id, c.item_id, c.lot_id)
    CROSS JOIN LATERAL (
        SELECT hlc, epoch_id, seq, at, quantity FROM movement
        WHERE kind NOT IN (1, 5) AND source_id = b.location_id AND item_id = b.item_id AND lot_id = b.lot_id
            AND destination_id = c.location_id
        UNION ALL
        SELECT hlc, epoch_id, seq, at, -quantity FROM movement
        WHERE kind NOT IN (2, 4, 6) AND destination_id = b.location_id AND item_id = b.item_id AND lot_id = b.lot_id
            AND source_id = c.location_id
    ) AS m
), moved AS (
    SELECT counted.location_id, counted.item_id, counted.lot_id, sum(m.quantity) AS quantity
    FROM counted
    JOIN step m USING (location_id, item_id, lot_id)
    JOIN log ON log.epoch_id = m.epoch_id AND m.seq <= log.last_seq
    WHERE m.at <= coalesce(%(at)s::timestamptz, 'infinity')
        AND (counted.hlc IS NULL
            OR (m.hlc, log.gateway, log.epoch, m.seq) > (counted.hlc, counted.gateway, counted.epoch, counted.seq))
    GROUP BY counted.location_id, counted.item_id, counted.lot_id
), held AS (
    SELECT c.site_id, c.shown_location AS location_id, c.shown_item AS item_id, c.shown_lot AS lot_id,
        sum(coalesce(c.quantity, 0) + coalesce(moved.quantity, 0)) AS on_hand
    FROM counted c
    LEFT JOIN moved USING (location_id, item_id, lot_id)
    GROUP BY c.site_id, c.shown_location, c.shown_item, c.shown_lot
), left_over AS (
    SELECT site_id, item_id, lot_id, -sum(on_hand) AS on_hand
    FROM held
    GROUP BY site_id, item_id, lot_id
)
SELECT t.name AS tenant, s.name AS site, l.name AS location, i.sku, lot.name AS lot,
    (CASE WHEN w.adjust THEN coalesce(left_over.on_hand, 0) ELSE held.on_hand END)::bigint AS on_hand, i.unit, i.scale,
    i.stub, w.location_id, w.item_id, w.lot_id
FROM wanted w
JOIN location l USING (location_id)
JOIN site s USING (site_id)
JOIN tenant t USING (tenant_id)
JOIN item i USING (item_id)
JOIN lot ON lot.lot_id = w.lot_id
LEFT JOIN held ON (held.location_id, held.item_id, held.lot_id) = (w.location_id, w.item_id, w.lot_id)
LEFT JOIN left_over ON (left_over.site_id, left_over.item_id, left_over.lot_id) = (l.site_id, w.item_id, w.lot_id)
ORDER BY w.location_id, w.item_id, w.lot_id
