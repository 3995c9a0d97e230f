"""The command-line interface: a module for each command, and their shared flags and parsers."""

from typing import TYPE_CHECKING

from seqjax import lazy

if TYPE_CHECKING:
    from seqjax.cli.command import Command
else:
    __getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
