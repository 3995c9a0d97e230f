"""Settings of a run: its flags, grouped into configurations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from seqjax import config as seqjax_config
from seqjax.config import ModelConfig, RunConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a run: all flags in `flags`, and the same values grouped by configuration."""

    flags: Mapping[str, Any]  # all flags of the command, in order; stored in the run directory
    model: ModelConfig
    train: TrainConfig
    run: RunConfig
    options: Mapping[str, Any]  # flags that are in none of these configurations, such as flags of the task or dataset

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> Settings:
        """Returns the settings for the given flags; configuration fields without a flag keep their defaults."""
        names = [{field.name for field in dataclasses.fields(config)} for config in seqjax_config.CONFIGS]
        configs = [
            config(**{name: value for name, value in flags.items() if name in fields})
            for config, fields in zip(seqjax_config.CONFIGS, names, strict=True)
        ]
        options = {name: value for name, value in flags.items() if not any(name in fields for fields in names)}
        return cls(dict(flags), *configs, options)

    def replace(self, **values: Any) -> Settings:
        """Returns a copy in which the flags named in `values` have these values."""
        return Settings.of({**self.flags, **values})
