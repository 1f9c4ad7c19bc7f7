-- The merged ledger and what is derived from it. `hlc` is the hybrid logical clock and decides order; `at` is the true
-- time as well as it is known, bounded around the time of arrival. `claimed_ms` is the time before it was bounded, and
-- present only then, so it is the flag as well.
-- The big tables have no foreign keys: ids come from tables whose rows are never deleted, and a check for each of
-- 20,000 rows a second would buy nothing. They have no unique index: the cursor is the deduplication.

-- How far the cloud has each stream of each gateway. Locking this row is what fences workers from each other.
CREATE TABLE stream_cursor (
    gateway_id integer NOT NULL REFERENCES gateway,
    stream smallint NOT NULL,
    epoch text COLLATE "C" NOT NULL,
    frame bigint NOT NULL,
    seq bigint NOT NULL,
    digest text COLLATE "C" NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (gateway_id, stream)
) WITH (fillfactor = 50);

CREATE TABLE movement (
    at timestamptz NOT NULL,
    hlc bigint NOT NULL,
    seq bigint NOT NULL,
    quantity bigint NOT NULL,
    device_at timestamptz,
    claimed_ms bigint,
    tenant_id integer NOT NULL,
    gateway_id integer NOT NULL,
    epoch_id integer NOT NULL,
    item_id integer NOT NULL,
    lot_id integer NOT NULL,
    source_id integer NOT NULL,
    destination_id integer NOT NULL,
    device_id integer,
    kind smallint NOT NULL,
    serial text COLLATE "C",
    event text COLLATE "C",
    actor text COLLATE "C",
    reference text COLLATE "C"
);

CREATE TABLE count (
    count_id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    at timestamptz NOT NULL,
    hlc bigint NOT NULL,
    seq bigint NOT NULL,
    quantity bigint NOT NULL,
    variance bigint NOT NULL,
    device_at timestamptz,
    claimed_ms bigint,
    tenant_id integer NOT NULL,
    gateway_id integer NOT NULL,
    epoch_id integer NOT NULL,
    item_id integer NOT NULL,
    lot_id integer NOT NULL,
    location_id integer NOT NULL,
    device_id integer,
    gateway_name text COLLATE "C" NOT NULL,
    serial text COLLATE "C",
    event text COLLATE "C",
    actor text COLLATE "C",
    reference text COLLATE "C"
);

-- The order of a site's entries is (hlc, gateway name, seq); the name is kept here so that one index walk gives it.
CREATE INDEX count_order ON count (location_id, item_id, lot_id, hlc, gateway_name, seq);

CREATE INDEX count_tenant_at ON count (tenant_id, at DESC);

CREATE TABLE reading (
    at timestamptz NOT NULL,
    hlc bigint NOT NULL,
    seq bigint NOT NULL,
    value double precision NOT NULL,
    device_at timestamptz,
    claimed_ms bigint,
    tenant_id integer NOT NULL,
    gateway_id integer NOT NULL,
    epoch_id integer NOT NULL,
    device_id integer,
    metric_id integer NOT NULL
);

CREATE TABLE frame (
    received_at timestamptz NOT NULL,
    frame bigint NOT NULL,
    first_seq bigint NOT NULL,
    tenant_id integer NOT NULL,
    gateway_id integer NOT NULL,
    epoch_id integer NOT NULL,
    entries integer NOT NULL,
    rejected integer NOT NULL,
    bytes integer NOT NULL,
    stream smallint NOT NULL,
    replay boolean NOT NULL,
    digest bytea NOT NULL
);

-- `moved` is the sum of all movements ever; `on_hand` - `moved` is what counts have added. `counted_hlc` is the latest
-- count and `last_hlc` the latest movement: a count later than both needs no look at history. The spare room in the
-- pages keeps updates off the index (heap-only tuples).
CREATE TABLE balance (
    location_id integer NOT NULL,
    item_id integer NOT NULL,
    lot_id integer NOT NULL,
    on_hand bigint NOT NULL,
    moved bigint NOT NULL,
    counted_hlc bigint,
    last_hlc bigint NOT NULL,
    PRIMARY KEY (location_id, item_id, lot_id)
) WITH (fillfactor = 60);

CREATE INDEX balance_item ON balance (item_id, lot_id);

CREATE TABLE stock_hourly (
    hour timestamptz NOT NULL,
    location_id integer NOT NULL,
    item_id integer NOT NULL,
    lot_id integer NOT NULL,
    quantity_in bigint NOT NULL,
    quantity_out bigint NOT NULL,
    movements bigint NOT NULL,
    PRIMARY KEY (location_id, item_id, lot_id, hour)
) WITH (fillfactor = 60);

-- What could not be used, and why. A resend loop finds its row again by digest and only raises `times`.
CREATE TABLE dead_letter (
    dead_letter_id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    digest bytea NOT NULL UNIQUE,
    first_at timestamptz NOT NULL DEFAULT now(),
    last_at timestamptz NOT NULL DEFAULT now(),
    times bigint NOT NULL DEFAULT 1,
    tenant_id integer,
    kind text NOT NULL,
    gateway text COLLATE "C",
    topic text NOT NULL,
    reason text NOT NULL,
    payload bytea NOT NULL,
    payload_bytes integer NOT NULL
);

CREATE INDEX dead_letter_gateway ON dead_letter (gateway, dead_letter_id);
