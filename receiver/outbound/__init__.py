"""Everything that leaves for another host: the address guard, the HTTP client, downloads, destinations."""
