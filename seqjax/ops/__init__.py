"""Array functions without Flax: LSTM and GRU with custom backward passes, masks, sharding, batches of long series."""

from typing import TYPE_CHECKING

from seqjax import lazy

if TYPE_CHECKING:
    from seqjax.ops import gru, linear_map, lstm, masking, row_sharding, windows
else:
    __getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
