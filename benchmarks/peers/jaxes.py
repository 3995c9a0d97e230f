"""Workloads of libraries on JAX, given the layer of the library."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import cases
from benchmarks.peers.cases import Arrays, Case

if cases.SYNCHRONOUS in os.environ:  # JAX has no environment variable for this setting
    jax.config.update('jax_cpu_enable_async_dispatch', False)


class Work(NamedTuple):
    """A compiled workload."""

    call: Callable[[], Any]  # runs the workload and waits for its results
    results: Callable[[], Mapping[str, Any]]  # returns the results with the names and shapes of all libraries
    temporaries: int | None = None  # bytes of temporary memory; None if unknown


class JaxLayer(NamedTuple):
    """A layer as pure functions of a library's own parameters."""

    params: Any
    apply: Callable[[Any, jax.Array], jax.Array]  # params, inputs [B, T, F] -> outputs [B, T, H]
    step: Callable[[Any, Any, jax.Array], tuple[Any, jax.Array]]  # params, carry, [B, F] -> carry, outputs [B, H]
    carry: Any  # initial carry of a stream
    shared: Callable[[Any], Mapping[str, Any]]  # parameters or gradients -> in the shapes of `cases.Arrays.weights`


class JaxPeer:
    """Base class of libraries on JAX, which implement `layer`."""

    def layer(self, case: Case, weights: Mapping[str, np.ndarray]) -> JaxLayer:
        """Returns the layer of a case with these weights."""
        raise NotImplementedError

    def lowered_forward(self, case: Case, layer: JaxLayer, arrays: Arrays) -> tuple[Any, tuple[Any, ...]]:
        """Returns the lowered forward pass and its arguments."""
        del case
        arguments = jax.device_put((layer.params, arrays.inputs))
        return jax.jit(layer.apply).lower(*arguments), arguments

    def lowered(self, case: Case, layer: JaxLayer, arrays: Arrays) -> tuple[Any, tuple[Any, ...]]:
        """Returns the lowered training step and its arguments."""

        def loss(params, inputs, targets):
            return jnp.mean((layer.apply(params, inputs) - targets) ** 2)

        arguments = jax.device_put((layer.params, arrays.inputs, arrays.targets))
        return jax.jit(jax.value_and_grad(loss)).lower(*arguments), arguments

    def forward(self, *sizes: Any) -> Work:
        """Returns the forward pass of a case."""
        case = Case(*sizes)
        arrays = cases.arrays(case)
        lowered, arguments = self.lowered_forward(case, self.layer(case, arrays.weights), arrays)
        program = lowered.compile()
        return Work(lambda: jax.block_until_ready(program(*arguments)), lambda: {'outputs': program(*arguments)})

    def _training(self, case: Case) -> tuple[JaxLayer, Any, tuple[Any, ...]]:
        arrays = cases.arrays(case)
        layer = self.layer(case, arrays.weights)
        return layer, *self.lowered(case, layer, arrays)

    def training(self, *sizes: Any) -> Work:
        """Returns loss and gradients of the weights, for the mean squared error over all time steps of a case."""
        layer, lowered, arguments = self._training(Case(*sizes))
        program = lowered.compile()

        def results():
            loss, grads = program(*arguments)
            return {'loss': loss, **layer.shared(grads)}

        devices = len(jax.tree.leaves(arguments)[-1].sharding.device_set)  # each has temporaries of its own
        memory = devices * program.memory_analysis().temp_size_in_bytes
        return Work(lambda: jax.block_until_ready(program(*arguments)), results, memory)

    def streaming(self, *sizes: Any) -> Work:
        """Returns one time step of a stream; each call continues with the carry of the one before."""
        case = Case(*sizes)
        arrays = cases.arrays(case)
        layer = self.layer(case, arrays.weights)
        params, carry, inputs = first = jax.device_put((layer.params, layer.carry, arrays.inputs[:, 0]))
        program = jax.jit(layer.step).lower(*first).compile()

        def call():
            nonlocal carry
            carry, outputs = program(params, carry, inputs)
            return jax.block_until_ready(outputs)

        def results():
            second, _ = program(*first)
            return {'outputs': program(params, second, inputs)[1]}

        return Work(call, results)

    def compiling(self, *sizes: Any) -> Work:
        """Returns the work before the first training step of a case: arrays, tracing and compilation."""

        def call():
            jax.clear_caches()
            self._training(Case(*sizes))[1].compile()

        return Work(call, dict)

    def product(self, size: int) -> Work:
        """Returns a matrix product of size x size, to measure the peak rate of the CPU."""
        factor = jnp.asarray(np.random.default_rng(cases.SEED).standard_normal((size, size), np.float32))
        program = jax.jit(jnp.matmul).lower(factor, factor).compile()
        return Work(
            lambda: jax.block_until_ready(program(factor, factor)), lambda: {'product': program(factor, factor)}
        )
