-- Bounds that count what things cost, and no lock that every login may take.

-- Late counts and the past are read by cell: both sides of a movement, each by one walk of an index. The index by item
-- made a count of one shelf read what had moved on all the others. Only the sides that are shelves are in them: goods
-- are received (1) and arrive (5) from virtual locations, are picked (2), shipped (4) and scrapped (6) to such. So most
-- movements have one entry, as before; what a virtual location has is found by the shelves at the other side.
CREATE INDEX movement_from_shelf ON movement (source_id, item_id, lot_id, hlc) WHERE kind NOT IN (1, 5);

CREATE INDEX movement_to_shelf ON movement (destination_id, item_id, lot_id, hlc) WHERE kind NOT IN (2, 4, 6);

DROP INDEX movement_item_hlc;

-- What was moved into or out of a shelf's cell in each hour, by the clock that orders entries: a late count adds up hours
-- and reads single movements at the ends only. The hours of a cell must add up to its `moved`; where they do not, as in
-- cells from before this table and while older workers run beside, they are made again when they are needed. It takes
-- the place of stock_hourly, which nothing has ever read: that is written no more.
CREATE TABLE cell_hour (
    location_id integer NOT NULL,
    item_id integer NOT NULL,
    lot_id integer NOT NULL,
    hour integer NOT NULL,
    moved bigint NOT NULL,
    PRIMARY KEY (location_id, item_id, lot_id, hour)
) WITH (fillfactor = 60);

REVOKE SELECT ON stock_hourly FROM stocktide_api, stocktide_dashboard, stocktide_reader;

-- Leases. Advisory locks would do, but any login may take those. A session is alive while its backend runs and it has
-- been seen lately: a backend's number may come again. Not logged: after a crash or a failover nobody holds anything.
CREATE UNLOGGED TABLE worker_session (
    session_id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    pid integer NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE UNLOGGED TABLE shard_lease (
    shard smallint PRIMARY KEY,
    session_id bigint NOT NULL
);

-- Names that a tenant's ledgers have brought in: items, locations, lots, devices, epochs, metrics.
CREATE TABLE tenant_names (
    tenant_id integer PRIMARY KEY REFERENCES tenant,
    names bigint NOT NULL
);

INSERT INTO tenant_names (tenant_id, names)
SELECT t.tenant_id,
    (SELECT count(*) FROM item i WHERE i.tenant_id = t.tenant_id)
    + (SELECT count(*) FROM location l JOIN site s USING (site_id) WHERE s.tenant_id = t.tenant_id)
    + (SELECT count(*) FROM lot JOIN item i USING (item_id) WHERE i.tenant_id = t.tenant_id)
    + (SELECT count(*) FROM device d JOIN gateway g USING (gateway_id) WHERE g.tenant_id = t.tenant_id)
    + (SELECT count(*) FROM epoch e JOIN gateway g USING (gateway_id) WHERE g.tenant_id = t.tenant_id)
FROM tenant t;

ALTER TABLE tenant_quota ADD COLUMN names_max bigint CHECK (names_max > 0);

-- A metric belongs to a tenant. Those from before stay, because readings name them; NULL is whoever used them.
ALTER TABLE metric ADD COLUMN tenant_id integer REFERENCES tenant;

ALTER TABLE metric DROP CONSTRAINT metric_name_key;

CREATE UNIQUE INDEX metric_of_tenant ON metric (tenant_id, name);

CREATE UNIQUE INDEX metric_of_before ON metric (name) WHERE tenant_id IS NULL;

-- A key ends with the key that made it.
ALTER TABLE api_key ADD COLUMN made_by text COLLATE "C" REFERENCES api_key;

CREATE INDEX api_key_made_by ON api_key (made_by) WHERE made_by IS NOT NULL;

GRANT SELECT (made_by), INSERT (made_by) ON api_key TO stocktide_api;

-- A key that was revoked is never certified again, whoever asks, at whatever gateway.
CREATE INDEX certificate_revoked_key ON certificate (public_key) WHERE revoked_at IS NOT NULL;

-- A database user that is being dropped sees nothing from that moment on, whatever is still in the way of its role.
ALTER TABLE database_user ADD COLUMN dropped_at timestamptz;

CREATE OR REPLACE FUNCTION stocktide_tenant() RETURNS integer
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT CASE
        WHEN EXISTS (SELECT FROM database_user WHERE role_name = session_user)
            THEN (SELECT tenant_id FROM database_user WHERE role_name = session_user AND dropped_at IS NULL)
        WHEN pg_has_role(session_user, 'stocktide_api', 'MEMBER')
            THEN nullif(current_setting('stocktide.tenant_id', true), '')::integer
    END
$$;

-- Ends the sessions of database users whose statement, or whose transaction that does nothing, is older than it may be.
-- A session's own settings cannot say so: whoever owns a session may set them.
CREATE FUNCTION stocktide_end_overdue_sessions(statement_s integer, idle_s integer)
RETURNS TABLE (role_name name, tenant_id integer, ended boolean, what text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    overdue record;
BEGIN
    FOR overdue IN
        SELECT a.pid, a.usename, u.tenant_id, a.state
        FROM pg_stat_activity a
        JOIN database_user u ON u.role_name = a.usename
        WHERE a.datname = current_database() AND (
            u.dropped_at IS NOT NULL
            OR a.state = 'active' AND a.query_start < clock_timestamp() - statement_s * interval '1 second'
            OR a.state LIKE 'idle in transaction%' AND a.state_change < clock_timestamp() - idle_s * interval '1 second'
        )
    LOOP
        role_name := overdue.usename;
        tenant_id := overdue.tenant_id;
        what := overdue.state;
        BEGIN
            ended := pg_terminate_backend(overdue.pid);
        EXCEPTION WHEN insufficient_privilege THEN
            ended := false;
        END;
        RETURN NEXT;
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION stocktide_end_overdue_sessions FROM PUBLIC;

GRANT EXECUTE ON FUNCTION stocktide_end_overdue_sessions TO stocktide_ingest, stocktide_owner;

-- Documents whose version a gateway could once lead to the end of the numbers: no gateway takes them any more.
UPDATE twin t
SET version = 1 + coalesce((SELECT max(c.version) FROM twin_change c WHERE c.gateway_id = t.gateway_id AND c.version < 1::bigint << 50), 0),
    reported_version = 0, pushed_version = 0, reported = NULL
WHERE version >= 1::bigint << 50;

DO $$
BEGIN
    PERFORM protect_tenant_rows('worker_session', NULL);
    PERFORM protect_tenant_rows('shard_lease', NULL);
    PERFORM protect_tenant_rows('cell_hour', 'location_id');
    PERFORM protect_tenant_rows('tenant_names', 'tenant_id');
END
$$;

GRANT SELECT ON tenant_names TO stocktide_api, stocktide_dashboard;
