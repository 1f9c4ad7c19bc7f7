-- name: copy_movements
COPY movement (
    at, hlc, seq, quantity, device_at, claimed_ms, tenant_id, gateway_id, epoch_id, item_id, lot_id, source_id,
    destination_id, device_id, kind, serial, event, actor, reference
) FROM STDIN (FORMAT binary)

-- name: copy_readings
COPY reading (
    at, hlc, seq, value, device_at, claimed_ms, tenant_id, gateway_id, epoch_id, device_id, metric_id
) FROM STDIN (FORMAT binary)

-- name: copy_frames
COPY frame (
    received_at, frame, first_seq, tenant_id, gateway_id, epoch_id, entries, rejected, bytes, stream, replay, digest,
    payload, verdicts
) FROM STDIN (FORMAT binary)
