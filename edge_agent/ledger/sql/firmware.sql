-- name: wanted_firmware
-- Of the twin the releases alone: they are looked up for every piece of an image, and a twin may be large.
SELECT r.value FROM twin, json_each(twin.state, '$.firmware') AS r;

-- name: device_firmware
-- What the devices that may speak here have said of their firmware.
SELECT f.name, f.model, f.version, f.release, f.state, f.reason
FROM device_firmware f
JOIN device d ON d.name = f.name
ORDER BY f.name;

-- name: firmware_of_device
-- The same of one device: it is asked whenever a device says what it is, and a gateway has a thousand of them.
SELECT f.name, f.model, f.version, f.release, f.state, f.reason
FROM device_firmware f
JOIN device d ON d.name = f.name
WHERE f.name = ?;

-- name: set_device_firmware
INSERT INTO device_firmware (name, model, version, release, state, reason) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (name) DO UPDATE
SET model = excluded.model, version = excluded.version, release = excluded.release, state = excluded.state,
    reason = excluded.reason;
