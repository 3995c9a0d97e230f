"""Statistics over seeds, comparisons with baselines, text tables and figures."""

from typing import TYPE_CHECKING

from seqjax import lazy

if TYPE_CHECKING:
    from seqjax.reporting import plots, statistics, text_tables
    from seqjax.reporting.significance import Improvement
else:
    __getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
