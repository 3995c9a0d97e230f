"""Training of a model on a task with an optimizer, for one seed or many: compilation, sessions, observers, results."""

from typing import TYPE_CHECKING

from seqjax import lazy

if TYPE_CHECKING:
    from seqjax.training.chunk_result import ChunkResult
    from seqjax.training.compilation import compile_run
    from seqjax.training.compiled_run import CompiledRun, StateOverride
    from seqjax.training.evaluation import apply, eval_step, evaluate, evaluate_batches, initial_eval_carry, predict
    from seqjax.training.observers import Observer
    from seqjax.training.optimizers import adam, make_optimizer
    from seqjax.training.programs import CompiledPrograms, compile_programs, make_train_chunk, train
    from seqjax.training.replicas import ReplicaGroup
    from seqjax.training.seeds import (
        retrain,
        train_seeds,
        train_until_solved,
        train_with_early_stopping,
        train_with_losses,
    )
    from seqjax.training.session import CheckpointConfig, TrainSession
    from seqjax.training.sharding import MeshShardings, data_parallel_pays, select_mesh
    from seqjax.training.step import gradients, init_state, should_stop, train_step
else:
    __getattr__, __dir__, __all__ = lazy.attach(__name__, __file__)
