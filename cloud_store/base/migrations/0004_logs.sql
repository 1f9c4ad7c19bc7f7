-- A log is the run of entries of one gateway in one epoch. A gateway that was restored, replaced or cloned has several,
-- and each has a cursor of its own, so that none can disturb another.

DELETE FROM stream_cursor WHERE epoch = '';

ALTER TABLE stream_cursor DROP CONSTRAINT stream_cursor_pkey;

ALTER TABLE stream_cursor ADD PRIMARY KEY (gateway_id, stream, epoch);

-- How much of the gateway's older logs a new one knew when it began: {epoch: {"frame": n, "digest": hex}}.
ALTER TABLE epoch ADD COLUMN after jsonb NOT NULL DEFAULT '{}';

ALTER TABLE epoch ADD COLUMN opened_at timestamptz NOT NULL DEFAULT now();

-- Ledger frames are kept as they came: what a site's other gateways and a restored one are sent. `verdicts` are the
-- entries that do not count, {seq: reason}; absent when all do.
ALTER TABLE frame ADD COLUMN payload bytea;

ALTER TABLE frame ADD COLUMN verdicts jsonb;

CREATE INDEX frame_verdicts ON frame (gateway_id, epoch_id) WHERE verdicts IS NOT NULL;

CREATE INDEX frame_log ON frame (gateway_id, epoch_id, stream, frame);

-- The order of a site's entries is (hlc, gateway name, epoch, seq).
ALTER TABLE count ADD COLUMN epoch text COLLATE "C";

UPDATE count c SET epoch = e.ulid FROM epoch e WHERE e.epoch_id = c.epoch_id;

ALTER TABLE count ALTER COLUMN epoch SET NOT NULL;

DROP INDEX count_order;

CREATE INDEX count_order ON count (location_id, item_id, lot_id, hlc, gateway_name, epoch, seq);

-- What an operator must look at. The same thing again raises `times`; whoever has dealt with it clears it.
CREATE TABLE alarm (
    alarm_id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    tenant_id integer REFERENCES tenant,
    site_id integer REFERENCES site,
    gateway text COLLATE "C" NOT NULL,
    kind text NOT NULL,
    detail text NOT NULL,
    first_at timestamptz NOT NULL DEFAULT now(),
    last_at timestamptz NOT NULL DEFAULT now(),
    times bigint NOT NULL DEFAULT 1,
    cleared_at timestamptz
);

CREATE UNIQUE INDEX alarm_open ON alarm (gateway, kind) WHERE cleared_at IS NULL;
