-- Rows that are under way, by their claims: as many as are attempted at once, however many wait or have ended.

CREATE INDEX deliveries_claimed ON deliveries (claimed_by) WHERE claimed_by IS NOT NULL;
CREATE INDEX pickups_claimed ON pickups (claimed_by) WHERE claimed_by IS NOT NULL;
