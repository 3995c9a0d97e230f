"""The experiment that every kind of data has: a file is read, looked at, learned from, and compared with baselines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.launch import Flag
from seqjax.dataset import Dataset, Form, Stream, Unseen


class Kind:
    """A kind of data, of which a module of this folder makes its experiment: KIND = Classify().

    All methods but `__init__` raise UserError where a file or a setting is wrong. `settings` has every flag;
    `recipe` is what `dataset` left for predictions.
    """

    name: str  # of the module, and of the folder in runs/
    about: str  # the first line of --help
    OWN: Mapping[str, Flag]  # its own flags, beside those that every kind has
    own_defaults: Mapping[str, Any]  # theirs; and of other flags, where those of this kind differ

    def dataset(self, settings: Mapping[str, Any]) -> Dataset:
        """Reads --data, and splits it."""
        raise NotImplementedError

    def form(self, settings: Mapping[str, Any], recipe: Mapping[str, Any]) -> Form:
        """Of the models of a run, as its recipe has it; that of `dataset`."""
        raise NotImplementedError

    def unseen(self, settings: Mapping[str, Any], recipe: Mapping[str, Any], path: str) -> Unseen:
        """A file to predict, through the same preprocessing; refuses unknown labels and other columns by name."""
        raise NotImplementedError

    def stream(self, settings: Mapping[str, Any], recipe: Mapping[str, Any]) -> Stream:
        """Observations from --stdin."""
        raise NotImplementedError
