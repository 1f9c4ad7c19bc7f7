-- Who this ledger belongs to, and single facts about it.
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- What happened. Append-only; seq is contiguous; digest chains each entry to the one before.
CREATE TABLE entry (
    seq INTEGER PRIMARY KEY,
    hlc INTEGER NOT NULL,
    body TEXT NOT NULL,
    digest BLOB NOT NULL
);

-- Device event ids already in the ledger. Derived.
CREATE TABLE seen (
    device TEXT NOT NULL,
    event TEXT NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (device, event)
) WITHOUT ROWID;

-- Movements and counts, for history. Derived.
CREATE TABLE movement (
    seq INTEGER PRIMARY KEY,
    hlc INTEGER NOT NULL,
    kind TEXT NOT NULL,
    sku TEXT NOT NULL,
    lot TEXT NOT NULL,
    quantity INTEGER NOT NULL,
    source TEXT,
    destination TEXT,
    variance INTEGER
);
CREATE INDEX movement_sku ON movement (sku, hlc);

-- On hand by location, SKU and lot. Derived; wire_protocol.stock.Balance says what the columns mean.
CREATE TABLE balance (
    location TEXT NOT NULL,
    sku TEXT NOT NULL,
    lot TEXT NOT NULL,
    on_hand INTEGER NOT NULL,
    moved INTEGER NOT NULL,
    counted_hlc INTEGER,
    counted_seq INTEGER,
    last_hlc INTEGER,
    last_seq INTEGER,
    PRIMARY KEY (location, sku, lot)
) WITHOUT ROWID;
CREATE INDEX balance_sku ON balance (sku);

-- Sensor readings: a bounded ring; the event id keeps a resent reading from counting twice while it is in the ring.
CREATE TABLE reading (
    id INTEGER PRIMARY KEY,
    hlc INTEGER NOT NULL,
    device TEXT NOT NULL,
    event TEXT NOT NULL,
    body TEXT NOT NULL,
    UNIQUE (device, event)
);

-- How far each stream is sealed and acknowledged. source_id is the last entry.seq or reading.id that is in a frame.
CREATE TABLE stream (
    name TEXT PRIMARY KEY,
    sealed_frame INTEGER NOT NULL DEFAULT 0,
    sealed_seq INTEGER NOT NULL DEFAULT 0,
    sealed_digest TEXT NOT NULL,
    source_id INTEGER NOT NULL DEFAULT 0,
    acked_frame INTEGER NOT NULL DEFAULT 0,
    acked_seq INTEGER NOT NULL DEFAULT 0,
    acked_ms INTEGER,
    fork TEXT
) WITHOUT ROWID;

-- Sealed frames, byte for byte, kept for a while after their acknowledgement.
CREATE TABLE frame (
    stream TEXT NOT NULL,
    frame INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    entries INTEGER NOT NULL,
    digest TEXT NOT NULL,
    sealed_ms INTEGER NOT NULL,
    acked_ms INTEGER,
    body BLOB NOT NULL,
    PRIMARY KEY (stream, frame)
);

-- Entries the cloud could not use, with its reason, for the technician.
CREATE TABLE verdict (
    stream TEXT NOT NULL,
    seq INTEGER NOT NULL,
    reason TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (stream, seq)
) WITHOUT ROWID;

-- The clock of each boot: cloud time minus gateway time, once the cloud has told it.
CREATE TABLE boot (
    boot TEXT PRIMARY KEY,
    first_ms INTEGER NOT NULL,
    offset_ms INTEGER
) WITHOUT ROWID;

-- Devices that may speak here.
CREATE TABLE device (
    name TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'unseen',
    seen_ms INTEGER
) WITHOUT ROWID;

-- Messages that could not be used, with their reason; bounded, the oldest go first.
CREATE TABLE dead_letter (
    id INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    topic TEXT NOT NULL,
    payload BLOB NOT NULL,
    reason TEXT NOT NULL
);

-- What was dropped by a bound: readings, dead letters.
CREATE TABLE counter (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
