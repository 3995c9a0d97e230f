"""Construction of a model from the model spec of a task or dataset and a model configuration."""

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
    """Builds the Flax module of a model configuration, and checks by tracing that `init` accepts its inputs.

    Args:
      spec: model spec of a task or a dataset: inputs and outputs of the model.
      config: model configuration.
      inputs: model inputs, or their shapes and dtypes, for that check; by default one sequence of one time step.

    Returns:
      The module, without parameters; if the spec has `wrap_model`, its result for the module, which is not checked.

    Raises:
      ValueError: options of `config` are incompatible with each other or with the spec; the message names them.

    >>> model = build_model(ModelSpec('last', outputs=2, features=3), ModelConfig(cell='gru', hidden=8))
    >>> model.init_with_output(jax.random.key(0), jnp.zeros((1, 5, 3)))[0].shape
    (1, 2)
    """
    if config.dropout and config.layers == 1:
        raise ValueError(
            f'dropout={config.dropout} has no effect with layers=1, as it acts between layers; use layers=2 or more, '
            'or remove it'
        )
    if config.bidirectional and spec.causal:
        raise ValueError(
            'bidirectional=True would leak the targets: this task or dataset predicts later inputs, which the backward '
            'direction reads; use bidirectional=False'
        )
    options = _cell_options(spec, config)
    options |= {name: getattr(config, name) for name in ('layers', 'bidirectional', 'dropout')}
    options['features'] = config.hidden
    try:
        build = _build_encoder_decoder if spec.output == 'seq2seq' else _build_sequence_model
        model = build(spec, config, options)
        key, first = jax.eval_shape(lambda: (jax.random.key(0), one_step(spec)))  # nothing is compiled
        jax.eval_shape(model.init, key, first if inputs is None else inputs)
    except TypeError as error:  # the cell has no such option
        raise ValueError(str(error)) from error
    return model if spec.wrap_model is None else spec.wrap_model(model)


def one_step(spec: ModelSpec) -> Arrays:
    """Returns a model input of one sequence of one time step, all 0; with 'seq2seq' a pair (source, targets)."""
    values = jnp.zeros((1, 1), jnp.int32) if spec.features is None else jnp.zeros((1, 1, spec.features))
    return (values, jnp.zeros((1, 1), jnp.int32)) if spec.output == 'seq2seq' else values


def _cell_options(spec: ModelSpec, config: ModelConfig) -> dict[str, Any]:
    """Returns the cell class ('cell') and its options, from the fields of `config`, as arguments of a model builder."""
    cell, options = models.find_cell(config.cell)
    for name in RECURRENT_KERNEL_OPTIONS:
        rate = getattr(config, name)
        if rate and name not in getattr(cell, '__dataclass_fields__', ()):
            raise ValueError(
                f'{name}={rate} is not an option of cell={config.cell}; use {name}=0, or a cell with a recurrent '
                'kernel, such as cell=lstm'
            )
        options |= {name: rate} if rate else {}
    if config.forget_bias_init == 'chrono' and spec.memory_span is None:
        raise ValueError(
            'forget_bias_init=chrono needs a memory span, and this task or dataset has none; use '
            'forget_bias_init=constant, uniform or default'
        )
    if config.forget_bias_init != 'default':
        span = (spec.memory_span,) if config.forget_bias_init == 'chrono' else ()
        options['bias_init'] = initializers.GATE_BIASES[config.forget_bias_init](*span)
    return {'cell': cell, **options}


def _build_sequence_model(spec: ModelSpec, config: ModelConfig, options: dict[str, Any]) -> nn.Module:
    """Builds a sequence model; raises ValueError if an option of decoders is not at its default."""
    _check_unused(config, DECODER_OPTIONS, 'needs an encoder-decoder model, which this task has not; remove it')
    options |= {name: getattr(config, name) for name in (*SEQUENCE_MODEL_OPTIONS, 'parallel')}
    options |= {name: getattr(spec, name) for name in ('vocabulary', 'stateful', 'head_init', 'unroll')}
    return models.sequence_model(spec.output, spec.outputs, **options)


def _build_encoder_decoder(spec: ModelSpec, config: ModelConfig, options: dict[str, Any]) -> nn.Module:
    """Builds an encoder-decoder model; raises ValueError if an option of sequence models is not at its default."""
    _check_unused(config, SEQUENCE_MODEL_OPTIONS, 'is not supported by encoder-decoder models; remove it')
    _check_unused(config, ('parallel',), 'is not supported by encoder-decoder models; remove it')
    options |= {name: getattr(config, name) for name in DECODER_OPTIONS}
    return seq2seq.encoder_decoder(spec.outputs, source_vocabulary=spec.vocabulary, **options)


def _check_unused(config: ModelConfig, names: tuple[str, ...], reason: str) -> None:
    """Raises ValueError for the first of the fields `names` that is not at its default: 'name=value' and the reason."""
    for name in (name for name in names if name in seqjax_config.changed(config)):
        raise ValueError(f'{name}={getattr(config, name)} {reason}')
