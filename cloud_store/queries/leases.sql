-- name: join
-- One lock per live worker, keyed by its backend, so that counting locks counts workers.
SELECT pg_advisory_lock(%(worker_class)s, pg_backend_pid())

-- name: survey
SELECT classid::bigint, objid::bigint, pid = pg_backend_pid() AS mine
FROM pg_locks
WHERE locktype = 'advisory' AND objsubid = 2 AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND classid::bigint IN (%(worker_class)s, %(shard_class)s)

-- name: acquire
SELECT pg_try_advisory_lock(%(shard_class)s, %(shard)s)

-- name: release
SELECT pg_advisory_unlock(%(shard_class)s, %(shard)s)

-- name: listen
-- Triggers notify when a twin has changed, a command was given, a gateway was revoked (migrations 0008 to 0010).
LISTEN stocktide_downlink
