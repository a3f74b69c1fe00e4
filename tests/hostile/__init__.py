"""What strangers without a credential may send, and what must go on meanwhile."""
