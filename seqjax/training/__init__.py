"""Training: from a model, a task and an optimiser to the results of many seeds. Names are loaded when they are used."""

from __future__ import annotations

import importlib
from typing import Any

_MODULE_OF = {
    'init_state': 'step',
    'train_step': 'step',
    'gradients': 'step',
    'apply': 'evaluation',
    'predict': 'evaluation',
    'evaluate': 'evaluation',
    'evaluate_batches': 'evaluation',
    'eval_step': 'evaluation',
    'initial_eval_carry': 'evaluation',
    'should_stop': 'early_stopping',
    'train': 'loop',
    'make_train_chunk': 'programs',
    'compile_programs': 'programs',
    'CompiledPrograms': 'programs',
    'ReplicaGroup': 'replicas',
    'MeshShardings': 'sharding',
    'select_mesh': 'sharding',
    'data_parallel_pays': 'sharding',
    'compile_run': 'compile',
    'CompiledRun': 'run',
    'StateOverride': 'run',
    'TrainSession': 'session',
    'CheckpointConfig': 'session',
    'ChunkResult': 'chunk_result',
    'train_seeds': 'driver',
    'Observer': 'observers',
    'train_with_losses': 'seeds',
    'train_with_early_stopping': 'seeds',
    'retrain': 'seeds',
    'train_until_solved': 'seeds',
}
__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{_MODULE_OF[name]}'), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
