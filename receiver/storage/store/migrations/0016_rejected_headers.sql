-- The names of the headers of a refused callback, separated by spaces.

ALTER TABLE rejections ADD COLUMN headers TEXT NOT NULL DEFAULT '';
