"""The model of a run: of what a task asks for, and what a configuration chooses."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqjax import config as seqjax_config
from seqjax.config import ModelConfig
from seqjax.nn import initializers, models, seq2seq
from seqjax.types import Arrays, ModelSpec

OF_READERS = ('input_dropout', 'output_dropout')
OF_KERNELS = ('recurrent_dropout', 'drop_connect')
OF_WRITERS = ('attention', 'scheduled_sampling')


def build_model(spec: ModelSpec, config: ModelConfig, inputs: Arrays | None = None) -> nn.Module:
    """A model that reads and returns what a spec says.

    Args:
      spec: of a task or a dataset.
      config: which model.
      inputs: of one sequence, arrays or their shapes, that the model is tried on; one step by default.

    Raises:
      ValueError: there is no such model; the message names the fields of `config` that it is about.

    >>> model = build_model(ModelSpec('last', outputs=2, features=3), ModelConfig(cell='gru', hidden=8))
    >>> model.init_with_output(jax.random.key(0), jnp.zeros((1, 5, 3)))[0].shape
    (1, 2)
    """
    if config.dropout and config.layers == 1:
        raise ValueError(f'dropout={config.dropout} does nothing with layers=1: it stands between two layers')
    if config.bidirectional and spec.causal:
        raise ValueError('bidirectional=True would look at the answers: each step is asked what follows')
    options = _cell_options(spec, config)
    options |= {name: getattr(config, name) for name in ('layers', 'bidirectional', 'dropout')}
    options['features'] = config.hidden
    try:
        model = _writer(spec, config, options) if spec.output == 'seq2seq' else _reader(spec, config, options)
        key, first = jax.eval_shape(lambda: (jax.random.key(0), one_step(spec)))  # nothing is compiled
        jax.eval_shape(model.init, key, first if inputs is None else inputs)
    except TypeError as error:  # a cell without such a gate
        raise ValueError(str(error)) from error
    return model if spec.wrap_model is None else spec.wrap_model(model)


def one_step(spec: ModelSpec) -> Arrays:
    """An input of one sequence of one step."""
    values = jnp.zeros((1, 1), jnp.int32) if spec.features is None else jnp.zeros((1, 1, spec.features))
    return (values, jnp.zeros((1, 1), jnp.int32)) if spec.output == 'seq2seq' else values


def _cell_options(spec: ModelSpec, config: ModelConfig) -> dict[str, Any]:
    """The cell, and its arguments."""
    cell, options = models.find_cell(config.cell)
    for name in OF_KERNELS:
        rate = getattr(config, name)
        if rate and name not in getattr(cell, '__dataclass_fields__', ()):
            raise ValueError(f'{name}={rate}: {config.cell} has no recurrent kernel, so nothing to drop')
        options |= {name: rate} if rate else {}
    if config.forget_bias_init == 'chrono' and spec.memory_span is None:
        raise ValueError(
            'forget_bias_init=chrono needs to know how long to remember, and memory_span is not known here'
        )
    if config.forget_bias_init != 'default':
        span = (spec.memory_span,) if config.forget_bias_init == 'chrono' else ()
        options['bias_init'] = initializers.GATE_BIASES[config.forget_bias_init](*span)
    return {'cell': cell, **options}


def _reader(spec: ModelSpec, config: ModelConfig, options: dict[str, Any]) -> nn.Module:
    """Returns one output for a sequence, or one for each of its steps."""
    _refuse(config, OF_WRITERS, 'is of a decoder, and this model has none')
    options |= {name: getattr(config, name) for name in (*OF_READERS, 'parallel')}
    options |= {name: getattr(spec, name) for name in ('vocabulary', 'stateful', 'head_init', 'unroll')}
    return models.sequence_model(spec.output, spec.outputs, **options)


def _writer(spec: ModelSpec, config: ModelConfig, options: dict[str, Any]) -> nn.Module:
    """Writes a sequence for a sequence."""
    _refuse(config, OF_READERS, 'is not of an encoder and a decoder')
    _refuse(config, ('parallel',), 'and a decoder goes step by step')
    options |= {name: getattr(config, name) for name in OF_WRITERS}
    return seq2seq.encoder_decoder(spec.outputs, source_vocabulary=spec.vocabulary, **options)


def _refuse(config: ModelConfig, names: tuple[str, ...], why: str) -> None:
    """Raises ValueError where a field that is of another kind of model is not at its default."""
    for name in (name for name in names if name in seqjax_config.changed(config)):
        raise ValueError(f'{name}={getattr(config, name)} {why}')
