-- How gateways become trusted: one-time claims, and the certificates that were signed. Neither holds a secret: a claim's
-- secret is 120 random bits of which only the SHA-256 is here, a certificate is public.
CREATE TABLE claim (
    claim_id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    tenant_id integer NOT NULL REFERENCES tenant,
    site_id integer NOT NULL REFERENCES site,
    gateway_id integer NOT NULL REFERENCES gateway,
    name text COLLATE "C" NOT NULL UNIQUE,
    secret_hash bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    used_at timestamptz,
    revoked_at timestamptz,
    public_key bytea, -- SHA-256 of the key that used it: the same key may ask again, an answer may have been lost
    CHECK ((used_at IS NULL) = (public_key IS NULL))
);

CREATE INDEX claim_gateway ON claim (gateway_id);

CREATE TABLE certificate (
    certificate_id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    tenant_id integer NOT NULL REFERENCES tenant,
    gateway_id integer NOT NULL REFERENCES gateway,
    claim_id bigint REFERENCES claim, -- NULL: a renewal
    issuer text COLLATE "C" NOT NULL, -- the authority's key id, in hexadecimal
    serial numeric(49, 0) NOT NULL, -- up to 160 bits
    public_key bytea NOT NULL,
    pem text NOT NULL,
    issued_at timestamptz NOT NULL DEFAULT now(),
    not_after timestamptz NOT NULL,
    revoked_at timestamptz,
    UNIQUE (issuer, serial)
);

CREATE INDEX certificate_gateway ON certificate (gateway_id, issued_at);

CREATE INDEX certificate_revoked ON certificate (not_after) WHERE revoked_at IS NOT NULL;

-- Whose every row is. Neither is anything for dashboards: a claim is a secret's digest.
DO $$
BEGIN
    PERFORM protect_tenant_rows('claim', 'tenant_id');
    PERFORM protect_tenant_rows('certificate', 'tenant_id');
END
$$;
