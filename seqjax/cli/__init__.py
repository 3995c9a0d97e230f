"""Commands, a module each, and what they share; the only place that knows flags."""

from typing import TYPE_CHECKING

from seqjax import lazy

if TYPE_CHECKING:
    from seqjax.cli.command import Command
else:
    __getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
