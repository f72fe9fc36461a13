"""Low-rank adapters beside the frozen weights of a model."""
