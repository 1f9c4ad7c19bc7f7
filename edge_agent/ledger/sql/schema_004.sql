-- The twin in force (wire_protocol.twin); no row before the first.
CREATE TABLE twin (
    id INTEGER PRIMARY KEY CHECK (id = 0),
    version INTEGER NOT NULL,
    state TEXT NOT NULL,
    applied_ms INTEGER NOT NULL
);

-- What each device of the twin is told, since which version, and which it has confirmed. A device that came with the
-- twin (owned) leaves with it; one that a technician had added stays.
CREATE TABLE device_config (
    name TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    body TEXT NOT NULL,
    owned INTEGER NOT NULL,
    confirmed INTEGER NOT NULL DEFAULT 0,
    problem TEXT
) WITHOUT ROWID;

-- Commands that were carried out, with the reply: one that is delivered twice is answered twice and done once.
CREATE TABLE command_done (
    id TEXT PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    reply TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX command_done_at ON command_done (at_ms);

-- Counts that were asked for.
CREATE TABLE recount (
    id INTEGER PRIMARY KEY,
    location TEXT NOT NULL,
    sku TEXT,
    note TEXT,
    asked_ms INTEGER NOT NULL,
    asked_hlc INTEGER NOT NULL
);

-- The catalogue, and how far it was read. A body is a wire_protocol.catalog.CatalogItem.
CREATE TABLE catalog (
    id INTEGER PRIMARY KEY CHECK (id = 0),
    version INTEGER NOT NULL DEFAULT 0,
    key TEXT NOT NULL DEFAULT '',
    complete INTEGER NOT NULL DEFAULT 0
);
INSERT OR IGNORE INTO catalog (id) VALUES (0);
CREATE TABLE catalog_item (
    sku TEXT PRIMARY KEY,
    body TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE catalog_location (
    name TEXT PRIMARY KEY
) WITHOUT ROWID;
