"""Compiled samplers of synthetic tasks."""

import functools

import jax


@functools.cache
def compiled(make, **options):
    """Returns the task with its functions compiled, once for all tests."""
    task = make(**options)
    sample, draw = jax.jit(task.sample, static_argnums=1), jax.jit(task.draw, static_argnums=2)
    return task._replace(sample=sample, draw=draw, loss_fn=jax.jit(task.loss_fn))
