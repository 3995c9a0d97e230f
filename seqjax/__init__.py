"""seqjax: recurrent sequence learning in JAX, as pure functions and Flax Linen modules.

Axes, wherever a shape stands in a comment:

    B batch   T time   F features   H hidden units   O outputs   V vocabulary   R replicas (seeds)   N batches

`docs/architecture.md` describes the packages and which may import which.
"""

from typing import TYPE_CHECKING

from seqjax import lazy

if TYPE_CHECKING:
    from seqjax import cli, config, datasets, errors, nn, ops, reporting, runs, tasks, training, types
    from seqjax.config import ModelConfig, RunConfig, TrainConfig
    from seqjax.errors import UserError
    from seqjax.types import Batch, Mean, ModelSpec, Sequences, Task
else:
    __getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)

__version__ = '0.1.0'
