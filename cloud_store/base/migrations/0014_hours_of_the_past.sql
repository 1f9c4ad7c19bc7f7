-- What moved in a shelf's cell, by hours of three clocks: of the ledger order (`hour`, of the hybrid logical clock), of
-- when it happened (`at_hour`) and of when the cloud learned of it (`known_hour`; -1 where that was not kept). Late counts
-- add it up by the first, questions about the past by all three. It takes the place of `cell_hour`, which workers wrote
-- some time after their merges and could lose; workers of the version before still write that one.
CREATE TABLE cell_history (
    location_id integer NOT NULL,
    item_id integer NOT NULL,
    lot_id integer NOT NULL,
    hour integer NOT NULL,
    at_hour integer NOT NULL,
    known_hour integer NOT NULL,
    moved bigint NOT NULL,
    PRIMARY KEY (location_id, item_id, lot_id, hour, at_hour, known_hour)
) WITH (fillfactor = 60);

-- The same, as each merge adds it in its own transaction: without a key, because adding to a row costs ten times as much
-- as writing one. Workers fold these rows into `cell_history`, many merges at once; a statement that reads both tables
-- finds each movement once.
CREATE TABLE cell_history_new (
    location_id integer NOT NULL,
    item_id integer NOT NULL,
    lot_id integer NOT NULL,
    hour integer NOT NULL,
    at_hour integer NOT NULL,
    known_hour integer NOT NULL,
    moved bigint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 100000);

-- Whether the two tables have all that ever moved in the cell. Cells from before do not; they are made whole by the first
-- late count. A cell into which a worker of the version before has booked since does not add up to `moved`.
ALTER TABLE balance ADD COLUMN history_whole boolean NOT NULL DEFAULT false;

DO $$
BEGIN
    PERFORM protect_tenant_rows('cell_history', 'location_id');
    PERFORM protect_tenant_rows('cell_history_new', 'location_id');
END
$$;

GRANT SELECT ON cell_history, cell_history_new TO stocktide_api;

-- Written no more since migration 0011, and read by nothing.
DROP TABLE stock_hourly;
