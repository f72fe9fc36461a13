"""Muon of one matrix in float64, from its formulas: what torch.optim.Muon rounds to bfloat16."""

import numpy as np

COEFFICIENTS = 3.4445, -4.7750, 2.0315


def flattened(matrix, steps=5):
    """Returns the quintic Newton-Schulz iteration of a matrix (Jordan et al. 2024)."""
    a, b, c = COEFFICIENTS
    x = np.asarray(matrix, np.float64)
    x = x / np.linalg.norm(x)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def trained(weight, grads, *, lr, weight_decay=0.1, momentum=0.95, steps=5):
    """Returns a weight after updates with Nesterov momentum and decoupled decay."""
    weight, buffer = np.asarray(weight, np.float64), 0.0
    for grad in grads:
        buffer = momentum * buffer + np.asarray(grad, np.float64)
        way = flattened(grad + momentum * buffer, steps)
        weight = weight - lr * (weight_decay * weight + 0.2 * max(weight.shape) ** 0.5 * way)
    return weight
