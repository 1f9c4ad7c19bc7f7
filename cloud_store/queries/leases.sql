-- name: join
-- A session is a row with its backend's number; one whose backend is gone is nobody's.
WITH gone AS (
    DELETE FROM worker_session w WHERE NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = w.pid)
)
INSERT INTO worker_session (pid) VALUES (pg_backend_pid()) RETURNING session_id

-- name: survey
-- The live sessions, each with the shards it has leased; ours is seen by asking.
WITH seen AS (
    UPDATE worker_session SET seen_at = clock_timestamp() WHERE session_id = %(session)s
)
SELECT w.session_id, l.shard
FROM worker_session w
LEFT JOIN shard_lease l USING (session_id)
WHERE w.session_id = %(session)s
    OR w.seen_at > clock_timestamp() - %(unseen_s)s * interval '1 second'
        AND EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = w.pid)

-- name: acquire
-- Takes what is free, or was held by a session that is gone. In the order of the shards, so that two cannot deadlock.
INSERT INTO shard_lease AS l (shard, session_id)
SELECT shard, %(session)s FROM unnest(%(shards)s::smallint[]) AS shard ORDER BY shard
ON CONFLICT (shard) DO UPDATE SET session_id = excluded.session_id
WHERE NOT EXISTS (
    SELECT FROM worker_session w
    WHERE w.session_id = l.session_id AND w.seen_at > clock_timestamp() - %(unseen_s)s * interval '1 second'
        AND EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = w.pid)
)
RETURNING shard

-- name: release
DELETE FROM shard_lease WHERE session_id = %(session)s AND shard = ANY(%(shards)s::smallint[])

-- name: leave
WITH leases AS (
    DELETE FROM shard_lease WHERE session_id = %(session)s
)
DELETE FROM worker_session WHERE session_id = %(session)s

-- name: listen
-- Triggers notify when a twin has changed, a command was given, a gateway was revoked (migrations 0008 to 0010).
LISTEN stocktide_downlink
