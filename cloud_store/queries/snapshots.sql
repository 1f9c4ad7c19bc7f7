-- name: balances
SELECT l.name, i.sku, coalesce(lot.name, ''), b.on_hand
FROM balance b
JOIN location l USING (location_id)
JOIN site s USING (site_id)
JOIN tenant t ON t.tenant_id = s.tenant_id
JOIN item i USING (item_id)
JOIN lot ON lot.lot_id = b.lot_id
WHERE t.name = %(tenant)s AND s.name = %(site)s AND b.on_hand <> 0

-- name: variances
SELECT c.hlc, c.gateway_name, c.epoch, c.seq, c.variance
FROM count c
JOIN location l USING (location_id)
JOIN site s USING (site_id)
JOIN tenant t ON t.tenant_id = s.tenant_id
WHERE t.name = %(tenant)s AND s.name = %(site)s

-- name: entries
-- Rows and distinct entries: equal numbers mean that nothing was merged twice.
SELECT t.name, g.name, 'movement', count(*), count(DISTINCT (m.epoch_id, m.seq))
FROM movement m JOIN gateway g USING (gateway_id) JOIN tenant t ON t.tenant_id = m.tenant_id
GROUP BY t.name, g.name
UNION ALL
SELECT t.name, g.name, 'count', count(*), count(DISTINCT (c.epoch_id, c.seq))
FROM count c JOIN gateway g USING (gateway_id) JOIN tenant t ON t.tenant_id = c.tenant_id
GROUP BY t.name, g.name
UNION ALL
SELECT t.name, g.name, 'reading', count(*), count(DISTINCT (r.epoch_id, r.seq, r.metric_id))
FROM reading r JOIN gateway g USING (gateway_id) JOIN tenant t ON t.tenant_id = r.tenant_id
GROUP BY t.name, g.name

-- name: readings
-- A reading may have several values; here each counts once.
SELECT t.name, g.name, count(DISTINCT (r.epoch_id, r.seq))
FROM reading r JOIN gateway g USING (gateway_id) JOIN tenant t ON t.tenant_id = r.tenant_id
GROUP BY t.name, g.name

-- name: imbalance
SELECT t.name, i.sku, coalesce(lot.name, ''), sum(b.on_hand)
FROM balance b
JOIN item i USING (item_id)
JOIN tenant t USING (tenant_id)
JOIN lot ON lot.lot_id = b.lot_id
GROUP BY t.name, i.sku, lot.name
HAVING sum(b.on_hand) <> 0
