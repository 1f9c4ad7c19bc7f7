-- name: add
INSERT INTO job (job_id, spec, failures_percent_max, timeout_s, rollback, created_by)
VALUES (%(job)s, %(spec)s, %(failures_percent_max)s, %(timeout_s)s, %(rollback)s, %(who)s)

-- name: add_targets
INSERT INTO job_target (job_id, gateway_id, wave)
SELECT %(job)s, gateway_id, wave FROM unnest(%(gateways)s::integer[], %(waves)s::smallint[]) AS t (gateway_id, wave)

-- name: running
SELECT job_id FROM job WHERE state = 'running' ORDER BY job_id

-- name: lock
-- A job that another worker has in hand is left to it.
SELECT job_id, spec, state, failures_percent_max, timeout_s, rollback, created_by
FROM job
WHERE job_id = %(job)s
FOR UPDATE SKIP LOCKED

-- name: settle_commands
-- What became of the commands of a wave; the reply decides, and time.
UPDATE job_target t
SET state = CASE WHEN c.ok THEN 'succeeded' ELSE 'failed' END,
    reason = CASE WHEN c.ok THEN NULL WHEN c.replied_at IS NULL THEN 'no reply in time' ELSE c.reason END
FROM command c
WHERE t.job_id = %(job)s AND t.state = 'started' AND c.id = t.command_id
    AND (c.replied_at IS NOT NULL OR c.expires_at <= now())

-- name: settle_twins
-- What became of the twins of a wave: refused by the gateway or by a device, in force and confirmed by all devices that
-- the change is about, or neither in time. Whether a device is online is not asked: what the gateway last said of that
-- may be older than the device's connection. What other devices cannot is not this job's doing.
UPDATE job_target t
SET state = CASE WHEN w.reported_version >= t.twin_version AND d.answered AND NOT d.cannot THEN 'succeeded' ELSE 'failed' END,
    reason = CASE
        WHEN d.refused THEN w.reported ->> 'reason'
        WHEN w.reported_version < t.twin_version THEN 'not in force in time'
        WHEN d.cannot THEN left('a device cannot: ' || (w.reported ->> 'errors'), 200)
        WHEN NOT d.answered THEN left(format(%(unconfirmed)s, (
            SELECT string_agg(name, ', ' ORDER BY name)
            FROM unnest(%(devices)s::text[]) AS name
            WHERE NOT coalesce(w.reported -> 'confirmed', '{}'::jsonb) ? name
        )), 200)
    END
FROM twin w
CROSS JOIN LATERAL (
    SELECT coalesce((w.reported ->> 'refused')::bigint = w.version, false) AS refused,
        coalesce(w.reported -> 'errors', '{}'::jsonb) ?| %(devices)s::text[] AS cannot,
        coalesce(w.reported -> 'confirmed', '{}'::jsonb) || coalesce(w.reported -> 'errors', '{}'::jsonb)
            ?& %(devices)s::text[] AS answered
) AS d
WHERE t.job_id = %(job)s AND t.state = 'started' AND w.gateway_id = t.gateway_id AND t.twin_version IS NOT NULL
    AND (d.refused
        OR t.started_at < now() - %(timeout_s)s * interval '1 second'
        OR (w.reported_version >= t.twin_version AND (d.answered OR d.cannot)))

-- name: settle_firmware
-- What became of a release: refused or failed somewhere, cannot be had, healthy at all devices of its model, replaced by
-- somebody, or none of it in time. Which devices there are of a model, the gateway knows.
WITH heard AS (
    SELECT s.gateway_id, w.reported, w.version, told,
        s.started_at < now() - %(timeout_s)s * interval '1 second' AS late,
        s.started_at < now() - least(%(timeout_s)s, %(empty_s)s) * interval '1 second' AS settled,
        (w.state #>> ARRAY['firmware', %(model)s::text, 'release'])::bigint IS NOT DISTINCT FROM %(release)s AS wanted,
        coalesce((told ->> 'release')::bigint = %(release)s, false) AS current,
        (told ->> 'devices')::bigint AS devices,
        (told ->> 'healthy')::bigint AS healthy
    FROM job_target s
    JOIN twin w USING (gateway_id)
    CROSS JOIN LATERAL (SELECT w.reported #> ARRAY['firmware', %(model)s::text] AS told) AS r
    WHERE s.job_id = %(job)s AND s.state = 'started'
), judged AS (
    -- A gateway that knows no device of the model may only not know them yet: after a restore it takes some minutes.
    SELECT h.*, h.current AND h.healthy >= h.devices AND (h.devices > 0 OR h.settled) AS done, CASE
            WHEN (h.reported ->> 'refused')::bigint = h.version THEN h.reported ->> 'reason'
            WHEN NOT h.wanted THEN 'somebody has asked for another version'
            WHEN h.current AND h.told -> 'failed' <> '{}'::jsonb THEN (
                SELECT string_agg(f.key || ' ' || f.value, '; ' ORDER BY f.key)
                FROM jsonb_each_text(h.told -> 'failed') AS f
            )
            -- Where there is just no room it is tried again; gateways without codes are known by their words.
            WHEN h.current AND h.told ->> 'problem' IS NOT NULL
                AND (h.late OR NOT coalesce(h.told ->> 'problem_code' = %(no_room)s,
                    starts_with(h.told ->> 'problem', %(no_room_words)s))) THEN h.told ->> 'problem'
            WHEN h.late AND h.current AND h.healthy < h.devices
                THEN format('not in time: %%s of %%s devices are healthy', h.healthy, h.devices)
            WHEN h.late AND NOT h.current THEN 'not in time: no report came'
        END AS failure
    FROM heard h
)
UPDATE job_target t
SET state = CASE WHEN d.failure IS NULL THEN 'succeeded' ELSE 'failed' END,
    reason = CASE WHEN d.failure IS NULL AND d.devices = 0 THEN 'no device of this model' ELSE left(d.failure, 200) END
FROM judged d
WHERE t.job_id = %(job)s AND t.gateway_id = d.gateway_id AND (d.failure IS NOT NULL OR d.done)

-- name: counts
-- A stored state has a space where its name has a hyphen (TargetState): workers of before write it so.
SELECT wave, replace(state, ' ', '-'), count(*) FROM job_target WHERE job_id = %(job)s GROUP BY wave, state

-- name: waiting
SELECT g.gateway_id, g.name
FROM job_target t
JOIN gateway g USING (gateway_id)
WHERE t.job_id = %(job)s AND t.wave = %(wave)s AND t.state = 'waiting'
ORDER BY g.gateway_id
LIMIT %(limit)s

-- name: start
UPDATE job_target
SET state = %(state)s, started_at = now(), command_id = %(command)s, twin_version = %(version)s, before = %(before)s,
    reason = %(reason)s
WHERE job_id = %(job)s AND gateway_id = %(gateway_id)s

-- name: to_undo
SELECT gateway_id, twin_version, before
FROM job_target
WHERE job_id = %(job)s AND before IS NOT NULL AND state IN ('started', 'succeeded', 'failed')
ORDER BY gateway_id

-- name: not_undone
UPDATE job_target SET state = 'failed', reason = %(reason)s WHERE job_id = %(job)s AND gateway_id = %(gateway_id)s

-- name: undone
UPDATE job_target SET state = 'rolled back' WHERE job_id = %(job)s AND gateway_id = %(gateway_id)s

-- name: wait_for
-- The same for an operator, who waits for the worker that has it in hand.
SELECT job_id, spec, state, failures_percent_max, timeout_s, rollback, created_by
FROM job
WHERE job_id = %(job)s
FOR UPDATE

-- name: end
UPDATE job SET state = %(state)s, reason = %(reason)s, ended_at = now() WHERE job_id = %(job)s

-- name: set_state
UPDATE job SET state = %(state)s WHERE job_id = %(job)s AND state = ANY(%(from)s::text[])

-- name: jobs
SELECT j.job_id AS job, j.spec, j.state, j.reason, j.created_at, j.created_by, j.ended_at,
    count(*) AS gateways,
    count(*) FILTER (WHERE t.state = 'waiting') AS waiting,
    count(*) FILTER (WHERE t.state = 'started') AS started,
    count(*) FILTER (WHERE t.state = 'succeeded') AS succeeded,
    count(*) FILTER (WHERE t.state = 'failed') AS failed,
    count(*) FILTER (WHERE t.state = 'failed' AND starts_with(t.reason, %(unconfirmed)s)) AS unconfirmed,
    count(*) FILTER (WHERE t.state = 'rolled back') AS rolled_back
FROM job j
JOIN job_target t USING (job_id)
WHERE %(job)s::text IS NULL OR j.job_id = %(job)s
GROUP BY j.job_id
ORDER BY j.job_id DESC
LIMIT %(limit)s

-- name: targets
-- Of firmware also how far it is: the gateway's last word about the job's release, or about the way back.
SELECT t.wave, g.name AS gateway, replace(t.state, ' ', '-') AS state, t.reason, CASE
        WHEN r.told ->> 'release' IN (j.spec #>> '{firmware,release}', j.spec #>> '{back,release}')
            THEN format('%%s: %%s of %%s', r.told ->> 'version', r.told ->> 'healthy', r.told ->> 'devices')
    END AS healthy
FROM job_target t
JOIN job j USING (job_id)
JOIN gateway g USING (gateway_id)
LEFT JOIN twin w USING (gateway_id)
CROSS JOIN LATERAL (SELECT w.reported #> ARRAY['firmware', j.spec #>> '{firmware,model}'] AS told) AS r
WHERE t.job_id = %(job)s
ORDER BY t.wave, g.name
LIMIT %(limit)s
