"""What answers: vision-language models in Flax NNX, their sampler and their weights."""
