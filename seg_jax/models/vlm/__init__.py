"""Vision-language models: their protocol, their ports, the sampler, the likelihood."""
