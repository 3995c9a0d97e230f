"""The LSTM cell and its variants."""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqjax import validation
from seqjax.nn import activations, initializers
from seqjax.nn.activations import Activation
from seqjax.nn.cells import cell as cells_cell
from seqjax.nn.cells.cell import DropoutMasks, RecurrentCell, RecurrentOutput
from seqjax.nn.initializers import ConstantGate, Initializer
from seqjax.ops import lstm
from seqjax.ops.lstm_scan import LSTMWeights


class LSTMCarry(NamedTuple):
    """Carry of an LSTM: cell state and hidden state, in the order of Flax."""

    c: jax.Array  # [B, H] cell state
    h: jax.Array  # [B, H] hidden state, also the output of a step; [B, P] with `projection`


class LSTMCell(RecurrentCell):
    """Long short-term memory with a forget gate (Hochreiter and Schmidhuber 1997; Gers et al. 2000).

        i, f, o = recurrent_activation(x W + h U + b) each with its own quarter of W, U and b
        g       = activation(x W + h U + b)
        c'      = f * c + i * g
        h'      = o * activation(c')

    Parameters: `kernel` [F, 4H] (W), `recurrent_kernel` [H, 4H] (U), `bias` [4H] (b), that is
    4 ((F + 1) H + H^2) numbers. The default initializers are Keras's. `bias` is the sum of PyTorch's two biases;
    that sum moves twice as far in a step of plain gradient descent.

    Variants:
      forget: 'gate'; or 'coupled', f = 1 - i (Greff et al. 2017, CIFG); or 'none', f = 1, the cell of 1997
        (section 4; its squashing functions ranged from -2 to 2 and from -1 to 1). The last two have only the gates i,
        g, o, three quarters of the weights.
      peepholes: each gate also reads c of the same unit, with the weights `peephole` [3H] (i, f, o): i and f the old c,
        o the new one (Gers et al. 2002). The weights are initialized to 0.
      layer_norm: as in `RecurrentCell`, and c' is normalized before the last activation (Ba et al. 2016, eq. 20 to 22).
      projection: P, the size of h' = (o * activation(c')) R with `projection_kernel` [H, P] (Sak et al. 2014; PyTorch's
        `proj_size`); U is [P, 4H].
      recurrent_dropout, drop_connect, zoneout_h, zoneout_c: see `RecurrentCell`.

    The gates are sown in the collection 'intermediates' as i, f, g and o.
    """

    activation: str | Activation = activations.TANH  # a key of ACTIVATIONS, or a function
    recurrent_activation: str | Activation = activations.SIGMOID  # of the gates i, f, o
    forget: str = 'gate'  # a key of FORGET
    peepholes: bool = False
    peephole_init: Initializer | None = None  # None: zeros
    projection: int | None = None  # P; None: no projection
    zoneout_c: float = 0.0

    def __post_init__(self) -> None:
        validation.check_choice('forget', self.forget, FORGET)
        cells_cell.check_rate('zoneout_c', self.zoneout_c, 'to 1: the fraction of units of c that keep their value')
        if self.peephole_init is not None and not self.peepholes:
            raise ValueError('peephole_init has no effect without peepholes=True; remove it, or set peepholes=True')
        if self.projection is not None:
            cells_cell.check_count('projection', self.projection, 'the size of the projected hidden state')
        super().__post_init__()

    @property
    def roles(self) -> tuple[str, ...]:
        return FORGET[self.forget]

    @property
    def _hidden_size(self) -> int:
        return self.projection or self.features

    @property
    def is_stochastic(self) -> bool:
        return super().is_stochastic or self.zoneout_c > 0

    def _default_bias(self) -> Initializer:
        both, forget_bias = super()._default_bias(), self._scheme.forget_bias
        if not forget_bias or self.forget == 'none':
            return both
        return initializers.sum_of(both, partial(ConstantGate(forget_bias), roles=self.roles))

    @nn.compact
    def __call__(
        self,
        carry: LSTMCarry,
        inputs: jax.Array,
        *,
        dropout_masks: DropoutMasks | None = None,
        deterministic: bool | None = None,
    ) -> tuple[LSTMCarry, jax.Array]:
        """Runs one time step: carry (c, h), inputs [B, F] -> (new carry, new h); h is [B, P] with a projection."""
        c, h = carry = LSTMCarry(*carry)
        self._check_carry(carry, inputs, self.features, self._hidden_size)
        dropout_masks, act = self._call_masks(dropout_masks, deterministic, inputs), self.recurrent_activation
        xw, dropped, recurrent_kernel, bias = self._products(inputs, h, dropout_masks)
        z = self._norm('input_norm', xw) + self._norm('recurrent_norm', dropped @ recurrent_kernel) + bias
        z, peepholes = self._by_gate(z), self._peepholes(z)

        def gate(name: str, cell: jax.Array) -> jax.Array:
            return act(z[name] + peepholes[name] * cell.astype(xw.dtype) if name in peepholes else z[name])

        i = gate('i', c)
        f = gate('f', c) if self.forget == 'gate' else 1 - i if self.forget == 'coupled' else jnp.ones_like(i)
        g = self.activation(z['g'])
        new_c = f * c + i * self._drop_candidate(g, dropout_masks)
        o = gate('o', new_c)
        outputs = o * self.activation(self._norm('cell_norm', new_c, shift=True))
        if self.projection is not None:
            outputs = outputs.astype(xw.dtype) @ self._projection_kernel(xw.dtype)
        for name, value in {'i': i, 'f': f, 'g': g, 'o': o}.items():
            self.sow('intermediates', name, value)
        carry = LSTMCarry(
            self._zoneout(self.zoneout_c, new_c, c, dropout_masks, 1),
            self._zoneout(self.zoneout_h, outputs, h, dropout_masks, 2),
        )
        return carry, carry.h.astype(xw.dtype)

    fused_weight_names = LSTMWeights._fields  # the weights of `run_fused`, which must exist

    @property
    def fused(self) -> bool:
        """True if `run_fused` supports the cell: tanh, sigmoid, and no variants other than DropConnect."""
        kinds = (self.forget, self.activation, self.recurrent_activation)
        standard = kinds == ('gate', activations.TANH, activations.SIGMOID)
        variants = (self.peepholes, self.projection is not None, self.zoneout_c)
        return standard and not any(variants) and self._has_standard_step(LSTMCell)

    def run_fused(
        self,
        carry: LSTMCarry,
        inputs: jax.Array,
        dropout_masks: DropoutMasks | None,
        *,
        history: bool,
        **options: Any,
    ) -> RecurrentOutput:
        """Runs all time steps of inputs [T, B, F] by `seqjax.ops.lstm.lstm`, which also gets `options`."""
        carry = LSTMCarry(*carry)
        inputs, *weights = self._fused_weights(inputs, carry.h, dropout_masks)
        last, outputs, cells = lstm.lstm(inputs, carry, *weights, history=history, **options)
        return RecurrentOutput(last, outputs, LSTMCarry(cells, outputs.astype(carry.h.dtype)) if history else None)

    def _by_gate(self, x: jax.Array) -> dict[str, jax.Array]:
        names = 'ifgo' if self.forget == 'gate' else 'igo'
        return dict(zip(names, jnp.split(x, len(names), axis=-1), strict=True))

    def _peepholes(self, z: jax.Array) -> dict[str, jax.Array]:
        """Returns {gate: peephole weights [1, ..., H]}; empty without `peepholes`."""
        if not self.peepholes:
            return {}
        names = 'ifo' if self.forget == 'gate' else 'io'
        init = self.peephole_init or nn.initializers.zeros_init()
        kernel = self.param('peephole', init, (len(names) * self.features,), self.param_dtype)
        parts = jnp.split(kernel.astype(z.dtype), len(names))
        return {name: cells_cell.row(part, z) for name, part in zip(names, parts, strict=True)}

    def _projection_kernel(self, dtype: Any) -> jax.Array:
        init = self.kernel_init or self._scheme.kernel
        shape = (self.features, self.projection)
        return self.param('projection_kernel', init, shape, self.param_dtype).astype(dtype)

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> LSTMCarry:
        """Returns a carry of zeros, c [B, H] and h, for inputs of shape `input_shape` [B, F]; `rng` is not used."""
        del rng
        return LSTMCarry(
            *(jnp.zeros((*input_shape[:-1], width), self.param_dtype) for width in (self.features, self._hidden_size))
        )


# Roles of the gates for each value of `forget`.
FORGET = {
    'gate': initializers.LSTM_ROLES,  # i, f, g, o
    'coupled': (initializers.UPDATE, '', ''),  # i, g, o
    'none': ('', '', ''),  # i, g, o: no forget gate
}
