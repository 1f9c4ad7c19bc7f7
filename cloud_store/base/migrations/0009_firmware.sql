-- Firmware: images, and the signed releases that say what they are. Neither is anything for dashboards: whoever has a
-- release that was not sent yet could lead devices back to an older version before anybody wants it.

CREATE TABLE firmware_image (
    tenant_id integer NOT NULL REFERENCES tenant,
    sha256 text COLLATE "C" NOT NULL,
    size integer NOT NULL CHECK (size BETWEEN 1 AND 16777216),
    body bytea NOT NULL,
    PRIMARY KEY (tenant_id, sha256)
);

-- Not compressed, so that a piece in the middle is read without what is before it.
ALTER TABLE firmware_image ALTER COLUMN body SET STORAGE EXTERNAL;

-- `release` grows within a model, so that a device takes each once. `replaces` is the version that a way back takes back.
CREATE TABLE firmware_release (
    tenant_id integer NOT NULL REFERENCES tenant,
    model text COLLATE "C" NOT NULL,
    release bigint NOT NULL,
    version text COLLATE "C" NOT NULL,
    replaces text COLLATE "C",
    sha256 text COLLATE "C" NOT NULL,
    signature text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    created_by text NOT NULL,
    PRIMARY KEY (tenant_id, model, release),
    FOREIGN KEY (tenant_id, sha256) REFERENCES firmware_image (tenant_id, sha256)
);

CREATE INDEX firmware_release_version ON firmware_release (tenant_id, model, version, release);

DO $$
BEGIN
    PERFORM protect_tenant_rows('firmware_image', 'tenant_id');
    PERFORM protect_tenant_rows('firmware_release', 'tenant_id');
END
$$;

-- Workers pass images on; what is in them is the operators'.
REVOKE INSERT, UPDATE, DELETE ON firmware_image, firmware_release FROM stocktide_ingest;
