-- name: stock
-- Keyset pages by (site, location, item, lot) ids: stable whatever is inserted meanwhile. Cells whose names stand for
-- others, or are stood for, are added up under the name that is meant; a lot of them goes by the first lot of its name.
-- There are few of those, so they are all looked at, and the rest is read as if there were none.
WITH item_family AS MATERIALIZED (
    SELECT item_id, merged_into AS shown_id FROM item WHERE merged_into IS NOT NULL
    UNION
    SELECT merged_into, merged_into FROM item WHERE merged_into IS NOT NULL
), location_family AS MATERIALIZED (
    SELECT location_id, merged_into AS shown_id FROM location WHERE merged_into IS NOT NULL
    UNION
    SELECT merged_into, merged_into FROM location WHERE merged_into IS NOT NULL
), lot_family AS MATERIALIZED (
    SELECT lot.lot_id, min(lot.lot_id) OVER (PARTITION BY f.shown_id, lot.name) AS shown_id
    FROM lot JOIN item_family f USING (item_id)
), family_cell AS (
    SELECT b.location_id, b.item_id, b.lot_id, b.on_hand FROM balance b JOIN item_family USING (item_id)
    UNION
    SELECT b.location_id, b.item_id, b.lot_id, b.on_hand FROM balance b JOIN location_family USING (location_id)
), added_up AS (
    SELECT coalesce(place.shown_id, c.location_id) AS location_id, coalesce(goods.shown_id, c.item_id) AS item_id,
        coalesce(batch.shown_id, c.lot_id) AS lot_id, sum(c.on_hand)::bigint AS on_hand
    FROM family_cell c
    LEFT JOIN location_family place USING (location_id)
    LEFT JOIN item_family goods USING (item_id)
    LEFT JOIN lot_family batch USING (lot_id)
    GROUP BY 1, 2, 3
), page AS (
    (
        SELECT b.location_id, b.item_id, b.lot_id, b.on_hand
        FROM balance b
        JOIN location l USING (location_id)
        JOIN site s USING (site_id)
        JOIN tenant t ON t.tenant_id = s.tenant_id
        JOIN item i USING (item_id)
        WHERE (%(tenant)s::text IS NULL OR t.name = %(tenant)s)
            AND (%(site)s::text IS NULL OR s.name = %(site)s)
            AND (%(sku)s::text IS NULL OR i.sku = %(sku)s)
            AND (%(location)s::text IS NULL OR l.name = %(location)s)
            AND (%(virtual)s OR NOT l.virtual)
            AND (b.on_hand <> 0 OR %(zero)s)
            AND (b.location_id, b.item_id, b.lot_id) > (%(after_location)s, %(after_item)s, %(after_lot)s)
            AND b.item_id NOT IN (SELECT item_id FROM item_family)
            AND b.location_id NOT IN (SELECT location_id FROM location_family)
        ORDER BY b.location_id, b.item_id, b.lot_id
        LIMIT %(limit)s
    )
    UNION ALL
    (
        SELECT b.location_id, b.item_id, b.lot_id, b.on_hand
        FROM added_up b
        JOIN location l USING (location_id)
        JOIN site s USING (site_id)
        JOIN tenant t ON t.tenant_id = s.tenant_id
        WHERE (%(tenant)s::text IS NULL OR t.name = %(tenant)s)
            AND (%(site)s::text IS NULL OR s.name = %(site)s)
            AND (%(sku)s::text IS NULL OR b.item_id IN (
                SELECT coalesce(merged_into, item_id) FROM item WHERE tenant_id = t.tenant_id AND sku = %(sku)s))
            AND (%(location)s::text IS NULL OR b.location_id IN (
                SELECT coalesce(merged_into, location_id) FROM location WHERE site_id = s.site_id AND name = %(location)s))
            AND (%(virtual)s OR NOT l.virtual)
            AND (b.on_hand <> 0 OR %(zero)s)
            AND (b.location_id, b.item_id, b.lot_id) > (%(after_location)s, %(after_item)s, %(after_lot)s)
        ORDER BY b.location_id, b.item_id, b.lot_id
        LIMIT %(limit)s
    )
)
SELECT t.name AS tenant, s.name AS site, l.name AS location, i.sku, lot.name AS lot, b.on_hand, i.unit, i.scale,
    i.stub, b.location_id, b.item_id, b.lot_id
FROM page b
JOIN location l USING (location_id)
JOIN site s USING (site_id)
JOIN tenant t ON t.tenant_id = s.tenant_id
JOIN item i USING (item_id)
JOIN lot ON lot.lot_id = b.lot_id
ORDER BY b.location_id, b.item_id, b.lot_id
LIMIT %(limit)s

-- name: movements
-- Newest first; keyset pages by (at, gateway, epoch, seq). The page is cut from the tenant's time index before any name is
-- looked up: under row level security the planner cannot tell how few rows a join leaves, and would join them all. A name
-- that stands for another is shown, and found, as that.
WITH wanted AS (
    SELECT tenant_id FROM tenant WHERE name = %(tenant)s
), page AS MATERIALIZED (
    SELECT m.*
    FROM movement m
    WHERE m.tenant_id = (SELECT tenant_id FROM wanted)
        AND (%(site)s::text IS NULL OR m.gateway_id = ANY(ARRAY(
            SELECT gateway_id FROM gateway JOIN site USING (site_id) JOIN wanted ON site.tenant_id = wanted.tenant_id
            WHERE site.name = %(site)s)))
        AND (%(gateway)s::text IS NULL OR m.gateway_id = (SELECT gateway_id FROM gateway WHERE name = %(gateway)s))
        AND (%(sku)s::text IS NULL OR m.item_id = ANY(ARRAY(
            SELECT booked.item_id
            FROM item asked
            JOIN wanted USING (tenant_id)
            JOIN item booked ON booked.item_id = coalesce(asked.merged_into, asked.item_id)
                OR booked.merged_into = coalesce(asked.merged_into, asked.item_id)
            WHERE asked.sku = %(sku)s)))
        AND (%(location)s::text IS NULL OR ARRAY[m.source_id, m.destination_id] && ARRAY(
            SELECT booked.location_id
            FROM location asked
            JOIN site USING (site_id)
            JOIN wanted USING (tenant_id)
            JOIN location booked ON booked.location_id = coalesce(asked.merged_into, asked.location_id)
                OR booked.merged_into = coalesce(asked.merged_into, asked.location_id)
            WHERE asked.name = %(location)s))
        AND (%(kind)s::smallint IS NULL OR m.kind = %(kind)s)
        AND (%(since)s::timestamptz IS NULL OR m.at >= %(since)s)
        AND (%(until)s::timestamptz IS NULL OR m.at < %(until)s)
        AND (%(after_at)s::timestamptz IS NULL OR (m.at <= %(after_at)s
            AND (m.at, m.gateway_id, m.epoch_id, m.seq)
                < (%(after_at)s, %(after_gateway)s, %(after_epoch)s, %(after_seq)s)))
    ORDER BY m.at DESC, m.gateway_id DESC, m.epoch_id DESC, m.seq DESC
    LIMIT %(limit)s
)
SELECT s.name AS site, g.name AS gateway, e.ulid AS epoch, m.seq, m.at, m.claimed_ms, m.kind, i.sku, lot.name AS lot,
    m.serial, m.quantity, src.name AS source, dst.name AS destination, d.name AS device, m.event, m.actor,
    m.reference, m.device_at, m.gateway_id, m.epoch_id
FROM page m
JOIN gateway g USING (gateway_id)
JOIN site s USING (site_id)
JOIN epoch e USING (epoch_id)
JOIN item booked ON booked.item_id = m.item_id
JOIN item i ON i.item_id = coalesce(booked.merged_into, booked.item_id)
JOIN lot ON lot.lot_id = m.lot_id
JOIN location taken ON taken.location_id = m.source_id
JOIN location src ON src.location_id = coalesce(taken.merged_into, taken.location_id)
JOIN location given ON given.location_id = m.destination_id
JOIN location dst ON dst.location_id = coalesce(given.merged_into, given.location_id)
LEFT JOIN device d USING (device_id)
ORDER BY m.at DESC, m.gateway_id DESC, m.epoch_id DESC, m.seq DESC

-- name: gateways
SELECT t.name AS tenant, s.name AS site, g.name AS gateway, g.state AS registered, st.state, st.version, st.heard_at,
    st.clock_offset_ms, st.backlog, st.dead_letters, st.readings_dropped, st.devices_online,
    st.stock_proved_at, st.stock_differs,
    ledger.frame AS ledger_frame, ledger.seq AS ledger_seq, ledger.updated_at AS ledger_at,
    readings.frame AS readings_frame, readings.seq AS readings_seq
FROM gateway g
JOIN tenant t USING (tenant_id)
JOIN site s USING (site_id)
LEFT JOIN gateway_status st USING (gateway_id)
LEFT JOIN LATERAL (
    SELECT frame, seq, updated_at FROM stream_cursor
    WHERE gateway_id = g.gateway_id AND stream = 1 ORDER BY updated_at DESC LIMIT 1
) AS ledger ON true
LEFT JOIN LATERAL (
    SELECT frame, seq FROM stream_cursor
    WHERE gateway_id = g.gateway_id AND stream = 2 ORDER BY updated_at DESC LIMIT 1
) AS readings ON true
WHERE (%(tenant)s::text IS NULL OR t.name = %(tenant)s) AND (%(site)s::text IS NULL OR s.name = %(site)s)
    AND g.name > %(after)s
ORDER BY g.name
LIMIT %(limit)s

-- name: totals
SELECT (SELECT count(*) FROM tenant) AS tenants, (SELECT count(*) FROM site) AS sites,
    (SELECT count(*) FROM gateway) AS gateways,
    (SELECT count(*) FROM gateway_status WHERE state = 'online') AS online,
    (SELECT coalesce(sum(seq), 0)::bigint FROM stream_cursor WHERE stream = 1) AS ledger_entries,
    (SELECT coalesce(sum(seq), 0)::bigint FROM stream_cursor WHERE stream = 2) AS readings,
    (SELECT max(updated_at) FROM stream_cursor) AS last_merge,
    (SELECT count(*) FROM dead_letter) AS dead_letters,
    (SELECT count(*) FROM alarm WHERE cleared_at IS NULL) AS alarms,
    EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb') AS timescaledb
