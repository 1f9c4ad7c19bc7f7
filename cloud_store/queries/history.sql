-- name: page
-- The cells of a page, empty ones included: those that ever held goods have a balance; @adjust may lack one, and is what
-- all other locations of its site leave. A cell whose name stands for another's is shown under the one that is meant.
-- There are few of those, so they are all looked at, and the rest is read as if there were none.
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
), wanted AS (
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
)
SELECT t.name AS tenant, s.name AS site, l.name AS location, i.sku, lot.name AS lot, i.unit, i.scale, i.stub,
    w.location_id, w.item_id, w.lot_id, w.adjust
FROM wanted w
JOIN location l USING (location_id)
JOIN site s USING (site_id)
JOIN tenant t USING (tenant_id)
JOIN item i USING (item_id)
JOIN lot ON lot.lot_id = w.lot_id
ORDER BY w.location_id, w.item_id, w.lot_id

-- name: members
-- The cells that each cell of a page stands for, by its place from 0: itself, and those whose names stand for its; for
-- @adjust all others of its site, of the same goods.
WITH wanted AS (
    SELECT *
    FROM unnest(%(locations)s::bigint[], %(items)s::bigint[], %(lots)s::bigint[], %(adjusts)s::boolean[])
        WITH ORDINALITY AS t (location_id, item_id, lot_id, adjust, place)
), goods AS (
    SELECT item_id, item_id AS shown_id FROM wanted
    UNION
    SELECT item_id, merged_into FROM item WHERE merged_into IS NOT NULL
), batch AS (
    SELECT lot_id, lot_id AS shown_id FROM wanted
    UNION
    SELECT lot.lot_id, min(lot.lot_id) OVER (PARTITION BY g.shown_id, lot.name)
    FROM lot JOIN goods g USING (item_id)
    WHERE g.shown_id IN (SELECT merged_into FROM item WHERE merged_into IS NOT NULL)
), spot AS (
    SELECT w.place, w.location_id FROM wanted w WHERE NOT w.adjust
    UNION
    SELECT w.place, l.location_id FROM wanted w JOIN location l ON l.merged_into = w.location_id WHERE NOT w.adjust
    UNION
    SELECT w.place, l.location_id
    FROM wanted w
    JOIN location here ON here.location_id = w.location_id
    JOIN location l ON l.site_id = here.site_id AND l.location_id <> here.location_id
    WHERE w.adjust
)
SELECT w.place - 1, b.location_id, b.item_id, b.lot_id, l.virtual, b.moved, b.history_whole
FROM wanted w
JOIN spot USING (place)
JOIN goods g ON g.shown_id = w.item_id
JOIN batch ON batch.shown_id = w.lot_id
JOIN balance b ON (b.location_id, b.item_id, b.lot_id) = (spot.location_id, g.item_id, batch.lot_id)
JOIN location l ON l.location_id = b.location_id

-- name: known
-- How much of each log was known by a moment. A log is received in order, so it is a prefix.
SELECT e.epoch_id, known.seq
FROM tenant t
JOIN site s USING (tenant_id)
JOIN gateway g USING (site_id)
JOIN epoch e USING (gateway_id)
CROSS JOIN LATERAL (
    SELECT f.first_seq + f.entries - 1 AS seq
    FROM frame f
    WHERE (f.gateway_id, f.epoch_id) = (e.gateway_id, e.epoch_id) AND f.stream = %(stream)s
        AND f.received_at <= %(known_at)s::timestamptz
    ORDER BY f.frame DESC
    LIMIT 1
) AS known
WHERE t.name = %(tenant)s AND (%(site)s::text IS NULL OR s.name = %(site)s)

-- name: counts
-- The latest count of each cell among those of the question, by the cell's place from 0.
SELECT t.place - 1, latest.hlc, latest.gateway_name, latest.epoch, latest.seq, latest.quantity
FROM unnest(%(locations)s::bigint[], %(items)s::bigint[], %(lots)s::bigint[])
    WITH ORDINALITY AS t (location_id, item_id, lot_id, place)
CROSS JOIN LATERAL (
    SELECT c.hlc, c.gateway_name, c.epoch, c.seq, c.quantity
    FROM count c
    WHERE (c.location_id, c.item_id, c.lot_id) = (t.location_id, t.item_id, t.lot_id)
        AND c.at <= coalesce(%(at)s::timestamptz, 'infinity')
        AND (%(known_at)s::timestamptz IS NULL OR c.seq <= (
            SELECT log.seq FROM unnest(%(known_epochs)s::bigint[], %(known_seqs)s::bigint[]) AS log (epoch_id, seq)
            WHERE log.epoch_id = c.epoch_id))
    ORDER BY c.hlc DESC, c.gateway_name DESC, c.epoch DESC, c.seq DESC
    LIMIT 1
) AS latest

-- name: recent_hours
-- What is not folded yet of shelves' histories, by their place from 0: how much moved in each hour, and whether any of it
-- may be inside the question.
SELECT t.place - 1, h.hour, sum(h.moved)::bigint, bool_or(h.hour >= t.counted_hour AND h.at_hour <= %(at_hour)s
    AND h.known_hour <= %(known_hour)s)
FROM unnest(%(locations)s::bigint[], %(items)s::bigint[], %(lots)s::bigint[], %(counted_hours)s::bigint[])
    WITH ORDINALITY AS t (location_id, item_id, lot_id, counted_hour, place)
JOIN (SELECT * FROM cell_history_new WHERE location_id = ANY(%(locations)s::integer[])) AS h
    ON (h.location_id, h.item_id, h.lot_id) = (t.location_id, t.item_id, t.lot_id)
GROUP BY t.place, h.hour

-- name: hours
-- What the folded histories of shelves give, by their place from 0: all that ever moved; what moved in hours that are
-- wholly inside the question; and the hours that are cut by the latest count, by one of the two times, or by `recent`.
WITH recent AS MATERIALIZED (
    SELECT * FROM unnest(%(recent_places)s::bigint[], %(recent_hours)s::bigint[]) AS r (place, hour)
)
SELECT t.place - 1, h.all_moved, h.moved, h.cut
FROM unnest(%(locations)s::bigint[], %(items)s::bigint[], %(lots)s::bigint[], %(counted_hours)s::bigint[])
    WITH ORDINALITY AS t (location_id, item_id, lot_id, counted_hour, place)
CROSS JOIN LATERAL (
    SELECT coalesce(sum(all_moved), 0)::bigint AS all_moved,
        coalesce(sum(inside) FILTER (WHERE NOT is_cut), 0)::bigint AS moved,
        array_agg(hour) FILTER (WHERE is_cut) AS cut
    FROM (
        SELECT h.hour, sum(h.moved) AS all_moved,
            sum(h.moved) FILTER (WHERE h.hour > t.counted_hour AND h.at_hour < %(at_hour)s
                AND h.known_hour BETWEEN %(kept)s AND %(known_hour)s - 1) AS inside,
            bool_or(h.hour >= t.counted_hour AND h.at_hour <= %(at_hour)s AND h.known_hour <= %(known_hour)s
                AND (h.hour = t.counted_hour OR h.at_hour = %(at_hour)s OR h.known_hour = %(known_hour)s
                    OR h.known_hour < %(kept)s))
                OR h.hour IN (SELECT r.hour FROM recent r WHERE r.place = t.place - 1) AS is_cut
        FROM cell_history h
        WHERE (h.location_id, h.item_id, h.lot_id) = (t.location_id, t.item_id, t.lot_id)
        GROUP BY h.hour
    ) AS by_hour
) AS h

-- name: moved
-- What moved on shelves in stretches of the clock, among the entries of the question and after a count, by the
-- stretch's place from 0.
WITH stretch AS (
    SELECT *
    FROM unnest(
        %(locations)s::bigint[], %(items)s::bigint[], %(lots)s::bigint[], %(from_hlcs)s::bigint[],
        %(to_hlcs)s::bigint[], %(hlcs)s::bigint[], %(gateways)s::text[], %(epochs)s::text[], %(seqs)s::bigint[]
    ) WITH ORDINALITY AS t (location_id, item_id, lot_id, from_hlc, to_hlc, hlc, gateway, epoch, seq, place)
)
SELECT t.place - 1, m.quantity
FROM stretch t
CROSS JOIN LATERAL (
    SELECT sum(m.quantity)::bigint AS quantity
    FROM (
        SELECT hlc, gateway_id, epoch_id, seq, at, quantity FROM movement
        WHERE kind NOT IN (2, 4, 6) AND destination_id = t.location_id AND item_id = t.item_id AND lot_id = t.lot_id
            AND hlc BETWEEN t.from_hlc AND t.to_hlc
        UNION ALL
        SELECT hlc, gateway_id, epoch_id, seq, at, -quantity FROM movement
        WHERE kind NOT IN (1, 5) AND source_id = t.location_id AND item_id = t.item_id AND lot_id = t.lot_id
            AND hlc BETWEEN t.from_hlc AND t.to_hlc
    ) AS m
    WHERE m.at <= coalesce(%(at)s::timestamptz, 'infinity')
        AND (%(known_at)s::timestamptz IS NULL OR m.seq <= (
            SELECT log.seq FROM unnest(%(known_epochs)s::bigint[], %(known_seqs)s::bigint[]) AS log (epoch_id, seq)
            WHERE log.epoch_id = m.epoch_id))
        AND (m.hlc > t.hlc OR (m.hlc = t.hlc AND (
            SELECT (g.name, e.ulid, m.seq) > (t.gateway COLLATE "C", t.epoch COLLATE "C", t.seq)
            FROM gateway g, epoch e
            WHERE g.gateway_id = m.gateway_id AND e.epoch_id = m.epoch_id)))
) AS m
WHERE m.quantity IS NOT NULL

-- name: moved_outside
-- What moved into and out of virtual locations, among the entries of the question, by the cell's place from 0: found by
-- the shelves at the other side. Nobody counts those locations.
SELECT t.place - 1, coalesce(sum(m.quantity), 0)::bigint
FROM unnest(%(locations)s::bigint[], %(items)s::bigint[], %(lots)s::bigint[])
    WITH ORDINALITY AS t (location_id, item_id, lot_id, place)
JOIN location here ON here.location_id = t.location_id
JOIN location shelf ON shelf.site_id = here.site_id AND NOT shelf.virtual
CROSS JOIN LATERAL (
    SELECT sum(m.quantity) AS quantity
    FROM (
        SELECT epoch_id, seq, at, quantity FROM movement
        WHERE kind NOT IN (1, 5) AND source_id = shelf.location_id AND item_id = t.item_id AND lot_id = t.lot_id
            AND destination_id = t.location_id
        UNION ALL
        SELECT epoch_id, seq, at, -quantity FROM movement
        WHERE kind NOT IN (2, 4, 6) AND destination_id = shelf.location_id AND item_id = t.item_id
            AND lot_id = t.lot_id AND source_id = t.location_id
    ) AS m
    WHERE m.at <= coalesce(%(at)s::timestamptz, 'infinity')
        AND (%(known_at)s::timestamptz IS NULL OR m.seq <= (
            SELECT log.seq FROM unnest(%(known_epochs)s::bigint[], %(known_seqs)s::bigint[]) AS log (epoch_id, seq)
            WHERE log.epoch_id = m.epoch_id))
) AS m
GROUP BY t.place
