-- name: twin
SELECT version, state, applied_ms FROM twin;

-- name: set_twin
INSERT OR REPLACE INTO twin (id, version, state, applied_ms) VALUES (0, ?, ?, ?);

-- name: device_configs
SELECT name, version, body, owned, confirmed, problem FROM device_config ORDER BY name;

-- name: set_device_config
INSERT INTO device_config (name, version, body, owned) VALUES (?, ?, ?, ?)
ON CONFLICT (name) DO UPDATE SET version = excluded.version, body = excluded.body, problem = NULL;

-- name: delete_device_config
DELETE FROM device_config WHERE name = ?;

-- name: confirm_config
UPDATE device_config SET confirmed = max(confirmed, ?), problem = ? WHERE name = ?;
