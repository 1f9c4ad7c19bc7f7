-- A gateway that is disabled, or whose certificate is revoked, is to lose its live connection: by whoever serves its
-- shard, whoever disabled it, and from wherever. `cut_asked_at` stands until somebody has done it.
ALTER TABLE gateway ADD COLUMN cut_asked_at timestamptz;

CREATE INDEX gateway_to_cut ON gateway (shard) WHERE cut_asked_at IS NOT NULL;

CREATE FUNCTION ask_to_cut_gateway() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- Enabling takes back no wish that nobody has carried out yet: it may be a revoked certificate's connection that is
    -- open still. Whoever has a good one connects again.
    NEW.cut_asked_at := CASE WHEN NEW.state = 'disabled' THEN now() ELSE OLD.cut_asked_at END;
    PERFORM pg_notify('stocktide_downlink', NEW.shard::text);
    RETURN NEW;
END
$$;

CREATE TRIGGER gateway_revoked BEFORE UPDATE OF state ON gateway
FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION ask_to_cut_gateway();

CREATE FUNCTION ask_to_cut_certificate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE gateway SET cut_asked_at = now() WHERE gateway_id = NEW.gateway_id;
    PERFORM pg_notify('stocktide_downlink', (SELECT shard::text FROM gateway WHERE gateway_id = NEW.gateway_id));
    RETURN NULL;
END
$$;

CREATE TRIGGER certificate_revoked AFTER UPDATE OF revoked_at ON certificate
FOR EACH ROW WHEN (OLD.revoked_at IS NULL AND NEW.revoked_at IS NOT NULL) EXECUTE FUNCTION ask_to_cut_certificate();
