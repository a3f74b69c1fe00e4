"""Everything that is kept: the store, the blobs, the journal."""
