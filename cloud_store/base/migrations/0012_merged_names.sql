-- A name that stands for another: two spellings of one item, or of one shelf, that were booked before anybody saw it.
--
-- Entries, cells, balances and digests keep the names under which they were booked, so nothing that is compared with a
-- gateway changes, and what is booked under the old name later needs no care. Reports show the name that is meant, and
-- add up. It is one step: what a name stands for stands for nothing else. NULL again, and the two are apart as before.
ALTER TABLE item ADD COLUMN merged_into integer REFERENCES item CHECK (merged_into <> item_id);

ALTER TABLE location ADD COLUMN merged_into integer REFERENCES location CHECK (merged_into <> location_id);

CREATE INDEX item_merged ON item (merged_into) WHERE merged_into IS NOT NULL;

CREATE INDEX location_merged ON location (merged_into) WHERE merged_into IS NOT NULL;

-- One row for each name that was booked, with the names that are meant: sums of them are right.
CREATE OR REPLACE VIEW tenant_view.stock WITH (security_invoker, security_barrier) AS
SELECT t.name AS tenant, s.name AS site, l.name AS location, i.sku, i.name AS item, lot.name AS lot, b.on_hand, i.unit,
    i.scale, l.virtual
FROM public.balance b
JOIN public.location shelf ON shelf.location_id = b.location_id
JOIN public.location l ON l.location_id = coalesce(shelf.merged_into, shelf.location_id)
JOIN public.site s ON s.site_id = l.site_id
JOIN public.tenant t USING (tenant_id)
JOIN public.item booked ON booked.item_id = b.item_id
JOIN public.item i ON i.item_id = coalesce(booked.merged_into, booked.item_id)
JOIN public.lot ON lot.lot_id = b.lot_id;

CREATE OR REPLACE VIEW tenant_view.moved WITH (security_invoker, security_barrier) AS
SELECT t.name AS tenant, s.name AS site, g.name AS gateway, m.at, i.sku, lot.name AS lot, m.quantity, src.name AS source,
    dst.name AS destination, d.name AS device, m.actor, m.reference
FROM tenant_view.movement m
JOIN public.gateway g USING (gateway_id)
JOIN public.site s USING (site_id)
JOIN public.tenant t ON t.tenant_id = g.tenant_id
JOIN public.item booked ON booked.item_id = m.item_id
JOIN public.item i ON i.item_id = coalesce(booked.merged_into, booked.item_id)
JOIN public.lot ON lot.lot_id = m.lot_id
JOIN public.location taken ON taken.location_id = m.source_id
JOIN public.location src ON src.location_id = coalesce(taken.merged_into, taken.location_id)
JOIN public.location given ON given.location_id = m.destination_id
JOIN public.location dst ON dst.location_id = coalesce(given.merged_into, given.location_id)
LEFT JOIN public.device d USING (device_id);
