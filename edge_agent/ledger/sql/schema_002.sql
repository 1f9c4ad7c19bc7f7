-- A log is the run of entries of one gateway in one epoch. Log 0 is this ledger's own; the others are those of the
-- site's other gateways and this gateway's own older ones, as far as the cloud has sent them. A staged log is being
-- fetched to open a new epoch, and nothing of it is booked yet.
CREATE TABLE log (
    log INTEGER PRIMARY KEY,
    gateway TEXT NOT NULL,
    epoch TEXT NOT NULL,
    staged INTEGER NOT NULL DEFAULT 0,
    frame INTEGER NOT NULL DEFAULT 0,
    seq INTEGER NOT NULL DEFAULT 0,
    digest TEXT NOT NULL DEFAULT '',
    hlc INTEGER NOT NULL DEFAULT 0,
    UNIQUE (gateway, epoch, staged)
);
INSERT OR IGNORE INTO log (log, gateway, epoch)
SELECT 0, gateway.value, epoch.value FROM meta AS gateway, meta AS epoch
WHERE gateway.key = 'gateway' AND epoch.key = 'epoch';

-- What happened elsewhere: the entries of the other logs that count. Append-only. at_ms is their true time.
CREATE TABLE site_entry (
    log INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    hlc INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (log, seq)
) WITHOUT ROWID;

-- Movements and counts of all logs, for history and for looking back. Derived.
ALTER TABLE movement RENAME TO movement_001;
CREATE TABLE movement (
    log INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    hlc INTEGER NOT NULL,
    kind TEXT NOT NULL,
    sku TEXT NOT NULL,
    lot TEXT NOT NULL,
    quantity INTEGER NOT NULL,
    source TEXT,
    destination TEXT,
    variance INTEGER,
    PRIMARY KEY (log, seq)
) WITHOUT ROWID;
INSERT OR IGNORE INTO movement SELECT 0, seq, hlc, kind, sku, lot, quantity, source, destination, variance FROM movement_001;
DROP TABLE IF EXISTS movement_001;
CREATE INDEX movement_sku ON movement (sku, hlc);
CREATE INDEX movement_count ON movement (sku, destination, lot, hlc) WHERE kind = 'count';

ALTER TABLE balance ADD COLUMN counted_log INTEGER;
ALTER TABLE balance ADD COLUMN last_log INTEGER;
UPDATE balance SET counted_log = CASE WHEN counted_hlc IS NULL THEN NULL ELSE 0 END,
    last_log = CASE WHEN last_hlc IS NULL THEN NULL ELSE 0 END;

ALTER TABLE seen ADD COLUMN log INTEGER NOT NULL DEFAULT 0;

-- The true time (Unix, milliseconds) at which the boot's monotonic clock was zero, once the cloud has told its time.
ALTER TABLE boot ADD COLUMN zero_ms INTEGER;

-- Entries whose time the cloud did not believe, and the time it gave them instead.
CREATE TABLE bounded (
    stream TEXT NOT NULL,
    seq INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (stream, seq)
) WITHOUT ROWID;
