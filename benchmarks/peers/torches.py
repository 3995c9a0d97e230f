"""Workloads in PyTorch: nn.LSTM or nn.GRU, and autograd.

PyTorch is imported when the class is instantiated, in its worker only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.peers import cases
from benchmarks.peers.cases import Case
from benchmarks.peers.jaxes import Work

ORDER = {cases.LSTM: (0, 1, 2, 3), cases.GRU: (1, 0, 2)}  # positions of our gates i, f, g, o and z, r, n


class Torch:
    """PyTorch."""

    def __init__(self) -> None:
        import torch

        self.torch = torch

    def _layer(self, case: Case, weights: Mapping[str, np.ndarray]) -> Any:
        kind = {cases.LSTM: self.torch.nn.LSTM, cases.GRU: self.torch.nn.GRU}[case.cell]
        layer = kind(case.features, case.units, batch_first=True)
        self._set(layer, from_shared(weights, case.cell))
        return layer

    def _set(self, module: Any, params: Mapping[str, np.ndarray]) -> None:
        with self.torch.no_grad():
            for name, array in params.items():
                getattr(module, name).copy_(self.torch.from_numpy(array))

    def forward(self, *sizes: Any) -> Work:
        """Returns the forward pass of a case."""
        torch, arrays = self.torch, cases.arrays(Case(*sizes))
        layer, inputs = self._layer(Case(*sizes), arrays.weights), torch.from_numpy(arrays.inputs)

        @torch.inference_mode()
        def call():
            return layer(inputs)[0]

        return Work(call, lambda: {'outputs': call()})

    def training(self, *sizes: Any) -> Work:
        """Returns loss and gradients of the weights, for the mean squared error over all time steps of a case."""
        case = Case(*sizes)
        torch, arrays = self.torch, cases.arrays(case)
        layer = self._layer(case, arrays.weights)
        inputs, targets = torch.from_numpy(arrays.inputs), torch.from_numpy(arrays.targets)

        def call():
            layer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.mse_loss(layer(inputs)[0], targets)
            loss.backward()
            return loss

        def results():
            loss = call().detach()
            grads = {name: x.grad.numpy() for name, x in layer.named_parameters()}
            return {'loss': loss, **to_shared(grads, case.cell)}

        return Work(call, results)

    def streaming(self, *sizes: Any) -> Work:
        """Returns one time step of a stream; each call continues with the carry of the one before."""
        case = Case(*sizes)
        torch, arrays = self.torch, cases.arrays(case)
        kind = {cases.LSTM: torch.nn.LSTMCell, cases.GRU: torch.nn.GRUCell}[case.cell]
        cell, inputs = kind(case.features, case.units), torch.from_numpy(arrays.inputs[:, 0])
        params = from_shared(arrays.weights, case.cell)
        self._set(cell, {name.removesuffix('_l0'): array for name, array in params.items()})
        carry = None

        @torch.inference_mode()
        def call():
            nonlocal carry
            carry = cell(inputs, carry)
            return carry

        @torch.inference_mode()
        def results():
            second = cell(inputs, cell(inputs))
            return {'outputs': second[0] if case.cell == cases.LSTM else second}

        return Work(call, results)


def from_shared(weights: Mapping[str, np.ndarray], cell: str) -> dict[str, np.ndarray]:
    """Returns PyTorch's parameters: transposed kernels and two biases, for the LSTM a second bias of 0."""
    ordered = {name: _reordered(x, cell) for name, x in weights.items()}
    return {
        'weight_ih_l0': ordered['kernel'].T.copy(),
        'weight_hh_l0': ordered['recurrent_kernel'].T.copy(),
        'bias_ih_l0': ordered['bias'],
        'bias_hh_l0': ordered.get('recurrent_bias', np.zeros_like(ordered['bias'])),
    }


def to_shared(params: Mapping[str, np.ndarray], cell: str) -> dict[str, np.ndarray]:
    """Returns gradients in the shapes of `cases.Arrays.weights`; both biases of the LSTM have the same gradient."""
    shared = {
        'kernel': params['weight_ih_l0'].T,
        'recurrent_kernel': params['weight_hh_l0'].T,
        'bias': params['bias_ih_l0'],
    }
    if cell == cases.GRU:
        shared['recurrent_bias'] = params['bias_hh_l0']
    return {name: _reordered(x, cell) for name, x in shared.items()}


def _reordered(array: np.ndarray, cell: str) -> np.ndarray:
    """Returns an array [..., GH] with its gates in the order of PyTorch, or from that order in ours."""
    gates = np.split(array, len(ORDER[cell]), axis=-1)
    return np.concatenate([gates[n] for n in ORDER[cell]], axis=-1)
