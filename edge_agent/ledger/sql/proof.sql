-- name: stock_digest
SELECT digest, cells, sealed_position, sealed_digest, sealed_cells FROM stock_digest;

-- name: set_stock_digest
UPDATE stock_digest SET digest = ?, cells = ?;

-- name: note_sealed_digest
UPDATE stock_digest SET sealed_position = ?, sealed_digest = digest, sealed_cells = cells;

-- name: log_ends
-- How far each log goes that is booked: of the own one, the last entry.
SELECT gateway, epoch, CASE WHEN log = 0 THEN (SELECT coalesce(max(seq), 0) FROM entry) ELSE seq END
FROM log WHERE NOT staged;

-- name: nothing_waits
SELECT source_id = (SELECT coalesce(max(seq), 0) FROM entry) FROM stream WHERE name = 'ledger';

-- name: held
-- What the digest is a function of; from the table itself.
SELECT location, sku, lot, on_hand FROM balance NOT INDEXED WHERE on_hand <> 0;
