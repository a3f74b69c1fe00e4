-- The setting by which the check went that refused a callback.

ALTER TABLE rejections ADD COLUMN setting TEXT NOT NULL DEFAULT '';
