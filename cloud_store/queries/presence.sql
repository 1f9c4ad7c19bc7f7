-- name: record
INSERT INTO gateway_status AS s (
    gateway_id, state, epoch, version, heard_at, clock_offset_ms, backlog, dead_letters, readings_dropped,
    devices_online
)
SELECT gateway_id, %(state)s, %(epoch)s, %(version)s, %(heard_at)s, %(clock_offset_ms)s, %(backlog)s,
    %(dead_letters)s, %(readings_dropped)s, %(devices_online)s
FROM gateway
WHERE name = %(gateway)s AND state = 'active'
ON CONFLICT (gateway_id) DO UPDATE
SET state = excluded.state, epoch = excluded.epoch, version = excluded.version, heard_at = excluded.heard_at,
    clock_offset_ms = excluded.clock_offset_ms, backlog = excluded.backlog, dead_letters = excluded.dead_letters,
    readings_dropped = excluded.readings_dropped, devices_online = excluded.devices_online
WHERE s.heard_at <= excluded.heard_at
