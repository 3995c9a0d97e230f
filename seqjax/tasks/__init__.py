"""Synthetic tasks, one module per family of tasks."""

from typing import TYPE_CHECKING

from seqjax import lazy

if TYPE_CHECKING:
    from seqjax.tasks import adding, addition, copy_memory, counting, echo, recall, regular, reorder, td, temporal_order
    from seqjax.tasks.synthetic import Examples, SuccessCriterion, SyntheticTask, task_defaults
else:
    __getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
