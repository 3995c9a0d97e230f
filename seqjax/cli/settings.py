"""All that a run was asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from seqjax import config as seqjax_config
from seqjax.config import ModelConfig, RunConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a run was asked for: what `flags` holds flat, by what it is about."""

    flags: Mapping[str, Any]  # every flag of the command, in its order: what a run directory keeps
    model: ModelConfig
    train: TrainConfig
    run: RunConfig
    options: Mapping[str, Any]  # the other flags: those of the task or the dataset

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> Settings:
        """Every flag at its place; what there is no flag of is at the default of its class."""
        names = [{field.name for field in dataclasses.fields(config)} for config in seqjax_config.CONFIGS]
        parts = [
            config(**{name: value for name, value in flags.items() if name in known})
            for config, known in zip(seqjax_config.CONFIGS, names, strict=True)
        ]
        options = {name: value for name, value in flags.items() if not any(name in known for known in names)}
        return cls(dict(flags), *parts, options)

    def replace(self, **values: Any) -> Settings:
        """Other values of some flags."""
        return Settings.of({**self.flags, **values})
