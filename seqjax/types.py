"""The types that tasks, datasets and models share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

OUTPUTS = ('last', 'per_step', 'seq2seq')


class ModelSpec(NamedTuple):
    """The inputs that a model reads and the outputs that it returns."""

    output: str  # 'last': one after the last step; 'per_step'; 'seq2seq': tokens, written by a decoder
    outputs: int  # O, numbers of an output; with 'seq2seq' the tokens of the target
    features: int | None = None  # F of inputs [B, T, F]; None for tokens
    vocabulary: int | None = None  # V of inputs that are tokens [B, T]; None for [B, T, F]
    stateful: bool = False  # windows of a stream: the carry goes on from batch to batch
    causal: bool = False  # an output at a step predicts what follows it: a model may not look there
    memory_span: int | None = None  # steps over which a cell should remember, for chrono initialisation
    wrap_model: Callable[[Any], Any] | None = None  # the usual model -> one that, for example, reads its own forecasts
