"""Many seeds of one task, each trained until what the task watches improves no more; the best State of each is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from seqjax import checkpoint, files, report, sweep, train
from seqjax import run as host
from seqjax.files import UserError
from seqjax.task import Best, Mean

LOOKS = 'looks.f32'  # of each group, beside its checkpoints
TABLE, MODELS = 'looks.csv', 'models.npz'


class Fit(NamedTuple):
    """What became of the seeds [R]."""

    seeds: np.ndarray  # [R]
    metrics: list[str]  # of the looks: those of training since the look before, and of the splits
    looks: np.ndarray  # [R, looks, metrics]; NaN where a seed was not looked at any more
    best: Best  # leaves [R, ...], on the host
    resumed: bool = False  # whether a part of it was done before this process

    def chosen(self) -> int:
        """The place of the seed that is best on validation."""
        return int(np.argmin(self.best.value))


def of_seed(best: Best, place: int) -> Best:
    """Of one seed, out of [R]."""
    return jax.tree.map(lambda x: x[place], best)


def fit(plan: host.Plan, seeds: np.ndarray) -> Fit:
    """Trains every seed [R] of a task with a `watch`; what was done before a run was stopped is not done again.

    Raises:
      UserError: see `seqjax.run.Plan.leg`; or no seed had a finite value at any look.
    """
    found, count = [], len(seeds)
    with report.progress(count * plan.steps, 'seed-step') as show:
        for group in sweep.groups(seeds, plan.group):
            found.append(_group(plan, group, count, show))
    longest = max(one.looks.shape[1] for one in found)
    looks = [_longer(one.looks, longest) for one in found]
    best = jax.tree.map(lambda *parts: np.concatenate(parts), *[one.best for one in found])
    if not np.isfinite(best.value).any():
        watch = plan.task.watch
        raise UserError(
            f'{watch.split} {watch.metric} was never a finite number, for any of {count} seeds: try a smaller '
            '--learning_rate, or --clip_norm=1'
        )
    return Fit(seeds, found[0].metrics, np.concatenate(looks), best, any(one.resumed for one in found))


def typical_step(found: Fit, every: int) -> int:
    """The look, as a step, that was best for the median seed."""
    return every * max(1, round(float(np.median(found.best.step[np.isfinite(found.best.value)])) / every))


def refit(plan: host.Plan, found: Fit) -> Fit:
    """The same seeds, trained anew for all steps of a plan whose data have the validation part in it, too.

    How many steps there are was learned with that part held out (Goodfellow, Bengio and Courville 2016, algorithm 7.2).

    Raises:
      UserError: see `seqjax.run.Leg.train`.
    """
    count, states = len(found.seeds), []
    with report.progress(count * plan.steps, 'seed-step again') as show:
        for group in sweep.groups(found.seeds, plan.group):
            # By its steps, too: a run that is asked for more may find that another number of them is best.
            with plan.leg(group.seeds, {}, place=f'refit_{plan.steps}_{group}') as leg:
                for part in leg.train():
                    new = len(part.metrics['loss'].total)
                    done = group.first * plan.steps + (part.step + new) * len(group.seeds)
                    show(done, new * len(group.seeds), f'loss {_median(_values(part)[:, 0]):.4g}')
                state = plan.kept(leg.state, len(group.seeds))
                states.append(_on_host(plan, (state.params, state.variables)))
    params, variables = jax.tree.map(lambda *parts: np.concatenate(parts), *states)
    variables = {name: x for name, x in variables.items() if name != train.CARRY}
    best = Best(found.best.value, np.full(count, plan.steps, np.int32), params, variables)
    return found._replace(best=best, resumed=found.resumed)


def _on_host(plan: host.Plan, tree: Any) -> Any:
    """Arrays that may lie on the devices of several processes."""
    return jax.device_get(jax.jit(lambda x: x, out_shardings=plan.whole)(tree))


def _longer(looks: np.ndarray, count: int) -> np.ndarray:
    return np.pad(looks, [(0, 0), (0, count - looks.shape[1]), (0, 0)], constant_values=np.nan)


def _group(plan: host.Plan, group: sweep.Group, seeds: int, show: Callable[[int, int, str], None]) -> Fit:
    """Seeds that are trained side by side, until the last of them has no patience left."""
    count, steps, watch = len(group.seeds), plan.steps, plan.task.watch
    metrics, journal = host.metric_names(plan.programs), plan.workdir.journal(str(group), LOOKS)
    see = jax.jit(lambda state: (train.over(watch, state), state.best.value), out_shardings=plan.whole)
    with plan.leg(group.seeds, {LOOKS: journal}, place=str(group)) as leg:
        looks = list(np.frombuffer(leg.held[LOOKS], '<f4').reshape(-1, count, len(metrics)))
        resumed, over = leg.taken > 0, np.asarray(see(leg.state)[0])[:count]
        for part in leg.train() if not over.all() else ():
            values = _values(part)
            values[over] = np.nan  # others went on beside it
            looks.append(values)
            journal.append(values.astype('<f4').tobytes())
            over, best = (np.asarray(x)[:count] for x in see(part.state))
            new = len(part.metrics['loss'].total)
            done = steps if over.all() else part.step + new
            words = f'best {watch.split} {watch.metric} {_median(best):.4g}'
            show(group.first * steps + done * count, new * count, words)
            if over.all():
                break
        best = _on_host(plan, plan.kept(leg.state, count).best)
    shown = np.stack(looks, 1) if looks else np.empty((count, 0, len(metrics)), np.float32)
    return Fit(group.seeds, metrics, shown, best, resumed)


def _values(part: host.Part) -> np.ndarray:
    """[R, metrics]: the means of training since the look before, and those of the splits."""
    trained = [host.divide(Mean(*(np.sum(x, 0, np.float64) for x in mean))) for mean in part.metrics.values()]
    looked = [host.divide(mean) for found in part.evals.values() for mean in found.values()]
    return np.stack([*trained, *looked], -1)


def _median(values: np.ndarray) -> float:
    """Of those that are finite."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else float('nan')


# --- files -----------------------------------------------------------------------------------------


def write_looks(folder: files.Workdir, found: Fit, every: int) -> None:
    """looks.csv: a row for every seed and look."""

    def rows() -> Iterator[list[Any]]:
        for seed, looks in zip(found.seeds, found.looks, strict=True):
            for i, values in enumerate(looks):
                if not np.isnan(values).all():
                    yield [seed, (i + 1) * every, *(f'{x:.9g}' for x in values)]

    files.write_table(folder, TABLE, ['seed', 'step', *found.metrics], rows())


def write_models(folder: files.Workdir, found: Fit) -> None:
    """models.npz: the best parameters and variables of every seed, leaves [R, ...] by name, and the seeds."""
    arrays = checkpoint.named({'params': found.best.params, 'variables': found.best.variables})
    files.write_arrays(folder, MODELS, seeds=found.seeds, value=found.best.value, step=found.best.step, **arrays)


def read_models(path: Path, like: Mapping[str, Any], count: int | None = None) -> tuple[np.ndarray, Best]:
    """What `write_models` left.

    Args:
      path: the file.
      like: shapes and dtypes of the model's variables, as `model.init` gives them.
      count: how many seeds there must be; None for any number.

    Returns:
      The seeds [R], and the best of each, leaves [R, ...].

    Raises:
      UserError: it cannot be read, or is of another model.
    """
    params, variables = like['params'], {name: x for name, x in like.items() if name not in ('params', train.CARRY)}
    shapes = {'params': params, 'variables': variables}
    seeds = files.read_arrays(path, {'seeds': ((count,), np.int64)})['seeds']
    leaves = checkpoint.named(shapes)
    own = {'seeds': ((len(seeds),), np.int64), 'value': ((len(seeds),), np.float32), 'step': ((len(seeds),), np.int32)}
    expected = own | {name: ((len(seeds), *leaf.shape), leaf.dtype) for name, leaf in leaves.items()}
    held = files.read_arrays(path, expected, others=False)
    learned = jax.tree.unflatten(jax.tree.structure(shapes), [held[name] for name in leaves])
    return seeds, Best(held['value'], held['step'], **learned)
