"""One file for each speech provider, on a frame that they share."""
