-- name: find_cells
-- Shelves with goods of an item that is looked for, or with such a lot. `folded` is Python's casefold. The balances are
-- read from the table itself, as for `stock`.
SELECT b.sku, b.location, b.lot, b.on_hand, instr(folded(b.lot), :text) > 0
FROM balance AS b NOT INDEXED
WHERE b.on_hand <> 0 AND b.location NOT LIKE '@%'
    AND (instr(folded(b.sku), :text) OR instr(folded(b.lot), :text) OR b.sku IN (SELECT value FROM json_each(:skus)))
ORDER BY b.sku, b.location, b.lot
LIMIT :limit;

-- name: find_items
-- A GTIN is found with and without the zeros before it, which make 8, 12 and 13 digits 14.
SELECT sku, body,
    CASE
        WHEN instr(folded(sku), :text) THEN 'sku'
        WHEN length(:digits) > 3 AND instr(json_extract(body, '$.gtin'), :digits) THEN 'gtin'
        WHEN instr(folded(coalesce(json_extract(body, '$.name'), '')), :text) THEN 'name'
    END AS found_by
FROM catalog_item WHERE found_by IS NOT NULL
ORDER BY folded(sku) <> :text, sku
LIMIT :limit;

-- name: serial_entries
-- What was said of single pieces, by all gateways, in the order in which it happened. Not what the cloud has rejected.
SELECT body FROM (
    SELECT hlc, body FROM entry
    WHERE instr(body, '"serial":') AND seq NOT IN (SELECT seq FROM verdict WHERE stream = 'ledger')
    UNION ALL
    SELECT s.hlc, s.body FROM site_entry AS s JOIN log USING (log) WHERE NOT staged AND instr(s.body, '"serial":')
)
ORDER BY hlc;

-- name: low_stock
-- Items of which the shelves of this site hold no more than their reorder point.
SELECT c.sku, c.body, coalesce(h.on_hand, 0)
FROM catalog_item AS c
LEFT JOIN (
    SELECT sku, sum(on_hand) AS on_hand FROM balance NOT INDEXED WHERE location NOT LIKE '@%' GROUP BY sku
) AS h USING (sku)
WHERE json_extract(c.body, '$.reorder_point') >= coalesce(h.on_hand, 0)
    AND NOT coalesce(json_extract(c.body, '$.retired'), 0)
ORDER BY c.sku
LIMIT :limit;

-- name: tracked_cells
-- Shelves with goods of items that the catalogue tracks.
SELECT b.sku, b.location, b.lot, b.on_hand, c.body
FROM balance AS b NOT INDEXED JOIN catalog_item AS c USING (sku)
WHERE b.on_hand <> 0 AND b.location NOT LIKE '@%'
    AND (json_extract(c.body, '$.lot_tracked') OR json_extract(c.body, '$.serial_tracked'))
ORDER BY b.sku, b.location, b.lot;

-- name: without_lot
SELECT count(*) FROM balance AS b JOIN catalog_item AS c USING (sku)
WHERE b.lot = '' AND b.on_hand <> 0 AND b.location NOT LIKE '@%' AND json_extract(c.body, '$.lot_tracked');

-- name: expiry_tracked
SELECT count(*) FROM catalog_item WHERE json_extract(body, '$.expiry_tracked');

-- name: sku_known
SELECT EXISTS (SELECT 1 FROM balance WHERE sku = :name) OR EXISTS (SELECT 1 FROM catalog_item WHERE sku = :name);

-- name: location_known
SELECT EXISTS (SELECT 1 FROM balance WHERE location = :name)
    OR EXISTS (SELECT 1 FROM catalog_location WHERE name = :name);

-- name: all_skus
SELECT sku FROM catalog_item UNION SELECT sku FROM balance LIMIT :limit;

-- name: all_locations
SELECT name FROM catalog_location UNION SELECT location FROM balance LIMIT :limit;

-- name: entry_to_undo
SELECT seq, body, seq IN (SELECT seq FROM verdict WHERE stream = 'ledger') FROM entry WHERE seq = ?;

-- name: last_by_hand
-- The last entry that a person has booked here; without a name, the last of those without one.
SELECT seq, body, seq IN (SELECT seq FROM verdict WHERE stream = 'ledger') FROM entry
WHERE json_extract(body, '$.device') IS NULL AND json_extract(body, '$.actor') IS :actor
ORDER BY seq DESC LIMIT 1;

-- name: undo_of
-- The entry that takes another back, found by the mark at the end of its reference.
SELECT seq FROM entry
WHERE seq > :seq AND instr(body, :mark) AND json_extract(body, '$.reference') LIKE 'undo % ' || :mark
LIMIT 1;

-- name: counted_at
SELECT counted_hlc FROM balance WHERE location = ? AND sku = ? AND lot = ?;

-- name: imported
-- Whether a file was imported: by this ledger, or by one of before it that the cloud has given back.
SELECT hlc FROM entry WHERE instr(body, :reference) AND json_extract(body, '$.reference') = :reference
UNION ALL
SELECT hlc FROM site_entry WHERE instr(body, :reference) AND json_extract(body, '$.reference') = :reference
LIMIT 1;
