"""Base classes of recurrent cells, which map (carry, inputs of one time step) to (new carry, outputs) as in Flax.

Kernels and biases concatenate the gates. The gates of the LSTM are (i, f, g, o), as in Keras and PyTorch: input gate,
forget gate, candidate (c in Keras, g in PyTorch), output gate. The gates of the GRU are (z, r, n), as in Keras and
ONNX: update gate, reset gate, candidate; PyTorch has r before z.

Dropout is active in training, that is with the random stream 'dropout': `seqjax.nn.RNN` draws the masks of a sequence
once (`draw_dropout_masks`), and passes them to every step.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype

from seqjax import validation
from seqjax.nn import activations, initializers
from seqjax.nn.initializers import GateBias, Initializer, Scheme
from seqjax.options import NamedOptions


class HiddenCarry(NamedTuple):
    """Carry of a cell whose only state, h, is also its output."""

    h: jax.Array  # [B, H]


class RecurrentOutput(NamedTuple):
    """Result of running a cell over all time steps."""

    last: Any  # carry after the last step
    outputs: Any  # [T, *B, ...]
    carries: Any  # [T, *B, ...], carry after each step; None unless requested by `history`


class DropoutMasks(NamedTuple):
    """Dropout masks for all steps of a sequence, and the PRNG key from which the masks of single steps are drawn."""

    key: jax.Array  # PRNG key of the sequence, or of a step in the result of `at`
    hidden: jax.Array | None  # [B, H] factor on the hidden state in the products h U; None: no such dropout
    kernel: jax.Array | None  # [H, nH] factor on the recurrent kernel, for all rows; None: no DropConnect

    def at(self, step: jax.Array) -> DropoutMasks:
        """Returns the masks with the PRNG key of time step `step`, derived from the sequence's key and this index."""
        return self._replace(key=jax.random.fold_in(self.key, step))


class Cell(NamedOptions, nn.RNNCellBase):
    """Base class of all cells: kernel and bias of the inputs, checks of options and shapes, and dtypes.

    The parameters are `kernel` [F, nH] and `bias` [nH] for n gates; subclasses add others. Products, gates and
    outputs have `dtype`, by default the promoted dtype of inputs and parameters; the carry has `param_dtype` (linear
    cells: at least float32) at every step.
    """

    features: int  # H
    kernel_init: Initializer | None = None  # None: the cell's default
    bias_init: Initializer | None = None  # None: the cell's default; may be a `GateBias`
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_count('features', self.features, 'the number of hidden units')
        for name in ('activation', 'recurrent_activation'):
            if hasattr(self, name):
                object.__setattr__(self, name, activations.named(name, getattr(self, name)))
        super().__post_init__()

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of the gates in the order of the kernel: `initializers.KEEP`, `WRITE`, `UPDATE` or ''."""
        raise NotImplementedError

    @property
    def num_feature_axes(self) -> int:
        return 1

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> Any:
        """Returns a carry of zeros, h [B, H], for inputs of shape `input_shape` [B, F]; `rng` is not used."""
        del rng
        return HiddenCarry(jnp.zeros((*input_shape[:-1], self.features), self._carry_dtype))

    @property
    def _carry_dtype(self) -> Any:
        return self.param_dtype

    def _input_weights(self, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the parameters kernel [F, nH] and bias [nH]; raises ValueError if inputs [B, F] have another F."""
        self._check_inputs(inputs)
        shape = (inputs.shape[-1], len(self.roles) * self.features)
        bias_init = self.bias_init or self._default_bias()
        if isinstance(bias_init, GateBias):
            bias_init = partial(bias_init, roles=self.roles)
        return (
            self.param('kernel', self.kernel_init or self._default_kernel(), shape, self.param_dtype),
            self.param('bias', bias_init, shape[1:], self.param_dtype),
        )

    def _default_kernel(self) -> Initializer:
        return nn.initializers.glorot_uniform()

    def _default_bias(self) -> Initializer:
        return nn.initializers.zeros_init()

    def _check_inputs(self, inputs: jax.Array) -> None:
        if self.has_variable('params', 'kernel'):
            made = self.get_variable('params', 'kernel').shape[:1]
            validation.check_shape('the last axis of inputs', inputs.shape[-1:], made, 'the first axis of the kernel')

    def _check_carry(self, carry: Any, inputs: jax.Array, *widths: int) -> None:
        for part, width in zip(carry, widths, strict=True):
            want = (*inputs.shape[:-1], width)
            validation.check_shape(
                'the carry', part.shape, want, f'the batch axes of inputs {inputs.shape} and the state size'
            )


def check_count(name: str, value: Any, meaning: str) -> None:
    """Raises ValueError if `value` is not an integer of at least 1; `meaning` states in the message what it counts."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f'{name}={value!r} must be an integer of at least 1: {meaning}')


def check_rate(name: str, value: Any, meaning: str, below_one: bool = False) -> None:
    """Raises ValueError if `value` is not a number from 0 to 1 (below 1 if `below_one`).

    The message is 'NAME=VALUE must be a number from 0 MEANING', so `meaning` starts with 'to 1: ' or 'to below 1: '.
    """
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1 or (below_one and value == 1):
        raise ValueError(f'{name}={value!r} must be a number from 0 {meaning}')


def row(bias: jax.Array, like: jax.Array) -> jax.Array:
    """Returns a bias [n] with axes of length 1 in front, as many axes as `like` [*B, n] has."""
    return bias.reshape((1,) * (like.ndim - 1) + bias.shape)


DROPOUT_MASK_SCHEDULES = ('sequence', 'step')


class RecurrentCell(Cell):
    """Base class of cells with a recurrent kernel, the parameter `recurrent_kernel` [H, nH] (U).

    Regularization, active in training, that is with a random stream 'dropout':
      recurrent_dropout: dropped fraction; with `recurrent_dropout_mask='sequence'` of the hidden state in every product
        h U, one mask per row for all steps (Gal and Ghahramani 2016, equation 7, tied weights); with 'step' of the
        candidate, a new mask at every step, so that memory is not lost (Semeniuta et al. 2016, equation 9).
      drop_connect: fraction of the recurrent kernel that is dropped, one mask for the whole batch and all steps (Merity
        et al. 2018).
      zoneout_h: fraction of hidden units that keep their value, drawn at every step (Krueger et al. 2017, section 3.2).
        Without the stream 'dropout', h is the expectation. (`zoneout_c` of the LSTM: the same for the cell state.)

    With `layer_norm` the products x W and h U are normalized before the bias is added (Ba et al. 2016): in the LSTM
    each product over all gates together, in the GRU n separately from z and r, in the simple RNN the sum x W + h U.
    Scales are parameters, and so are shifts that are not redundant with the bias.
    """

    init_scheme: str = 'keras'  # a key of SCHEMES, for weights without an initializer
    recurrent_kernel_init: Initializer | None = None
    layer_norm: bool = False
    recurrent_dropout: float = 0.0
    recurrent_dropout_mask: str = 'sequence'  # or 'step'
    drop_connect: float = 0.0
    zoneout_h: float = 0.0

    def __post_init__(self) -> None:
        validation.check_choice('init_scheme', self.init_scheme, initializers.SCHEMES)
        if self.init_scheme != 'keras' and None not in (self.kernel_init, self.recurrent_kernel_init, self.bias_init):
            raise ValueError(
                f'init_scheme={self.init_scheme!r} has no effect if kernel_init, recurrent_kernel_init and bias_init '
                'are all passed; remove it'
            )
        for name in ('recurrent_dropout', 'drop_connect'):
            check_rate(name, getattr(self, name), 'to below 1: the fraction dropped in training', below_one=True)
        check_rate('zoneout_h', self.zoneout_h, 'to 1: the fraction of units that keep their value')
        validation.check_choice('recurrent_dropout_mask', self.recurrent_dropout_mask, DROPOUT_MASK_SCHEDULES)
        if self.recurrent_dropout_mask != 'sequence' and not self.recurrent_dropout:
            raise ValueError(
                f'recurrent_dropout_mask={self.recurrent_dropout_mask!r} has no effect with recurrent_dropout=0; '
                'remove it, or set recurrent_dropout'
            )
        super().__post_init__()
        if self.layer_norm and self.features == 1:
            raise ValueError('layer_norm=True needs features of at least 2, not 1: one number minus its mean is 0')

    @property
    def _hidden_size(self) -> int:
        return self.features

    @property
    def _scheme(self) -> Scheme:
        return initializers.SCHEMES[self.init_scheme](self.features)

    def _default_kernel(self) -> Initializer:
        return self._scheme.kernel

    def _default_bias(self) -> Initializer:
        """Returns the default initializer of a single bias, the sum of the two biases of the scheme."""
        return initializers.sum_of(self._scheme.bias, self._scheme.recurrent_bias)

    @property
    def is_stochastic(self) -> bool:
        """True if a rate of dropout or zoneout is above 0, so that training differs from evaluation."""
        return any((self.recurrent_dropout, self.drop_connect, self.zoneout_h))

    def draw_dropout_masks(self, batch: tuple[int, ...]) -> DropoutMasks | None:
        """Draws the dropout masks of sequences with batch axes `batch`; None if the cell is not stochastic."""
        if not self.is_stochastic:
            return None
        step, hidden, kernel = jax.random.split(self.make_rng('dropout'), 3)
        hidden_rate = self.recurrent_dropout if self.recurrent_dropout_mask == 'sequence' else 0
        shape = (self._hidden_size, len(self.roles) * self.features)
        return DropoutMasks(
            step,
            self._dropout_mask(hidden, hidden_rate, (*batch, self._hidden_size)) if hidden_rate else None,
            self._dropout_mask(kernel, self.drop_connect, shape) if self.drop_connect else None,
        )

    def _dropout_mask(self, key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
        """Draws an array of factors that are 0 with probability `rate`, else 1 / (1 - rate)."""
        return jax.random.bernoulli(key, 1 - rate, shape).astype(self.param_dtype) / (1 - rate)

    def _call_masks(
        self, dropout_masks: DropoutMasks | None, deterministic: bool | None, inputs: jax.Array
    ) -> DropoutMasks | None:
        """Returns the masks of a call: the passed ones, or if they are None newly drawn ones; None if deterministic.

        `deterministic` None stands for True in a call without a random stream 'dropout'.
        """
        if deterministic is None:
            deterministic = not self.has_rng('dropout')
        if deterministic:
            return None
        return self.draw_dropout_masks(inputs.shape[:-1]) if dropout_masks is None else dropout_masks

    def _products(
        self, inputs: jax.Array, h: jax.Array, dropout_masks: DropoutMasks | None
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Returns x W [*B, nH], h [*B, H] and U [H, nH] after dropout, and b [1, ..., nH], all in one dtype."""
        kernel, bias = self._input_weights(inputs)
        init = self.recurrent_kernel_init or self._scheme.recurrent_kernel
        shape = (self._hidden_size, kernel.shape[-1])
        recurrent_kernel = self.param('recurrent_kernel', init, shape, self.param_dtype)
        if dropout_masks is not None and dropout_masks.hidden is not None:
            h = h * dropout_masks.hidden
        if dropout_masks is not None and dropout_masks.kernel is not None:
            recurrent_kernel = recurrent_kernel * dropout_masks.kernel
        inputs, h, kernel, recurrent_kernel, bias = promote_dtype(
            inputs, h, kernel, recurrent_kernel, bias, dtype=self.dtype
        )
        return inputs @ kernel, h, recurrent_kernel, row(bias, inputs)

    def _has_standard_step(self, cell: type[RecurrentCell]) -> bool:
        """Returns True if `__call__` is the method of `cell`, without layer_norm, recurrent_dropout and zoneout_h."""
        variants = (self.layer_norm, self.recurrent_dropout, self.zoneout_h)
        return type(self).__call__ is cell.__call__ and not any(variants)

    def _fused_weights(self, inputs: jax.Array, h: jax.Array, dropout_masks: DropoutMasks | None) -> list[jax.Array]:
        """Returns inputs and the parameters `fused_weight_names`, with DropConnect, in the dtype of the computation.

        The parameters must exist: a layer initializes them by a sequential scan.
        """
        self._check_inputs(inputs)
        weights = {name: self.get_variable('params', name) for name in self.fused_weight_names}
        if dropout_masks is not None:
            weights['recurrent_kernel'] *= dropout_masks.kernel  # once instead of at every step
        return promote_dtype(inputs, *weights.values(), h, dtype=self.dtype)[:-1]

    def _norm(self, name: str, x: jax.Array, *, shift: bool = False) -> jax.Array:
        """Returns x normalized over its last axis by the layer `name`, or x unchanged without `layer_norm`.

        The layer has a learned scale, and with `shift` a learned shift.
        """
        if not self.layer_norm:
            return x
        norm = nn.LayerNorm(1e-5, name=name, use_bias=shift, param_dtype=self.param_dtype)
        return norm(x).astype(x.dtype)

    def _drop_candidate(self, x: jax.Array, dropout_masks: DropoutMasks | None) -> jax.Array:
        if dropout_masks is None or self.recurrent_dropout_mask != 'step':
            return x
        factor = self._dropout_mask(jax.random.fold_in(dropout_masks.key, 0), self.recurrent_dropout, x.shape)
        return x * factor.astype(x.dtype)

    def _zoneout(
        self, rate: float, new: jax.Array, old: jax.Array, dropout_masks: DropoutMasks | None, part: int
    ) -> jax.Array:
        """Returns `new`, but `old` for a random fraction `rate` of the units, in the dtype of `old`.

        Without dropout masks it returns the expectation, rate * old + (1 - rate) * new.
        """
        new = new.astype(old.dtype)
        if not rate:
            return new
        if dropout_masks is None:
            return rate * old + (1 - rate) * new
        return jnp.where(
            jax.random.bernoulli(jax.random.fold_in(dropout_masks.key, part), float(rate), old.shape), old, new
        )


def hidden_carry(carry: Any) -> HiddenCarry:
    """Returns a carry as a HiddenCarry; plain arrays, as in Flax's cells, are accepted too."""
    return HiddenCarry(*carry) if isinstance(carry, tuple) else HiddenCarry(carry)
