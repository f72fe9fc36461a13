"""Host side of a batch: sources, the encoder and the pipeline."""
