"""Construction of the model of a run from the model spec of its task and a model configuration."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from seqjax import config as seqjax_config
from seqjax.config import ModelConfig
from seqjax.nn import initializers, models, seq2seq
from seqjax.types import Arrays, ModelSpec

SEQUENCE_MODEL_OPTIONS = ('input_dropout', 'output_dropout')
RECURRENT_KERNEL_OPTIONS = ('recurrent_dropout', 'drop_connect')
DECODER_OPTIONS = ('attention', 'scheduled_sampling')


def build_model(spec: ModelSpec, config: ModelConfig, inputs: Arrays | None = None) -> nn.Module:
    """Builds the model of a configuration with the inputs and outputs of a spec, and checks that it initializes.

    Args:
      spec: model spec of a task or a dataset.
      config: model configuration.
      inputs: arrays of one sequence, or their shapes, for the check; one time step by default.

    Raises:
      ValueError: the options do not fit each other or the spec; the message names the fields of `config`.

    >>> model = build_model(ModelSpec('last', outputs=2, features=3), ModelConfig(cell='gru', hidden=8))
    >>> model.init_with_output(jax.random.key(0), jnp.zeros((1, 5, 3)))[0].shape
    (1, 2)
    """
    if config.dropout and config.layers == 1:
        raise ValueError(
            f'dropout={config.dropout} does nothing with layers=1: it acts between two layers; use input_dropout or '
            'output_dropout'
        )
    if config.bidirectional and spec.causal:
        raise ValueError(
            'bidirectional=True would leak the targets, as each step predicts later inputs; use bidirectional=False'
        )
    options = _cell_options(spec, config)
    options |= {name: getattr(config, name) for name in ('layers', 'bidirectional', 'dropout')}
    options['features'] = config.hidden
    try:
        build = _build_encoder_decoder if spec.output == 'seq2seq' else _build_sequence_model
        model = build(spec, config, options)
        key, first = jax.eval_shape(lambda: (jax.random.key(0), one_step(spec)))  # nothing is compiled
        jax.eval_shape(model.init, key, first if inputs is None else inputs)
    except TypeError as error:  # the cell does not have one of the options
        raise ValueError(str(error)) from error
    return model if spec.wrap_model is None else spec.wrap_model(model)


def one_step(spec: ModelSpec) -> Arrays:
    """Returns an input of one sequence of one time step."""
    values = jnp.zeros((1, 1), jnp.int32) if spec.features is None else jnp.zeros((1, 1, spec.features))
    return (values, jnp.zeros((1, 1), jnp.int32)) if spec.output == 'seq2seq' else values


def _cell_options(spec: ModelSpec, config: ModelConfig) -> dict[str, Any]:
    """Returns the cell and its options."""
    cell, options = models.find_cell(config.cell)
    for name in RECURRENT_KERNEL_OPTIONS:
        rate = getattr(config, name)
        if rate and name not in getattr(cell, '__dataclass_fields__', ()):
            raise ValueError(f'{name}={rate} needs a recurrent kernel, which cell={config.cell} does not have')
        options |= {name: rate} if rate else {}
    if config.forget_bias_init == 'chrono' and spec.memory_span is None:
        raise ValueError('forget_bias_init=chrono needs a memory span, and this task or dataset has none')
    if config.forget_bias_init != 'default':
        span = (spec.memory_span,) if config.forget_bias_init == 'chrono' else ()
        options['bias_init'] = initializers.GATE_BIASES[config.forget_bias_init](*span)
    return {'cell': cell, **options}


def _build_sequence_model(spec: ModelSpec, config: ModelConfig, options: dict[str, Any]) -> nn.Module:
    """Returns a model with one output for a sequence, or one for each of its steps."""
    _check_unused(config, DECODER_OPTIONS, 'needs a decoder, and this task has none')
    options |= {name: getattr(config, name) for name in (*SEQUENCE_MODEL_OPTIONS, 'parallel')}
    options |= {name: getattr(spec, name) for name in ('vocabulary', 'stateful', 'head_init', 'unroll')}
    return models.sequence_model(spec.output, spec.outputs, **options)


def _build_encoder_decoder(spec: ModelSpec, config: ModelConfig, options: dict[str, Any]) -> nn.Module:
    """Returns an encoder-decoder model."""
    _check_unused(config, SEQUENCE_MODEL_OPTIONS, 'is not supported by encoder-decoder models')
    _check_unused(config, ('parallel',), 'is not supported by encoder-decoder models: a decoder runs step by step')
    options |= {name: getattr(config, name) for name in DECODER_OPTIONS}
    return seq2seq.encoder_decoder(spec.outputs, source_vocabulary=spec.vocabulary, **options)


def _check_unused(config: ModelConfig, names: tuple[str, ...], reason: str) -> None:
    """Raises ValueError if a field that this kind of model does not use is not at its default."""
    for name in (name for name in names if name in seqjax_config.changed(config)):
        raise ValueError(f'{name}={getattr(config, name)} {reason}')
