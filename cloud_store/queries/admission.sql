-- name: enter
-- Gone with the transaction. A count of requests need not survive a crash, so it does not wait for the disk.
SELECT set_config('stocktide.tenant_id', %(tenant_id)s::integer::text, true),
    set_config('stocktide.actor', %(actor)s, true)

-- name: reading
-- An answer may take several statements, which must not see what was merged between them.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ

-- name: writing
SET TRANSACTION READ WRITE

-- name: tenant_named
SELECT stocktide_tenant_named(%(tenant)s)

-- name: count
SELECT allowed, made, reset_s FROM stocktide_request(%(usual)s)
