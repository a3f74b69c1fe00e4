"""What audio bytes are: their format by magic and frames, and their length, rate, channels and codec."""
