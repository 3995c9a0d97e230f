"""Published results, run again: what a paper reports beside what comes out here, over seeds, with 95% intervals.

    python -m experiments.claims                        # all of them; ./run.sh claims does the same
    python -m experiments.claims --only=parity,anbn
    python -m experiments.claims --quick                # small versions, in minutes

A claim is a flagfile of experiments/flags/ whose header says `Claim`, `Published`, `Measure` and `Quick`, beside the
command that runs it. One that was stopped goes on where it was, and one that is finished is not run again.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seqjax import files
from seqjax.cli import command as cli_command
from seqjax.cli import command_line, flag_tables, lengths, parsers, registry
from seqjax.cli.command import Command
from seqjax.cli.flag_tables import Flag, FlagTable
from seqjax.cli.parsers import Many, Name, Switch
from seqjax.errors import UserError
from seqjax.reporting import text_tables
from seqjax.runs import directory, result_files
from seqjax.tasks import synthetic
from seqjax.training import success_results
from seqjax.training.success_results import SeedResult

NAME, TABLE, TEXT = 'claims', 'claims.csv', 'claims.md'
FIELDS = ('Claim', 'Published', 'Measure', 'Quick')
FLAGS = {
    'only': Flag(Many(Name()), 'the claims that are run, by the names of their flagfiles; all of them by default'),
    'quick': Flag(Switch(), 'small versions, which take minutes and prove less'),
    'workdir': flag_tables.SHARED['workdir'],
    'overwrite': flag_tables.SHARED['overwrite'],
}


class Claim(NamedTuple):
    """What a flagfile says of itself."""

    name: str
    module: str  # that runs it
    claim: str  # source and setting
    published: str
    measure: str
    quick: list[str]  # flags that make it small


class ClaimRow(NamedTuple):
    """A line of the table."""

    claim: str
    published: str
    ours: str  # mean and 95% interval over seeds
    at_goal: str  # seeds
    sequences: str  # that a seed was trained on
    minutes: str
    device: str
    flagfile: str


# --- the flagfiles ---------------------------------------------------------------------------------


def read(path: Path) -> Claim | None:
    """The claim of a flagfile; None where it makes none.

    Raises:
      UserError: a part of it is missing.
    """
    lines = [line[1:] for line in path.read_text(encoding='utf-8').splitlines() if line.startswith('#')]
    fields: dict[str, str] = {}
    for line in lines:
        found = re.match(r' ([A-Z][a-z]+): +(.*)', line)
        if found:
            fields[found[1]] = found[2]
        elif fields and line.startswith('           '):
            fields[next(reversed(fields))] += ' ' + line.strip()
    if 'Claim' not in fields:
        return None
    missing = [name for name in (*FIELDS, 'Command') if name not in fields]
    if missing or fields['Measure'] not in MEASURES:
        what = f'has no line {missing[0]}' if missing else f'has Measure {fields["Measure"]}, none of {list(MEASURES)}'
        raise UserError(f'{path} {what}')
    module = re.match(r'(?:python -m experiments\.|seqjax )(\w+) ', fields['Command'])[1]
    return Claim(path.stem, module, *(fields[name] for name in FIELDS[:3]), shlex.split(fields['Quick']))


def all_claims() -> dict[str, Claim]:
    found = [read(path) for path in sorted(command_line.flagfile_folder().glob('*.flags'))]
    return {claim.name: claim for claim in found if claim is not None}


# --- what came out ---------------------------------------------------------------------------------


def _sequences(seeds: Sequence[SeedResult]) -> str:
    needed = np.array([seed.sequences for seed in seeds if seed.sequences is not None], float)
    wrong = np.mean([seed.test[synthetic.WRONG] for seed in seeds])
    if not len(needed):
        return f'no seed; {wrong:.2%} wrong'
    return f'{text_tables.format_interval(needed, ",.0f", ",.0f")} sequences; {wrong:.2%} wrong'


def _loss(seeds: Sequence[SeedResult]) -> str:
    return f'loss {text_tables.format_interval(np.array([seed.test["loss"] for seed in seeds]))}'


def _excess(seeds: Sequence[SeedResult]) -> str:
    """How far above the floor, in its own measure: the loss less the excess is what the law itself has there."""
    over = [seed.test['excess'] / (seed.test['loss'] - seed.test['excess']) for seed in seeds]
    return f'{text_tables.format_interval(np.array(over), ".2%", ".2%")} above the floor'


def _exact(seeds: Sequence[SeedResult]) -> str:
    right = 1 - np.array([seed.test[synthetic.WRONG] for seed in seeds])
    return f'{text_tables.format_interval(right, ".2%", ".2%")} right'


def _lengths(seeds: Sequence[SeedResult]) -> str:
    """Over all lengths that were tested beyond those trained on, see `seqjax.cli.lengths`."""
    _, right = lengths.curves(seeds, lengths.BEYOND)
    mean, solved = text_tables.format_interval(right.mean(1), '.1%', '.1%'), lengths.count_solved(right)
    return f'mean {mean}, best {right.mean(1).max():.1%}; {solved} of {len(seeds)} at {lengths.SOLVED:.0%}'


MEASURES: dict[str, Callable[[Sequence[SeedResult]], str]] = {
    'sequences': _sequences,
    'loss': _loss,
    'excess': _excess,
    'exact': _exact,
    'lengths': _lengths,
}


def row_of(claim: Claim, summary: Mapping[str, Any]) -> ClaimRow:
    """A line of the table, from what a finished run left."""
    seeds, flags = [success_results.from_json(held) for held in summary['seeds']], summary['flags']
    reached = sum(seed.sequences is not None for seed in seeds)
    most = flags['steps'] * flags['batch_size']
    seconds = summary['seconds']
    return ClaimRow(
        claim=claim.claim,
        published=claim.published,
        ours=MEASURES[claim.measure](seeds),
        at_goal=f'{reached} of {len(seeds)}',
        sequences=f'at most {most:,}' if claim.measure == 'sequences' else f'{most:,}',
        minutes='interrupted' if seconds is None else f'{seconds / 60:.1f}',
        device=summary['device'],
        flagfile=claim.name,
    )


def markdown(rows: Sequence[ClaimRow]) -> Iterator[str]:
    """The table, as README.md holds it."""
    yield '| claim | published | ours, mean over seeds ± 95% | seeds at the goal | sequences | minutes | device |'
    yield '|---|---|---|---|---|---|---|'
    for row in rows:
        yield '| ' + ' | '.join((f'{row.claim} (`{row.flagfile}`)', *row[1:-1])) + ' |'


# --- the command -----------------------------------------------------------------------------------


def run(
    *, only: list[str] | None = None, quick: bool = False, workdir: str | None = None, overwrite: bool = False
) -> list[ClaimRow]:
    """Runs published results again, and prints what came out beside what was published.

    Without `workdir` they are kept in runs/claims.

    Raises:
      UserError (a ValueError): there is no such claim, or a run of one is refused.
    """
    defaults = cli_command.default_values(run)
    settings = flag_tables.check(FLAGS, locals(), defaults)
    claims = all_claims()
    for name in settings['only'] or ():
        if name not in claims:
            raise UserError(f'--only={name} is no claim; there are {", ".join(claims)}{parsers.nearest(name, claims)}')
    wanted, place = settings.pop('only') or list(claims), settings['workdir'] or default_folder(quick)
    settings |= {'workdir': place}  # which of them are run may differ from call to call
    with directory.open_workdir(settings, NAME, names=(directory.SUMMARY, TABLE, TEXT)) as (folder, _):
        folder.write_summary({'experiment': NAME, 'finished': True, 'flags': settings})
        rows = []
        for name in wanted:
            print(f'\n--- {name}: {claims[name].claim} ---\n', flush=True)
            rows.append(row_of(claims[name], _run_one(claims[name], folder.path / name, settings)))
        text = '\n'.join(markdown(rows)) + '\n'
        folder.write(TEXT, lambda path: path.write_text(text, encoding='utf-8'))
        result_files.write_table(folder, TABLE, ClaimRow._fields, rows)
        print(f'\n{text}\n{folder.listing()}')
    return rows


def default_folder(quick: bool) -> str:
    return os.path.join('runs', NAME + ('_quick' if quick else ''))


def _run_one(claim: Claim, folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of a claim's run."""
    argv = [f'--flagfile={command_line.flagfile_folder() / claim.name}.flags', f'--workdir={folder}']
    argv += [*claim.quick] if settings['quick'] else []
    argv += ['--overwrite'] if settings['overwrite'] else []
    command = registry.find(claim.module)
    command.run(**command.parse(argv))
    with files.reading(folder / directory.SUMMARY):
        return json.loads((folder / directory.SUMMARY).read_text(encoding='utf-8'))


COMMAND = Command('claims', __doc__, run, FlagTable(FLAGS, cli_command.default_values(run)))
main = COMMAND.main


if __name__ == '__main__':
    COMMAND.execute()
