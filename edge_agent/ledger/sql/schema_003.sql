-- The digest of all balances (wire_protocol.proof), kept in every transaction that changes one, and the last moment at
-- which nothing waited to be sealed: there the cloud can compare.
CREATE TABLE stock_digest (
    id INTEGER PRIMARY KEY CHECK (id = 0),
    digest INTEGER NOT NULL DEFAULT 0,
    cells INTEGER NOT NULL DEFAULT 0,
    sealed_position INTEGER,
    sealed_digest INTEGER,
    sealed_cells INTEGER
);
INSERT OR IGNORE INTO stock_digest (id) VALUES (0);
