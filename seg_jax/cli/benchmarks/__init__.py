"""Programs that measure a part against its peers."""
