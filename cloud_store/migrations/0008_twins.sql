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
CREATE FUNCTION notify_twin() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('stocktide_twin', (SELECT shard::text FROM gateway WHERE gateway_id = NEW.gateway_id));
    RETURN NULL;
END
$$;

CREATE TRIGGER twin_changed AFTER INSERT OR UPDATE OF version ON twin FOR EACH ROW EXECUTE FUNCTION notify_twin();
