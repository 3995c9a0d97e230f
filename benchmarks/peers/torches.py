"""Workloads in PyTorch: nn.LSTM and autograd.

PyTorch is imported when the class is instantiated, in its worker only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.peers import cases
from benchmarks.peers.cases import Case
from benchmarks.peers.jaxes import Work


class Torch:
    """PyTorch."""

    def __init__(self) -> None:
        import torch

        self.torch = torch

    def _layer(self, case: Case, weights: Mapping[str, np.ndarray]) -> Any:
        lstm = self.torch.nn.LSTM(case.features, case.units, batch_first=True)
        self._set(lstm, from_shared(weights))
        return lstm

    def _set(self, module: Any, params: Mapping[str, np.ndarray]) -> None:
        with self.torch.no_grad():
            for name, array in params.items():
                getattr(module, name).copy_(self.torch.from_numpy(array))

    def forward(self, *sizes: int) -> Work:
        """Returns the forward pass of a case."""
        torch, arrays = self.torch, cases.arrays(Case(*sizes))
        lstm, inputs = self._layer(Case(*sizes), arrays.weights), torch.from_numpy(arrays.inputs)

        @torch.inference_mode()
        def call():
            return lstm(inputs)[0]

        return Work(call, lambda: {'outputs': call()})

    def training(self, *sizes: int) -> Work:
        """Returns loss and gradients of the weights, for the mean squared error over all time steps of a case."""
        torch, arrays = self.torch, cases.arrays(Case(*sizes))
        lstm = self._layer(Case(*sizes), arrays.weights)
        inputs, targets = torch.from_numpy(arrays.inputs), torch.from_numpy(arrays.targets)

        def call():
            lstm.zero_grad(set_to_none=True)
            loss = torch.nn.functional.mse_loss(lstm(inputs)[0], targets)
            loss.backward()
            return loss

        def results():
            loss = call().detach()
            return {'loss': loss, **to_shared({name: x.grad for name, x in lstm.named_parameters()})}

        return Work(call, results)

    def streaming(self, *sizes: int) -> Work:
        """Returns one time step of a stream; each call continues with the carry of the one before."""
        case = Case(*sizes)
        torch, arrays = self.torch, cases.arrays(case)
        cell, inputs = torch.nn.LSTMCell(case.features, case.units), torch.from_numpy(arrays.inputs[:, 0])
        self._set(cell, {name.removesuffix('_l0'): array for name, array in from_shared(arrays.weights).items()})
        carry = None

        @torch.inference_mode()
        def call():
            nonlocal carry
            carry = cell(inputs, carry)
            return carry[0]

        @torch.inference_mode()
        def results():
            return {'outputs': cell(inputs, cell(inputs))[0]}

        return Work(call, results)


def from_shared(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns PyTorch's parameters: transposed kernels, a bias, and a second bias of 0."""
    return {
        'weight_ih_l0': weights['kernel'].T.copy(),
        'weight_hh_l0': weights['recurrent_kernel'].T.copy(),
        'bias_ih_l0': weights['bias'],
        'bias_hh_l0': np.zeros_like(weights['bias']),
    }


def to_shared(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns gradients in the shapes of `cases.Arrays.weights`; both biases have the same gradient."""
    return {
        'kernel': params['weight_ih_l0'].T,
        'recurrent_kernel': params['weight_hh_l0'].T,
        'bias': params['bias_ih_l0'],
    }
