"""The blobs: audio and other large results in a folder or in S3."""
