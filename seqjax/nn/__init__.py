"""Flax Linen cells, recurrent layers, attention and models; also losses, initializers, activations and decoding."""

from typing import TYPE_CHECKING

from seqjax import lazy

if TYPE_CHECKING:
    from seqjax.nn import activations, decoding, initializers, losses
    from seqjax.nn.attention import AdditiveAttention, DotAttention
    from seqjax.nn.build import build_model
    from seqjax.nn.cells.cell import Cell, RecurrentCell
    from seqjax.nn.cells.gru_cell import GRUCell
    from seqjax.nn.cells.linear_cells import LinearCell, LRUCell, MinGRUCell, MinLSTMCell, RGLRUCell
    from seqjax.nn.cells.lstm_cell import LSTMCell
    from seqjax.nn.cells.simple_cell import SimpleRNNCell
    from seqjax.nn.models import SequenceToSequence, SequenceToVector, find_cell, sequence_model
    from seqjax.nn.rnn import RNN
    from seqjax.nn.seq2seq import EncoderDecoder, encoder_decoder
    from seqjax.nn.wrappers import Bidirectional, Stack, Stateful, TimeDistributed
else:
    __getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
