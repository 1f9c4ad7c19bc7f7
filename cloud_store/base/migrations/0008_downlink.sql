-- What goes down to gateways: twins and commands.

-- What each gateway should be, and what it says it is. A row is made by the first change.
CREATE TABLE twin (
    gateway_id integer PRIMARY KEY REFERENCES gateway,
    version bigint NOT NULL,
    state jsonb NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now(),
    pushed_version bigint NOT NULL DEFAULT 0,
    pushed_at timestamptz,
    reported_version bigint NOT NULL DEFAULT 0,
    reported jsonb,
    reported_at timestamptz
);

-- Only what is under way is looked at again and again.
CREATE INDEX twin_due ON twin (gateway_id) WHERE version > reported_version;

-- Every change that was asked for, by whom.
CREATE TABLE twin_change (
    gateway_id integer NOT NULL REFERENCES gateway,
    version bigint NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now(),
    changed_by text NOT NULL,
    patch jsonb NOT NULL,
    PRIMARY KEY (gateway_id, version)
);

-- Wakes the worker that serves the gateway's shard; equal notifications of a transaction are one.
CREATE FUNCTION notify_downlink() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('stocktide_downlink', (SELECT shard::text FROM gateway WHERE gateway_id = NEW.gateway_id));
    RETURN NULL;
END
$$;

CREATE TRIGGER twin_changed AFTER INSERT OR UPDATE OF version ON twin FOR EACH ROW EXECUTE FUNCTION notify_downlink();

-- Commands to gateways and what came of them. `id` is what the gateway knows a command by.
CREATE TABLE command (
    id text COLLATE "C" PRIMARY KEY,
    gateway_id integer NOT NULL REFERENCES gateway,
    name text NOT NULL,
    arguments jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    created_by text NOT NULL,
    expires_at timestamptz NOT NULL,
    sent_at timestamptz,
    replied_at timestamptz,
    ok boolean,
    reason text,
    result jsonb
);

CREATE INDEX command_open ON command (expires_at) WHERE replied_at IS NULL;

CREATE INDEX command_of_gateway ON command (gateway_id, created_at DESC);

CREATE TRIGGER command_added AFTER INSERT ON command FOR EACH ROW EXECUTE FUNCTION notify_downlink();

-- The catalogue: what is registered, in the order of its last change, so that a gateway reads on from where it was.
-- A version is a time in milliseconds, or one more than the last: after a failover to an older server it still grows.
CREATE TABLE catalog (
    tenant_id integer PRIMARY KEY REFERENCES tenant,
    version bigint NOT NULL
);

ALTER TABLE item
    ADD COLUMN lot_tracked boolean NOT NULL DEFAULT false,
    ADD COLUMN serial_tracked boolean NOT NULL DEFAULT false,
    ADD COLUMN expiry_tracked boolean NOT NULL DEFAULT false,
    ADD COLUMN reorder_point bigint,
    ADD COLUMN retired boolean NOT NULL DEFAULT false,
    ADD COLUMN catalog_version bigint; -- NULL: not in the catalogue

ALTER TABLE location ADD COLUMN catalog_version bigint;

INSERT INTO catalog (tenant_id, version) SELECT DISTINCT tenant_id, 1 FROM item WHERE NOT stub;

UPDATE item SET catalog_version = 1 WHERE NOT stub;

CREATE INDEX item_catalog ON item (tenant_id, catalog_version, sku) WHERE catalog_version IS NOT NULL;

CREATE INDEX location_catalog ON location (site_id, catalog_version, name) WHERE catalog_version IS NOT NULL;

CREATE FUNCTION notify_catalog() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('stocktide_downlink', '');
    RETURN NULL;
END
$$;

CREATE TRIGGER catalog_changed AFTER INSERT OR UPDATE ON catalog FOR EACH ROW EXECUTE FUNCTION notify_catalog();

-- Jobs: a command or a change of twins for many gateways, in waves. `spec` is {"command", "arguments"} or {"patch"}.
CREATE TABLE job (
    job_id text COLLATE "C" PRIMARY KEY,
    spec jsonb NOT NULL,
    state text NOT NULL DEFAULT 'running'
        CHECK (state IN ('running', 'paused', 'done', 'failed', 'aborted')),
    reason text,
    failures_percent_max real NOT NULL,
    timeout_s integer NOT NULL,
    rollback boolean NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    created_by text NOT NULL,
    ended_at timestamptz
);

CREATE INDEX job_running ON job (job_id) WHERE state = 'running';

-- Each gateway of a job, once. `before` is its twin's content before the change, for the way back.
CREATE TABLE job_target (
    job_id text COLLATE "C" NOT NULL REFERENCES job,
    gateway_id integer NOT NULL REFERENCES gateway,
    wave smallint NOT NULL,
    state text NOT NULL DEFAULT 'waiting'
        CHECK (state IN ('waiting', 'started', 'succeeded', 'failed', 'rolled back')),
    started_at timestamptz,
    command_id text COLLATE "C",
    twin_version bigint,
    before jsonb,
    reason text,
    PRIMARY KEY (job_id, gateway_id)
);

CREATE INDEX job_target_wave ON job_target (job_id, wave, state);

CREATE FUNCTION notify_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('stocktide_downlink', '');
    RETURN NULL;
END
$$;

CREATE TRIGGER job_changed AFTER INSERT OR UPDATE OF state ON job FOR EACH ROW EXECUTE FUNCTION notify_job();

-- Whose every row is. Jobs are the operators': they may be for gateways of several tenants.
DO $$
BEGIN
    PERFORM protect_tenant_rows('twin', 'gateway_id');
    PERFORM protect_tenant_rows('twin_change', 'gateway_id');
    PERFORM protect_tenant_rows('command', 'gateway_id');
    PERFORM protect_tenant_rows('catalog', 'tenant_id');
    PERFORM protect_tenant_rows('job', NULL);
    PERFORM protect_tenant_rows('job_target', NULL);
END
$$;

GRANT SELECT ON twin, twin_change, command, catalog TO stocktide_api, stocktide_dashboard;
