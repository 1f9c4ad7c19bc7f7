-- Tenants apart: database roles, row level security on every table with a tenant's data, and what people sign in with.
--
-- stocktide_owner      operators and migrations: every tenant; the login that migrates becomes a member
-- stocktide_ingest     workers: every tenant, through a policy, never BYPASSRLS
-- stocktide_api        the HTTP API: the tenant of `stocktide.tenant_id`, which each transaction sets; nothing without it
-- stocktide_dashboard  people with SQL: the tenant that `database_user` binds to their login
-- stocktide_reader     nobody logs in as it; owns the views on hypertables. Policies of a hypertable do not hold for its
--                      chunks, and a grant on it does, so whoever may read the one could read the others' rows in the other
--
-- A later migration protects its tables with `PERFORM protect_tenant_rows('table', 'key column')` in a DO block, and
-- grants SELECT on them to stocktide_api and stocktide_dashboard. Owner and ingest may use new tables by default.

DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY[
        'stocktide_owner', 'stocktide_ingest', 'stocktide_api', 'stocktide_dashboard', 'stocktide_reader'
    ] LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
            END IF;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL; -- roles belong to the server: another database's migration was quicker
        END;
        IF NOT pg_has_role(current_user, wanted, 'USAGE') THEN
            EXECUTE format('GRANT %I TO %I', wanted, current_user);
        END IF;
    END LOOP;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE EXCEPTION '% may not create or join the roles stocktide_owner, _ingest, _api, _dashboard and _reader: give it CREATEROLE, or the roles WITH ADMIN OPTION', current_user;
END
$$;

-- Who may read as what.

CREATE TABLE database_user (
    role_name name PRIMARY KEY,
    tenant_id integer NOT NULL REFERENCES tenant,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- The tenant of this session. A dashboard's is bound to its login, whatever it sets or becomes; the API's is set by
-- each transaction. NULL is nobody, and equals no row's tenant.
CREATE FUNCTION stocktide_tenant() RETURNS integer
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT CASE
        WHEN EXISTS (SELECT FROM database_user WHERE role_name = session_user)
            THEN (SELECT tenant_id FROM database_user WHERE role_name = session_user)
        WHEN pg_has_role(session_user, 'stocktide_api', 'MEMBER')
            THEN nullif(current_setting('stocktide.tenant_id', true), '')::integer
    END
$$;

-- Row level security on a table, enabled and forced. `key` says whose a row is: the tenant's own id, or that of a site,
-- gateway, location or item, whose own policies are asked in turn.
CREATE FUNCTION protect_tenant_rows(target regclass, key text) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    visible text := CASE
        WHEN key = 'tenant_id' THEN 'tenant_id = (SELECT stocktide_tenant())'
        WHEN key IN ('site_id', 'gateway_id', 'location_id', 'item_id')
            THEN format('EXISTS (SELECT FROM %1$I o WHERE o.%2$I = %3$s.%2$I)', replace(key, '_id', ''), key, target)
    END;
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', target);
    EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', target);
    EXECUTE format(
        'CREATE POLICY every_tenant ON %s TO stocktide_owner, stocktide_ingest USING (true) WITH CHECK (true)', target
    );
    IF visible IS NOT NULL THEN
        EXECUTE format(
            'CREATE POLICY own_tenant ON %s FOR SELECT TO stocktide_api, stocktide_dashboard, stocktide_reader USING (%s)',
            target, visible
        );
    ELSIF key IS NOT NULL THEN
        RAISE EXCEPTION 'protect_tenant_rows knows no key %', key;
    END IF;
END
$$;

-- Quotas. NULL is no limit, and no row is none at all.
CREATE TABLE tenant_quota (
    tenant_id integer PRIMARY KEY REFERENCES tenant,
    gateways_max integer CHECK (gateways_max >= 0),
    devices_max integer CHECK (devices_max >= 0),
    entries_per_s_max integer CHECK (entries_per_s_max > 0),
    requests_per_minute_max integer CHECK (requests_per_minute_max > 0)
);

-- How many entries a tenant may still merge before its gateways are told to wait: one purse for all workers. Not
-- logged: after a crash every tenant begins with a full one.
CREATE UNLOGGED TABLE ingest_credit (
    tenant_id integer PRIMARY KEY,
    entries double precision NOT NULL,
    at timestamptz NOT NULL
);

-- Requests of this minute: one count for all API processes.
CREATE UNLOGGED TABLE request_count (
    tenant_id integer PRIMARY KEY,
    minute timestamptz NOT NULL,
    requests integer NOT NULL
);

-- A key's secret is not here, only its digest: 256 random bits need no slow hash. `scopes` narrows what the role may.
CREATE TABLE api_key (
    prefix text COLLATE "C" PRIMARY KEY,
    tenant_id integer NOT NULL REFERENCES tenant,
    digest bytea NOT NULL,
    name text NOT NULL,
    role text NOT NULL CHECK (role IN ('viewer', 'technician', 'operator', 'admin')),
    scopes text[],
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    last_used_at timestamptz,
    revoked_at timestamptz
);

CREATE INDEX api_key_tenant ON api_key (tenant_id);

-- Who did what, when, on which object. `tenant_id` NULL: on the whole cloud.
CREATE TABLE audit_log (
    audit_id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor text NOT NULL DEFAULT coalesce(nullif(current_setting('stocktide.actor', true), ''), session_user),
    login name NOT NULL DEFAULT session_user,
    tenant_id integer REFERENCES tenant,
    action text NOT NULL,
    object text NOT NULL,
    detail jsonb NOT NULL DEFAULT '{}'
);

CREATE INDEX audit_log_tenant ON audit_log (tenant_id, audit_id);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- What each role may touch at all.

GRANT USAGE ON SCHEMA public TO stocktide_owner, stocktide_ingest, stocktide_api, stocktide_dashboard, stocktide_reader;

GRANT SELECT, INSERT, UPDATE, DELETE ON tenant, site, gateway, gateway_status, epoch, device, item, location, lot, metric,
    stream_cursor, movement, count, reading, frame, balance, stock_hourly, dead_letter, alarm, site_digest
TO stocktide_owner, stocktide_ingest;

GRANT SELECT, INSERT, UPDATE, DELETE ON database_user, tenant_quota, ingest_credit, request_count, api_key
TO stocktide_owner;

GRANT SELECT, INSERT ON audit_log TO stocktide_owner;

GRANT SELECT ON tenant_quota TO stocktide_ingest;

GRANT SELECT, INSERT, UPDATE ON ingest_credit TO stocktide_ingest;

GRANT SELECT ON tenant, site, gateway, gateway_status, epoch, device, item, location, lot, stream_cursor, count, balance,
    stock_hourly, dead_letter, alarm, site_digest, tenant_quota
TO stocktide_api, stocktide_dashboard, stocktide_reader;

GRANT SELECT ON metric, movement, reading, frame TO stocktide_reader;

GRANT SELECT (prefix, tenant_id, name, role, scopes, created_at, expires_at, last_used_at, revoked_at),
    INSERT (prefix, tenant_id, digest, name, role, scopes, expires_at), UPDATE (revoked_at)
ON api_key TO stocktide_api;

GRANT SELECT, INSERT (tenant_id, action, object, detail) ON audit_log TO stocktide_api;

ALTER DEFAULT PRIVILEGES IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO stocktide_owner, stocktide_ingest;

-- Whose every row is.

DO $$
BEGIN
    PERFORM protect_tenant_rows('tenant', 'tenant_id');
    PERFORM protect_tenant_rows('site', 'tenant_id');
    PERFORM protect_tenant_rows('gateway', 'tenant_id');
    PERFORM protect_tenant_rows('gateway_status', 'gateway_id');
    PERFORM protect_tenant_rows('epoch', 'gateway_id');
    PERFORM protect_tenant_rows('device', 'gateway_id');
    PERFORM protect_tenant_rows('item', 'tenant_id');
    PERFORM protect_tenant_rows('location', 'site_id');
    PERFORM protect_tenant_rows('lot', 'item_id');
    PERFORM protect_tenant_rows('stream_cursor', 'gateway_id');
    PERFORM protect_tenant_rows('movement', 'tenant_id');
    PERFORM protect_tenant_rows('count', 'tenant_id');
    PERFORM protect_tenant_rows('reading', 'tenant_id');
    PERFORM protect_tenant_rows('frame', 'tenant_id');
    PERFORM protect_tenant_rows('balance', 'location_id');
    PERFORM protect_tenant_rows('stock_hourly', 'location_id');
    PERFORM protect_tenant_rows('dead_letter', 'tenant_id');
    PERFORM protect_tenant_rows('alarm', 'tenant_id');
    PERFORM protect_tenant_rows('site_digest', 'site_id');
    PERFORM protect_tenant_rows('tenant_quota', 'tenant_id');
    PERFORM protect_tenant_rows('api_key', 'tenant_id');
    PERFORM protect_tenant_rows('audit_log', 'tenant_id');
    PERFORM protect_tenant_rows('database_user', NULL);
    PERFORM protect_tenant_rows('ingest_credit', NULL);
    PERFORM protect_tenant_rows('request_count', NULL);
    PERFORM protect_tenant_rows('metric', NULL);
END
$$;

-- Lot 0 stands for goods without one, everybody's.
CREATE POLICY no_lot ON lot FOR SELECT TO stocktide_api, stocktide_dashboard, stocktide_reader USING (lot_id = 0);

-- Names of metrics are shared between tenants; they are read beside a tenant's own readings only.
CREATE POLICY beside_readings ON metric FOR SELECT TO stocktide_reader USING (true);

CREATE POLICY add_own ON api_key FOR INSERT TO stocktide_api WITH CHECK (tenant_id = (SELECT stocktide_tenant()));

CREATE POLICY revoke_own ON api_key FOR UPDATE TO stocktide_api
USING (tenant_id = (SELECT stocktide_tenant())) WITH CHECK (tenant_id = (SELECT stocktide_tenant()));

CREATE POLICY record_own ON audit_log FOR INSERT TO stocktide_api WITH CHECK (tenant_id = (SELECT stocktide_tenant()));

-- The views. Those on hypertables have the tables' names, so that the same SQL reads them where `tenant_view` comes first
-- in the search path; the policies hold for their owner. The others hold for whoever asks (security_invoker).

CREATE SCHEMA tenant_view;

GRANT USAGE ON SCHEMA tenant_view TO stocktide_owner, stocktide_api, stocktide_dashboard, stocktide_reader;

GRANT CREATE ON SCHEMA tenant_view TO stocktide_reader;

CREATE VIEW tenant_view.movement WITH (security_barrier) AS SELECT * FROM public.movement;

CREATE VIEW tenant_view.frame WITH (security_barrier) AS SELECT * FROM public.frame;

CREATE VIEW tenant_view.reading WITH (security_barrier) AS
SELECT r.*, m.name AS metric FROM public.reading r JOIN public.metric m USING (metric_id);

ALTER VIEW tenant_view.movement OWNER TO stocktide_reader;

ALTER VIEW tenant_view.frame OWNER TO stocktide_reader;

ALTER VIEW tenant_view.reading OWNER TO stocktide_reader;

REVOKE CREATE ON SCHEMA tenant_view FROM stocktide_reader;

CREATE VIEW tenant_view.stock WITH (security_invoker, security_barrier) AS
SELECT t.name AS tenant, s.name AS site, l.name AS location, i.sku, i.name AS item, lot.name AS lot, b.on_hand, i.unit,
    i.scale, l.virtual
FROM public.balance b
JOIN public.location l USING (location_id)
JOIN public.site s USING (site_id)
JOIN public.tenant t USING (tenant_id)
JOIN public.item i USING (item_id)
JOIN public.lot ON lot.lot_id = b.lot_id;

CREATE VIEW tenant_view.moved WITH (security_invoker, security_barrier) AS
SELECT t.name AS tenant, s.name AS site, g.name AS gateway, m.at, i.sku, lot.name AS lot, m.quantity, src.name AS source,
    dst.name AS destination, d.name AS device, m.actor, m.reference
FROM tenant_view.movement m
JOIN public.gateway g USING (gateway_id)
JOIN public.site s USING (site_id)
JOIN public.tenant t ON t.tenant_id = g.tenant_id
JOIN public.item i USING (item_id)
JOIN public.lot ON lot.lot_id = m.lot_id
JOIN public.location src ON src.location_id = m.source_id
JOIN public.location dst ON dst.location_id = m.destination_id
LEFT JOIN public.device d USING (device_id);

CREATE VIEW tenant_view.measured WITH (security_invoker, security_barrier) AS
SELECT t.name AS tenant, s.name AS site, g.name AS gateway, r.at, d.name AS device, r.metric, r.value
FROM tenant_view.reading r
JOIN public.gateway g USING (gateway_id)
JOIN public.site s USING (site_id)
JOIN public.tenant t ON t.tenant_id = g.tenant_id
LEFT JOIN public.device d USING (device_id);

GRANT SELECT ON ALL TABLES IN SCHEMA tenant_view TO stocktide_api, stocktide_dashboard;

-- What the API asks before it knows the tenant. Each answers about one credential and lists nothing.

CREATE FUNCTION stocktide_key(wanted text, given bytea)
RETURNS TABLE (tenant_id integer, tenant text, name text, role text, scopes text[], expired boolean, revoked boolean)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    UPDATE api_key SET last_used_at = now()
    WHERE prefix = wanted AND digest = given AND revoked_at IS NULL AND expires_at > now()
        AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute');

    SELECT k.tenant_id, t.name, k.name, k.role, k.scopes, k.expires_at <= now(), k.revoked_at IS NOT NULL
    FROM api_key k
    JOIN tenant t USING (tenant_id)
    WHERE k.prefix = wanted AND k.digest = given
$$;

CREATE FUNCTION stocktide_tenant_named(wanted text) RETURNS integer
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT tenant_id FROM tenant WHERE name = wanted
$$;

-- Counts a request of this session's tenant. A clock minute is the window, so all API processes agree when it ends.
CREATE FUNCTION stocktide_request(usual integer, OUT allowed integer, OUT made integer, OUT reset_s integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    now_minute timestamptz := date_trunc('minute', clock_timestamp());
BEGIN
    SELECT coalesce(min(requests_per_minute_max), usual) INTO allowed
    FROM tenant_quota WHERE tenant_id = stocktide_tenant();
    INSERT INTO request_count AS c (tenant_id, minute, requests) VALUES (stocktide_tenant(), now_minute, 1)
    ON CONFLICT (tenant_id) DO UPDATE
    SET minute = greatest(c.minute, excluded.minute),
        requests = CASE WHEN c.minute < excluded.minute THEN 1 ELSE least(c.requests, 2000000000) + 1 END
    RETURNING requests INTO made;
    reset_s := greatest(1, ceil(extract(epoch FROM now_minute + interval '1 minute' - clock_timestamp()))::integer);
END
$$;

REVOKE ALL ON FUNCTION stocktide_key, stocktide_tenant_named, stocktide_request, protect_tenant_rows FROM PUBLIC;

GRANT EXECUTE ON FUNCTION stocktide_key, stocktide_tenant_named, stocktide_request TO stocktide_api;
