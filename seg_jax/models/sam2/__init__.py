"""SAM 2's image path: an image encoded once, masks of as many prompts as there are."""
