-- When a message that could not be used arrived, by the gateway's monotonic clock: a retry places it there.
ALTER TABLE dead_letter ADD COLUMN boot TEXT;
ALTER TABLE dead_letter ADD COLUMN mono_ms INTEGER;

-- Entries of the own log that were delivered late, and the first of each run of them: what lies around a run is found
-- without reading it. Derived.
CREATE TABLE late (
    seq INTEGER PRIMARY KEY,
    run INTEGER NOT NULL
);
CREATE INDEX late_run ON late (run, seq);
