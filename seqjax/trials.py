"""Many seeds of one problem, each trained until it has reached the goal, and tested on sequences that it never saw."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from seqjax import files, report, sweep, train
from seqjax import run as host
from seqjax.problem import Goal
from seqjax.task import Arrays, Batch, Mean, State, Task

LOOKS, REACHED = 'looks.f32', 'reached.jsonl'  # of each group, beside its checkpoints
TABLE = 'looks.csv'

Test = Callable[[State, Arrays], dict[str, jax.Array]]  # of one seed, on what it has not seen -> numbers by name


class Seed(NamedTuple):
    """What became of one seed."""

    seed: int
    sequences: int | None  # trained on until the goal was reached; None where it was not
    test: Mapping[str, float]  # what the test gave: when the goal was reached, or at the end


def on_batch(task: Task, batch_size: int) -> Test:
    """The mean of each metric over a batch [N, ...], `batch_size` sequences at a time."""

    def test(state: State, batch: Batch) -> dict[str, jax.Array]:
        outputs = train.predict(task, state, batch.inputs, batch_size=batch_size)
        return {name: mean.compute() for name, mean in task.loss(outputs, batch).items()}

    return test


class Outcome(NamedTuple):
    """What became of all of them."""

    seeds: list[Seed]
    metrics: list[str]
    looks: np.ndarray  # [R, looks, metrics]: the mean over the sequences since the look before; NaN after the last
    resumed: bool = False  # whether a part of it was done before this process


class Trial(NamedTuple):
    """What all groups of seeds share."""

    plan: host.Plan
    test: Test
    unseen: Arrays  # its argument
    goal: Goal
    every: int  # steps between two looks
    batch_size: int
    to_the_end: bool  # trains all steps, whether the goal is reached or not

    def run(self, seeds: np.ndarray) -> Outcome:
        """Trains and tests every seed; what was done before a run was stopped is not done again.

        Raises:
          UserError: see `seqjax.run.Plan.leg`.
        """
        metrics = list(self.plan.programs.shapes[1])
        found, looks, resumed, count = [], [], False, len(seeds)
        with report.progress(count * self.plan.steps, 'seed-step') as show:
            for group in sweep.groups(seeds, self.plan.group):
                before = sum(seed.sequences is not None for seed in found)

                def told(taken: int, new: int, reached: int, before: int = before) -> None:
                    show(taken, new, f'{before + reached} of {count} at the goal')

                its = self._group(group, metrics, told)
                found += its.seeds
                looks.append(its.looks)
                resumed |= its.resumed
        return Outcome(found, metrics, _side_by_side(looks), resumed)

    def _group(self, group: sweep.Group, metrics: list[str], show: Callable[[int, int, int], None]) -> Outcome:
        """What became of seeds that are trained side by side."""
        place, count, steps = str(group), len(group.seeds), self.plan.steps
        journals = {name: self.plan.workdir.journal(place, name) for name in (LOOKS, REACHED)}
        test = jax.jit(self._of_one, out_shardings=self.plan.whole)
        with self.plan.leg(group.seeds, journals, place=place) as leg:
            looks = list(np.frombuffer(leg.held[LOOKS], '<f4').reshape(-1, count, len(metrics)))
            found = {seed.seed: seed for seed in _seeds(leg.held[REACHED])}
            resumed, since = leg.taken > 0, dict[str, Mean]()  # the metrics since the last look
            for part in leg.train() if self.to_the_end or len(found) < count else ():
                since = _merged(since, part.metrics)
                new = len(part.metrics['loss'].total)
                done = part.step + new
                if done % self.every == 0:
                    means, since = np.stack([_mean(since[name]) for name in metrics], -1), {}
                    looks.append(means.astype(np.float32))
                    journals[LOOKS].append(looks[-1].astype('<f4').tobytes())
                    at_goal = means[:, metrics.index(self.goal.metric)] <= self.goal.at_most  # NaN is not
                    just = [i for i in np.flatnonzero(at_goal) if int(group.seeds[i]) not in found]
                    reached = [self._tested(group, int(i), part.state, done, test) for i in just]
                    found |= {seed.seed: seed for seed in reached}
                    journals[REACHED].append(_lines(reached))
                over = len(found) == count and not self.to_the_end
                show(group.first * steps + (steps if over else done) * count, new * count, len(found))
                if over:
                    break
            for i, seed in enumerate(group.seeds.tolist()):
                if self.to_the_end or seed not in found:
                    at_end = self._tested(group, i, leg.state, None, test)
                    found[seed] = at_end._replace(sequences=found[seed].sequences if seed in found else None)
        shown = np.stack(looks, 1) if looks else np.empty((count, 0, len(metrics)), np.float32)
        return Outcome([found[seed] for seed in group.seeds.tolist()], metrics, shown, resumed)

    def _of_one(self, states: State, i: jax.Array, unseen: Arrays) -> dict[str, jax.Array]:
        return self.test(jax.tree.map(lambda x: x[i], states), unseen)

    def _tested(
        self,
        group: sweep.Group,
        i: int,
        states: State,
        steps: int | None,
        test: Callable[[State, int, Arrays], dict[str, jax.Array]],
    ) -> Seed:
        """One of a group, with what the test says of it now."""
        values = {name: float(x) for name, x in jax.device_get(test(states, i, self.unseen)).items()}
        return Seed(int(group.seeds[i]), None if steps is None else steps * self.batch_size, values)


def _mean(metric: Mean) -> np.ndarray:
    """[R]; of sums in float64, and NaN where nothing was counted."""
    with np.errstate(invalid='ignore', divide='ignore'):
        return np.asarray(metric.total, np.float64) / np.asarray(metric.count, np.float64)


def _merged(before: Mapping[str, Mean], new: Mapping[str, Mean]) -> dict[str, Mean]:
    """The sums over steps [n, R], added to those before [R]."""
    sums = {name: Mean(*(np.asarray(x, np.float64).sum(0) for x in mean)) for name, mean in new.items()}
    return {name: before[name].merge(mean) if before else mean for name, mean in sums.items()}


def _side_by_side(groups: Sequence[np.ndarray]) -> np.ndarray:
    """[n, looks, metrics] of several groups, which may have ended at different looks."""
    longest = max(x.shape[1] for x in groups)
    padded = [np.pad(x, [(0, 0), (0, longest - x.shape[1]), (0, 0)], constant_values=np.nan) for x in groups]
    return np.concatenate(padded)


# --- files -----------------------------------------------------------------------------------------


def plain(seed: Seed) -> dict[str, Any]:
    """As JSON has it, where a number that is not finite is null."""
    return seed._asdict() | {'test': {name: x if math.isfinite(x) else None for name, x in seed.test.items()}}


def seed_of(held: Mapping[str, Any]) -> Seed:
    """What `plain` gave."""
    values = {name: math.nan if x is None else float(x) for name, x in held['test'].items()}
    return Seed(int(held['seed']), None if held['sequences'] is None else int(held['sequences']), values)


def _lines(seeds: Sequence[Seed]) -> bytes:
    return ''.join(json.dumps(plain(seed)) + '\n' for seed in seeds).encode()


def _seeds(lines: bytes) -> list[Seed]:
    return [seed_of(json.loads(line)) for line in lines.decode().splitlines()]


def write_looks(folder: files.Workdir, outcome: Outcome, sequences: int) -> None:
    """looks.csv: a row for every seed and look; `sequences` are those between two looks."""

    def rows() -> Iterator[list[Any]]:
        for seed, looks in zip(outcome.seeds, outcome.looks, strict=True):
            for i, values in enumerate(looks):
                if not np.isnan(values).all():
                    yield [seed.seed, (i + 1) * sequences, *(f'{x:.9g}' for x in values)]

    files.write_table(folder, TABLE, ['seed', 'sequences', *outcome.metrics], rows())


def read_outcome(folder: files.Workdir, summary: Mapping[str, Any], sequences: int) -> Outcome:
    """What a finished run left; raises UserError where it cannot be read."""
    with folder.reading():
        seeds, metrics = [seed_of(held) for held in summary['seeds']], list(summary['metrics'])
    places, path = {seed.seed: i for i, seed in enumerate(seeds)}, folder.file(TABLE)
    with files.reading(path), files.open_file(path, 'r', newline='', encoding='utf-8') as lines:
        table = csv.reader(lines)
        if next(table, []) != ['seed', 'sequences', *metrics]:
            raise ValueError('the columns are not those of the run')
        rows = [(places[int(row[0])], int(row[1]) // sequences - 1, list(map(float, row[2:]))) for row in table]
        looks = np.full((len(seeds), max((row[1] for row in rows), default=-1) + 1, len(metrics)), np.nan, np.float32)
        for place, look, values in rows:
            looks[place, look] = values
        if np.isnan(looks).all((1, 2)).any():
            raise ValueError('a seed has no row')
    return Outcome(seeds, metrics, looks)
