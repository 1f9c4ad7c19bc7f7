-- name: stock
-- Stock over the entries that are true by `at` and were received by `known_at`, as `wire_protocol.stock` defines it: the
-- latest count of a cell among them, or 0, plus the movements among them that are later by (hlc, gateway, epoch, seq).
-- A log is received in order, so what was known of it is a prefix: its length is looked up once for each log.
-- A cell that ever held goods has a balance. @adjust may lack one, and is what all other locations of its site leave.
-- One page looks at so many cells, empty ones included. Movements of a shelf are added up by whole hours of its history,
-- and read one by one in the hours that a count or one of the two times cuts; all of them where the history is not
-- whole. Those of a virtual location are found by the shelves at their other side.
-- A cell whose name stands for another's is added to the one that is meant. There are few of those, so they are all
-- looked at, and the rest is read as if there were none.
WITH family AS MATERIALIZED (
    SELECT i.item_id, i.merged_into AS shown_id FROM tenant t JOIN item i USING (tenant_id)
    WHERE t.name = %(tenant)s AND i.merged_into IS NOT NULL
    UNION
    SELECT i.merged_into, i.merged_into FROM tenant t JOIN item i USING (tenant_id)
    WHERE t.name = %(tenant)s AND i.merged_into IS NOT NULL
), place_family AS MATERIALIZED (
    SELECT l.location_id, l.merged_into AS shown_id FROM tenant t JOIN site s USING (tenant_id) JOIN location l USING (site_id)
    WHERE t.name = %(tenant)s AND l.merged_into IS NOT NULL
    UNION
    SELECT l.merged_into, l.merged_into FROM tenant t JOIN site s USING (tenant_id) JOIN location l USING (site_id)
    WHERE t.name = %(tenant)s AND l.merged_into IS NOT NULL
), lot_family AS MATERIALIZED (
    SELECT lot.lot_id, min(lot.lot_id) OVER (PARTITION BY f.shown_id, lot.name) AS shown_id
    FROM lot JOIN family f USING (item_id)
), asked AS MATERIALIZED (
    SELECT l.location_id, coalesce(l.merged_into, l.location_id) AS shown_location, l.site_id, l.virtual, l.name
    FROM tenant t
    JOIN site s USING (tenant_id)
    JOIN location l USING (site_id)
    WHERE t.name = %(tenant)s AND (%(site)s::text IS NULL OR s.name = %(site)s)
), goods AS MATERIALIZED (
    SELECT coalesce(i.merged_into, i.item_id) AS item_id FROM tenant t JOIN item i USING (tenant_id)
    WHERE t.name = %(tenant)s AND i.sku = %(sku)s
), shown_place AS MATERIALIZED (
    SELECT DISTINCT a.shown_location AS location_id, a.site_id
    FROM asked a
    JOIN asked here ON here.location_id = a.shown_location
    WHERE (%(location)s::text IS NULL OR a.name = %(location)s) AND (%(virtual)s OR NOT here.virtual)
        AND here.name <> %(adjust)s
), plain AS (
    SELECT b.location_id, b.item_id, b.lot_id
    FROM balance b
    WHERE b.location_id IN (SELECT location_id FROM shown_place)
        AND b.location_id NOT IN (SELECT location_id FROM place_family)
        AND b.item_id NOT IN (SELECT item_id FROM family)
        AND (%(sku)s::text IS NULL OR b.item_id IN (SELECT item_id FROM goods))
        AND (b.location_id, b.item_id, b.lot_id) > (%(after_location)s, %(after_item)s, %(after_lot)s)
    ORDER BY b.location_id, b.item_id, b.lot_id
    LIMIT %(cells)s
), of_family AS (
    SELECT location_id, item_id, lot_id FROM balance JOIN family USING (item_id)
    UNION
    SELECT location_id, item_id, lot_id FROM balance JOIN place_family USING (location_id)
), wanted AS MATERIALIZED (
    SELECT location_id, item_id, lot_id, adjust
    FROM (
        SELECT location_id, item_id, lot_id, false AS adjust FROM plain
        UNION
        SELECT a.shown_location, coalesce(f.shown_id, c.item_id), coalesce(lf.shown_id, c.lot_id), false
        FROM of_family c
        JOIN asked a USING (location_id)
        LEFT JOIN family f USING (item_id)
        LEFT JOIN lot_family lf USING (lot_id)
        WHERE a.shown_location IN (SELECT location_id FROM shown_place)
            AND (%(sku)s::text IS NULL OR coalesce(f.shown_id, c.item_id) IN (SELECT item_id FROM goods))
        UNION
        SELECT here.location_id, coalesce(f.shown_id, c.item_id), coalesce(lf.shown_id, c.lot_id), true
        FROM asked here
        JOIN asked a USING (site_id)
        JOIN balance c ON c.location_id = a.location_id
        LEFT JOIN family f ON f.item_id = c.item_id
        LEFT JOIN lot_family lf ON lf.lot_id = c.lot_id
        WHERE %(virtual)s AND here.name = %(adjust)s AND (%(location)s::text IS NULL OR here.name = %(location)s)
            AND (%(sku)s::text IS NULL OR coalesce(f.shown_id, c.item_id) IN (SELECT item_id FROM goods))
    ) AS cells
    WHERE (location_id, item_id, lot_id) > (%(after_location)s, %(after_item)s, %(after_lot)s)
    ORDER BY location_id, item_id, lot_id
    LIMIT %(cells)s
), meant AS (
    -- By which items and lots each wanted cell is meant; nearly all by their own only.
    SELECT w.location_id, w.item_id, w.lot_id, w.adjust, i.item_id AS of_item, l.lot_id AS of_lot
    FROM wanted w
    CROSS JOIN LATERAL (SELECT f.item_id FROM family f WHERE f.shown_id = w.item_id UNION SELECT w.item_id) AS i
    CROSS JOIN LATERAL (SELECT f.lot_id FROM lot_family f WHERE f.shown_id = w.lot_id UNION SELECT w.lot_id) AS l
), cell AS MATERIALIZED (
    SELECT b.location_id, b.item_id, b.lot_id, b.moved, b.history_whole, a.site_id, a.shown_location,
        m.item_id AS shown_item, m.lot_id AS shown_lot, a.virtual
    FROM meant m
    JOIN asked a ON a.shown_location = m.location_id
    JOIN balance b ON (b.location_id, b.item_id, b.lot_id) = (a.location_id, m.of_item, m.of_lot)
    WHERE NOT m.adjust
    UNION
    SELECT b.location_id, b.item_id, b.lot_id, b.moved, b.history_whole, a.site_id, a.shown_location, m.item_id,
        m.lot_id, a.virtual
    FROM meant m
    JOIN asked here ON here.location_id = m.location_id
    JOIN balance b ON (b.item_id, b.lot_id) = (m.of_item, m.of_lot)
    JOIN asked a ON a.location_id = b.location_id AND a.site_id = here.site_id AND a.location_id <> here.location_id
    WHERE m.adjust
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
        WHERE %(known_at)s::timestamptz IS NOT NULL AND (f.gateway_id, f.epoch_id) = (e.gateway_id, e.epoch_id)
            AND f.stream = %(stream)s AND f.received_at <= %(known_at)s::timestamptz
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
), recent AS MATERIALIZED (
    SELECT * FROM cell_history_new WHERE location_id IN (SELECT location_id FROM cell)
), cut AS MATERIALIZED (
    -- Each hour of a shelf's history: all that moved, what moved wholly inside the question, and whether it cuts the hour.
    SELECT c.location_id, c.item_id, c.lot_id, h.hour, sum(h.moved) AS all_moved,
        sum(h.moved) FILTER (WHERE h.hour > c.counted_hour AND h.at_hour < t.at_hour
            AND h.known_hour BETWEEN t.kept AND t.known_hour - 1) AS moved,
        bool_or(h.hour >= c.counted_hour AND h.at_hour <= t.at_hour AND h.known_hour <= t.known_hour
            AND (h.hour = c.counted_hour OR h.at_hour = t.at_hour OR h.known_hour = t.known_hour OR h.known_hour < t.kept))
            AS is_cut
    FROM (
        SELECT location_id, item_id, lot_id, coalesce(hlc / %(hour_of_hlc)s, -1) AS counted_hour FROM counted
        WHERE history_whole AND NOT virtual
    ) AS c
    JOIN (
        SELECT location_id, item_id, lot_id, hour, at_hour, known_hour, moved FROM cell_history
        UNION ALL
        SELECT location_id, item_id, lot_id, hour, at_hour, known_hour, moved FROM recent
    ) AS h USING (location_id, item_id, lot_id)
    CROSS JOIN (
        SELECT coalesce(floor(extract(epoch FROM %(at)s::timestamptz) / 3600)::integer, 2147483647) AS at_hour,
            coalesce(floor(extract(epoch FROM %(known_at)s::timestamptz) / 3600)::integer, 2147483647) AS known_hour,
            CASE WHEN %(known_at)s::timestamptz IS NULL THEN -1 ELSE 0 END AS kept
    ) AS t
    GROUP BY c.location_id, c.item_id, c.lot_id, h.hour
), whole AS MATERIALIZED (
    SELECT c.location_id, c.item_id, c.lot_id, sum(cut.moved) FILTER (WHERE NOT cut.is_cut) AS moved
    FROM counted c
    LEFT JOIN cut USING (location_id, item_id, lot_id)
    WHERE c.history_whole AND NOT c.virtual
    GROUP BY c.location_id, c.item_id, c.lot_id, c.moved
    HAVING coalesce(sum(cut.all_moved), 0) = c.moved
), look AS (
    -- Stretches of shelves' movements to be read one by one.
    SELECT location_id, item_id, lot_id, hour * %(hour_of_hlc)s AS from_hlc, (hour + 1) * %(hour_of_hlc)s - 1 AS to_hlc
    FROM cut JOIN whole USING (location_id, item_id, lot_id)
    WHERE cut.is_cut
    UNION ALL
    SELECT location_id, item_id, lot_id, coalesce(c.hlc, 0), 9223372036854775807
    FROM counted c LEFT JOIN whole USING (location_id, item_id, lot_id)
    WHERE NOT c.virtual AND whole.location_id IS NULL
), step AS (
    SELECT l.location_id, l.item_id, l.lot_id, m.hlc, m.epoch_id, m.seq, m.at, m.quantity
    FROM look l
    CROSS JOIN LATERAL (
        SELECT hlc, epoch_id, seq, at, -quantity AS quantity FROM movement
        WHERE kind NOT IN (1, 5) AND source_id = l.location_id AND item_id = l.item_id AND lot_id = l.lot_id
            AND hlc BETWEEN l.from_hlc AND l.to_hlc
        UNION ALL
        SELECT hlc, epoch_id, seq, at, quantity FROM movement
        WHERE kind NOT IN (2, 4, 6) AND destination_id = l.location_id AND item_id = l.item_id AND lot_id = l.lot_id
            AND hlc BETWEEN l.from_hlc AND l.to_hlc
    ) AS m
    UNION ALL
    SELECT c.location_id, c.item_id, c.lot_id, m.hlc, m.epoch_id, m.seq, m.at, m.quantity
    FROM counted c
    JOIN asked shelf ON shelf.site_id = c.site_id AND NOT shelf.virtual
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
    WHERE c.virtual
), moved AS (
    SELECT location_id, item_id, lot_id, sum(quantity) AS quantity
    FROM (
        SELECT counted.location_id, counted.item_id, counted.lot_id, m.quantity
        FROM counted
        JOIN step m USING (location_id, item_id, lot_id)
        JOIN log ON log.epoch_id = m.epoch_id AND m.seq <= log.last_seq
        WHERE m.at <= coalesce(%(at)s::timestamptz, 'infinity')
            AND (counted.hlc IS NULL
                OR (m.hlc, log.gateway, log.epoch, m.seq) > (counted.hlc, counted.gateway, counted.epoch, counted.seq))
        UNION ALL
        SELECT location_id, item_id, lot_id, moved FROM whole
    ) AS parts
    GROUP BY location_id, item_id, lot_id
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
