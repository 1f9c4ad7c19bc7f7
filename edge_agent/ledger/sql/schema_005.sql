-- Devices whose firmware can be exchanged: what they are, what they run, and where they are with the latest release.
CREATE TABLE device_firmware (
    name TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    version TEXT,
    release INTEGER,
    state TEXT,
    reason TEXT
) WITHOUT ROWID;
CREATE TRIGGER device_removed AFTER DELETE ON device BEGIN
    DELETE FROM device_firmware WHERE name = OLD.name; END;
