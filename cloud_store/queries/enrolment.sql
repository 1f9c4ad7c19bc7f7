-- name: add_claim
INSERT INTO claim (tenant_id, site_id, gateway_id, name, secret_hash, expires_at)
VALUES (
    %(tenant_id)s, %(site_id)s, %(gateway_id)s, %(name)s, %(secret_hash)s,
    now() + make_interval(secs => %(life_s)s)
)
RETURNING expires_at

-- name: gateway_at
SELECT g.gateway_id, g.tenant_id, g.site_id, t.name, s.name, g.state
FROM gateway g
JOIN tenant t ON t.tenant_id = g.tenant_id
JOIN site s ON s.site_id = g.site_id
WHERE g.name = %(gateway)s

-- name: claims
SELECT c.name AS claim, t.name AS tenant, s.name AS site, g.name AS gateway, c.created_at, c.expires_at, c.used_at,
    c.revoked_at,
    CASE
        WHEN c.revoked_at IS NOT NULL THEN 'revoked'
        WHEN c.used_at IS NOT NULL THEN 'used'
        WHEN c.expires_at <= now() THEN 'expired'
        ELSE 'open'
    END AS state
FROM claim c
JOIN tenant t ON t.tenant_id = c.tenant_id
JOIN site s ON s.site_id = c.site_id
JOIN gateway g ON g.gateway_id = c.gateway_id
WHERE %(tenant)s::text IS NULL OR t.name = %(tenant)s
ORDER BY c.claim_id DESC
LIMIT %(limit)s

-- name: revoke_claim
UPDATE claim SET revoked_at = coalesce(revoked_at, now()) WHERE name = %(name)s RETURNING claim_id

-- name: claim_named
SELECT c.claim_id, c.secret_hash, g.name, g.state = 'active', c.expires_at <= now(), c.revoked_at IS NOT NULL,
    c.public_key, k.pem
FROM claim c
JOIN gateway g ON g.gateway_id = c.gateway_id
LEFT JOIN certificate k ON k.claim_id = c.claim_id
WHERE c.name = %(name)s

-- name: twin_of
SELECT t.version, t.state
FROM twin t
JOIN gateway g USING (gateway_id)
WHERE g.name = %(gateway)s AND t.version > 0

-- name: lock_gateway
-- A revocation takes the same lock: a certificate is either revoked by it or never issued.
SELECT gateway_id, tenant_id FROM gateway WHERE name = %(gateway)s AND state = 'active' FOR NO KEY UPDATE

-- name: key_revoked
SELECT FROM certificate WHERE public_key = %(public_key)s AND revoked_at IS NOT NULL LIMIT 1

-- name: use_claim
UPDATE claim SET used_at = now(), public_key = %(public_key)s
WHERE claim_id = %(claim_id)s AND used_at IS NULL AND revoked_at IS NULL AND expires_at > now()
RETURNING claim_id

-- name: add_certificate
INSERT INTO certificate (tenant_id, gateway_id, claim_id, issuer, serial, public_key, pem, not_after)
VALUES (
    %(tenant_id)s, %(gateway_id)s, %(claim_id)s, %(issuer)s, %(serial)s, %(public_key)s, %(pem)s, %(not_after)s
)

-- name: certificate_for_key
-- What was issued to a gateway for a key, and how many renewals it was given within a day.
SELECT g.state = 'active',
    (
        SELECT k.pem FROM certificate k
        WHERE k.gateway_id = g.gateway_id AND k.public_key = %(public_key)s AND k.revoked_at IS NULL
            AND k.not_after > now()
        ORDER BY k.certificate_id DESC
        LIMIT 1
    ),
    (
        SELECT count(*) FROM certificate k
        WHERE k.gateway_id = g.gateway_id AND k.claim_id IS NULL AND k.issued_at > now() - interval '1 day'
    ),
    EXISTS (SELECT FROM certificate k WHERE k.public_key = %(public_key)s AND k.revoked_at IS NOT NULL)
FROM gateway g
WHERE g.name = %(gateway)s

-- name: revoke_gateway
UPDATE gateway SET state = 'disabled' WHERE name = %(gateway)s RETURNING gateway_id

-- name: revoke_certificates
UPDATE certificate SET revoked_at = now()
WHERE gateway_id = %(gateway_id)s AND revoked_at IS NULL AND not_after > now()

-- name: revoke_claims
UPDATE claim SET revoked_at = now() WHERE gateway_id = %(gateway_id)s AND revoked_at IS NULL AND used_at IS NULL

-- name: revoked
-- A certificate that has run out needs no line in a revocation list.
SELECT issuer, serial, revoked_at FROM certificate
WHERE revoked_at IS NOT NULL AND not_after > now()
ORDER BY certificate_id

-- name: certificates
SELECT g.name AS gateway, c.serial, c.issuer, c.issued_at, c.not_after, c.revoked_at,
    CASE
        WHEN c.revoked_at IS NOT NULL THEN 'revoked'
        WHEN c.not_after <= now() THEN 'expired'
        ELSE 'valid'
    END AS state
FROM certificate c
JOIN gateway g ON g.gateway_id = c.gateway_id
WHERE %(gateway)s::text IS NULL OR g.name = %(gateway)s
ORDER BY c.certificate_id DESC
LIMIT %(limit)s

-- name: gateways_by_issuer
-- What counts of a gateway is its newest certificate: the one before it is still valid, and not used any more.
SELECT issuer, count(*)
FROM (
    SELECT DISTINCT ON (gateway_id) issuer FROM certificate
    WHERE revoked_at IS NULL AND not_after > now()
    ORDER BY gateway_id, certificate_id DESC
) newest
GROUP BY issuer
