"""What the peers on JAX share: all but the layer itself, and where its arrays lie."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import cases
from benchmarks.peers.cases import Arrays, Case

if cases.AT_ONCE in os.environ:  # JAX has no variable of its own for it
    jax.config.update('jax_cpu_enable_async_dispatch', False)


class Work(NamedTuple):
    """Something to be measured, compiled and warm."""

    call: Callable[[], Any]  # returns when it is done
    results: Callable[[], Mapping[str, Any]]  # by the names and in the shapes that all libraries share
    temporaries: int | None = None  # bytes of memory beside arguments and results; None where that is not known


class JaxLayer(NamedTuple):
    """An LSTM layer as pure functions of a library's own parameters."""

    params: Any
    apply: Callable[[Any, jax.Array], jax.Array]  # params, inputs [B, T, F] -> outputs [B, T, H]
    step: Callable[[Any, Any, jax.Array], tuple[Any, jax.Array]]  # params, carry, [B, F] -> carry, outputs [B, H]
    carry: Any  # with which a stream begins
    shared: Callable[[Any], Mapping[str, Any]]  # parameters or their gradients -> as `cases.Arrays.weights` has them


class JaxPeer:
    """A library on JAX; `layer` is what tells one from another."""

    def layer(self, case: Case, weights: Mapping[str, np.ndarray]) -> JaxLayer:
        """The layer of a case with these weights."""
        raise NotImplementedError

    def lowered_forward(self, case: Case, layer: JaxLayer, given: Arrays) -> tuple[Any, tuple[Any, ...]]:
        """The forward pass, traced and lowered, and its arguments."""
        del case
        arguments = jax.device_put((layer.params, given.inputs))
        return jax.jit(layer.apply).lower(*arguments), arguments

    def lowered(self, case: Case, layer: JaxLayer, given: Arrays) -> tuple[Any, tuple[Any, ...]]:
        """The training step, traced and lowered, and its arguments."""

        def loss(params, inputs, targets):
            return jnp.mean((layer.apply(params, inputs) - targets) ** 2)

        arguments = jax.device_put((layer.params, given.inputs, given.targets))
        return jax.jit(jax.value_and_grad(loss)).lower(*arguments), arguments

    def forward(self, *sizes: int) -> Work:
        """All outputs of a case."""
        case = Case(*sizes)
        given = cases.arrays(case)
        lowered, arguments = self.lowered_forward(case, self.layer(case, given.weights), given)
        program = lowered.compile()
        return Work(lambda: jax.block_until_ready(program(*arguments)), lambda: {'outputs': program(*arguments)})

    def _training(self, case: Case) -> tuple[JaxLayer, Any, tuple[Any, ...]]:
        given = cases.arrays(case)
        layer = self.layer(case, given.weights)
        return layer, *self.lowered(case, layer, given)

    def training(self, *sizes: int) -> Work:
        """Forward, backward, and the gradients of the weights, of the mean squared error over all steps of a case."""
        layer, lowered, arguments = self._training(Case(*sizes))
        program = lowered.compile()

        def results():
            loss, grads = program(*arguments)
            return {'loss': loss, **layer.shared(grads)}

        devices = len(jax.tree.leaves(arguments)[-1].sharding.device_set)  # each has temporaries of its own
        memory = devices * program.memory_analysis().temp_size_in_bytes
        return Work(lambda: jax.block_until_ready(program(*arguments)), results, memory)

    def streaming(self, *sizes: int) -> Work:
        """One step of a stream, whose carry goes into the next."""
        case = Case(*sizes)
        given = cases.arrays(case)
        layer = self.layer(case, given.weights)
        params, carry, inputs = first = jax.device_put((layer.params, layer.carry, given.inputs[:, 0]))
        program = jax.jit(layer.step).lower(*first).compile()

        def call():
            nonlocal carry
            carry, outputs = program(params, carry, inputs)
            return jax.block_until_ready(outputs)

        def results():
            second, _ = program(*first)
            return {'outputs': program(params, second, inputs)[1]}

        return Work(call, results)

    def compiling(self, *sizes: int) -> Work:
        """What is done before the first training step of a case: its arrays are made, its program traced, compiled."""

        def call():
            jax.clear_caches()
            self._training(Case(*sizes))[1].compile()

        return Work(call, dict)

    def product(self, size: int) -> Work:
        """A matrix product of size x size, for which a CPU is as fast as it can be."""
        factor = jnp.asarray(np.random.default_rng(cases.SEED).standard_normal((size, size), np.float32))
        program = jax.jit(jnp.matmul).lower(factor, factor).compile()
        return Work(
            lambda: jax.block_until_ready(program(factor, factor)), lambda: {'product': program(factor, factor)}
        )
