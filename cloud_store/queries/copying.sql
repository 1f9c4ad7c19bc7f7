-- name: stage_movements
CREATE TEMPORARY TABLE IF NOT EXISTS staged_movement (LIKE movement) ON COMMIT DELETE ROWS

-- name: copy_movements
COPY staged_movement (
    at, hlc, seq, quantity, device_at, claimed_ms, tenant_id, gateway_id, epoch_id, item_id, lot_id, source_id,
    destination_id, device_id, kind, serial, event, actor, reference
) FROM STDIN (FORMAT binary)

-- name: take_movements
INSERT INTO movement (
    at, hlc, seq, quantity, device_at, claimed_ms, tenant_id, gateway_id, epoch_id, item_id, lot_id, source_id,
    destination_id, device_id, kind, serial, event, actor, reference
)
SELECT
    at, hlc, seq, quantity, device_at, claimed_ms, tenant_id, gateway_id, epoch_id, item_id, lot_id, source_id,
    destination_id, device_id, kind, serial, event, actor, reference
FROM staged_movement

-- name: stage_readings
CREATE TEMPORARY TABLE IF NOT EXISTS staged_reading (LIKE reading) ON COMMIT DELETE ROWS

-- name: copy_readings
COPY staged_reading (
    at, hlc, seq, value, device_at, claimed_ms, tenant_id, gateway_id, epoch_id, device_id, metric_id
) FROM STDIN (FORMAT binary)

-- name: take_readings
INSERT INTO reading (
    at, hlc, seq, value, device_at, claimed_ms, tenant_id, gateway_id, epoch_id, device_id, metric_id
)
SELECT
    at, hlc, seq, value, device_at, claimed_ms, tenant_id, gateway_id, epoch_id, device_id, metric_id
FROM staged_reading

-- name: stage_frames
CREATE TEMPORARY TABLE IF NOT EXISTS staged_frame (LIKE frame) ON COMMIT DELETE ROWS

-- name: copy_frames
COPY staged_frame (
    received_at, frame, first_seq, tenant_id, gateway_id, epoch_id, entries, rejected, bytes, stream, replay, digest,
    payload, verdicts
) FROM STDIN (FORMAT binary)

-- name: take_frames
INSERT INTO frame (
    received_at, frame, first_seq, tenant_id, gateway_id, epoch_id, entries, rejected, bytes, stream, replay, digest,
    payload, verdicts
)
SELECT
    received_at, frame, first_seq, tenant_id, gateway_id, epoch_id, entries, rejected, bytes, stream, replay, digest,
    payload, verdicts
FROM staged_frame

-- name: add_hours
INSERT INTO cell_history_new (location_id, item_id, lot_id, hour, at_hour, known_hour, moved)
SELECT *
FROM unnest(
    %(locations)s::bigint[], %(items)s::bigint[], %(lots)s::bigint[], %(hours)s::bigint[], %(at_hours)s::bigint[],
    %(known_hours)s::bigint[], %(moved)s::bigint[]
)
