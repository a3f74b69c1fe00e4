-- In what order a destination gets its events, and what deliveries to one that gets them in order have in common: the source and
-- the job (or ref) for those still to be sent, the same after a `-` for those that died; nothing once one was delivered. So a claim
-- finds in one step whether an earlier one is still to be sent.

ALTER TABLE destinations ADD COLUMN ordered TEXT;
ALTER TABLE deliveries ADD COLUMN order_key TEXT;
ALTER TABLE deliveries ADD COLUMN order_at BIGINT;
CREATE INDEX deliveries_order ON deliveries (destination, order_key, order_at, event_id) WHERE order_key IS NOT NULL;
