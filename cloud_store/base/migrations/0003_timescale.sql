-- TimescaleDB where the server has it loaded; elsewhere the same tables stay plain. `pg_settings` is asked because
-- CREATE EXTENSION ends the session of a server that has the extension installed and not preloaded.
-- Two indexes on movement: what a tenant reads by time, and what the merge walks by item in ledger order.

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb')
        AND EXISTS (SELECT FROM pg_settings WHERE name LIKE 'timescaledb%') THEN
        EXECUTE 'CREATE EXTENSION IF NOT EXISTS timescaledb';
        EXECUTE $sql$SELECT create_hypertable('movement', by_range('at', INTERVAL '7 days'), create_default_indexes => false)$sql$;
        EXECUTE $sql$SELECT create_hypertable('reading', by_range('at', INTERVAL '7 days'), create_default_indexes => false)$sql$;
        EXECUTE $sql$SELECT create_hypertable('frame', by_range('received_at', INTERVAL '7 days'), create_default_indexes => false)$sql$;
    END IF;
END
$$;

CREATE INDEX movement_tenant_at ON movement (tenant_id, at DESC);

CREATE INDEX movement_item_hlc ON movement (item_id, hlc);

CREATE INDEX reading_device_at ON reading (device_id, metric_id, at DESC);

CREATE INDEX frame_gateway_received ON frame (gateway_id, received_at DESC);
