-- The digest of each site's stock (wire_protocol.proof), and where its logs stand; kept by the merge. `recent` holds the
-- positions and digests of the last merges, in pairs, the newest first: a gateway compares at one of them.
CREATE TABLE site_digest (
    site_id integer PRIMARY KEY REFERENCES site,
    position bigint NOT NULL DEFAULT 0,
    digest bigint, -- NULL until it was worked out for the first time
    recent bigint[] NOT NULL DEFAULT '{}',
    scanned_at timestamptz,
    damaged boolean NOT NULL DEFAULT false -- the balances did not add up to the digest at the last scan
) WITH (fillfactor = 50);

-- When the stock of a gateway was last found to be the cloud's, and whether it was at the last look.
ALTER TABLE gateway_status ADD COLUMN stock_proved_at timestamptz;

ALTER TABLE gateway_status ADD COLUMN stock_differs boolean NOT NULL DEFAULT false;
