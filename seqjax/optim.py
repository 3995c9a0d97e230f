"""The optax transformation that a run asks for."""

from __future__ import annotations

import optax

B1, B2 = 0.9, 0.999  # Kingma and Ba 2015, and the default of Keras, PyTorch and optax


def adam(learning_rate: float, epsilon: float) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015) with epsilon where Keras puts it.

    Keras adds epsilon to the square root of the second moment *before* the bias correction (the paper's
    "epsilon hat", section 2), optax after it. The two are the same when optax's is epsilon / sqrt(1 - B2^t) at
    step t. That matters where gradients are small, as at the end of the notebook's second experiment.
    """
    return optax.inject_hyperparams(optax.adam)(
        learning_rate=learning_rate,
        b1=B1,
        b2=B2,
        eps=lambda count: epsilon / (1 - B2 ** (count + 1)) ** 0.5,
    )
