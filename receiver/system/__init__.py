"""What the operating system gives: files, threads, request bodies on disk."""
