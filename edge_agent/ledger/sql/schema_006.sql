-- When a message that could not be used arrived, by the gateway's monotonic clock: a retry places it there.
ALTER TABLE dead_letter ADD COLUMN boot TEXT;
ALTER TABLE dead_letter ADD COLUMN mono_ms INTEGER;
