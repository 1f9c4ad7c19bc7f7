-- name: stock
-- Stock over the entries that are true by `at` and were received by `known_at`, as `wire_protocol.stock` defines it: the
-- latest count of a cell among them, or 0, plus the movements among them that are later by (hlc, gateway, epoch, seq).
-- A log is received in order, so what was known of it is a prefix: its length is looked up once for each log.
-- A cell that ever held goods has a balance. @adjust may lack one, and is what all other locations of its site leave.
-- One page looks at so many cells, empty ones included. Movements are found by shelf, from its count on; those of a virtual location
-- by the shelves at their other side.
WITH wanted AS (
    SELECT location_id, item_id, lot_id, adjust
    FROM (
        SELECT l.location_id, b.item_id, b.lot_id, false AS adjust
        FROM tenant t
        JOIN site s USING (tenant_id)
        JOIN location l USING (site_id)
        JOIN balance b USING (location_id)
        WHERE t.name = %(tenant)s AND (%(site)s::text IS NULL OR s.name = %(site)s)
            AND (%(location)s::text IS NULL OR l.name = %(location)s) AND (%(virtual)s OR NOT l.virtual)
            AND l.name <> %(adjust)s
        UNION
        SELECT a.location_id, b.item_id, b.lot_id, true
        FROM tenant t
        JOIN site s USING (tenant_id)
        JOIN location a USING (site_id)
        JOIN location l USING (site_id)
        JOIN balance b ON b.location_id = l.location_id
        WHERE t.name = %(tenant)s AND (%(site)s::text IS NULL OR s.name = %(site)s)
            AND (%(location)s::text IS NULL OR a.name = %(location)s) AND %(virtual)s AND a.name = %(adjust)s
    ) AS cells
    JOIN item USING (item_id)
    WHERE (%(sku)s::text IS NULL OR item.sku = %(sku)s)
        AND (location_id, item_id, lot_id) > (%(after_location)s, %(after_item)s, %(after_lot)s)
    ORDER BY location_id, item_id, lot_id
    LIMIT %(cells)s
), cell AS (
    SELECT location_id, item_id, lot_id
    FROM wanted
    WHERE NOT adjust
    UNION
    SELECT l.location_id, w.item_id, w.lot_id
    FROM wanted w
    JOIN location a USING (location_id)
    JOIN location l ON l.site_id = a.site_id AND l.location_id <> a.location_id
    JOIN balance b ON (b.location_id, b.item_id, b.lot_id) = (l.location_id, w.item_id, w.lot_id)
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
    SELECT l.site_id, c.location_id, c.item_id, c.lot_id, coalesce(c.quantity, 0) + coalesce(moved.quantity, 0) AS on_hand
    FROM counted c
    JOIN location l USING (location_id)
    LEFT JOIN moved USING (location_id, item_id, lot_id)
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
