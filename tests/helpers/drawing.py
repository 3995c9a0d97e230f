"""Problems as tests draw from them."""

import functools

import jax


@functools.cache
def compiled(make, **options):
    """The problem, with its functions compiled once for all tests."""
    problem = make(**options)
    sample, draw = jax.jit(problem.sample, static_argnums=1), jax.jit(problem.draw, static_argnums=2)
    return problem._replace(sample=sample, draw=draw, loss_fn=jax.jit(problem.loss_fn))
