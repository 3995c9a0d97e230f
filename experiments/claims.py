"""Reproduce published results, with 95% confidence intervals over seeds.

    python -m experiments.claims                        # all of them; ./run.sh claims does the same
    python -m experiments.claims --names=parity,anbn
    python -m experiments.claims --quick                # small versions, in minutes

A claim is a flagfile of experiments/flags/ whose header has the lines `Claim`, `Published`, `Measure`, `Quick` and
`Command`. A run that was stopped is resumed, and a finished run is not repeated.
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

from seqjax import files, options
from seqjax.cli import command as cli_command
from seqjax.cli import command_line, flag_tables, lengths, registry
from seqjax.cli.command import Command
from seqjax.cli.flag_tables import Flag, FlagTable
from seqjax.cli.parsers import BoolParser, ListParser, NameParser, PathParser
from seqjax.errors import UserError
from seqjax.reporting import text_tables
from seqjax.runs import directory, result_files
from seqjax.tasks import synthetic
from seqjax.training import success_results
from seqjax.training.success_results import SeedResult

NAME, TABLE, TEXT = 'claims', 'claims.csv', 'claims.md'
FIELDS = ('Claim', 'Published', 'Measure', 'Quick')
FLAGS = {
    'names': Flag(ListParser(NameParser()), 'names of the flagfiles of the claims to run; all claims by default'),
    'quick': Flag(BoolParser(), 'run the small version of each claim (`Quick` in its header), in minutes'),
    'workdir': flag_tables.SHARED['workdir'],
    'overwrite': flag_tables.SHARED['overwrite'],
    'page': Flag(
        PathParser('file'),
        'Markdown page whose table of claims is replaced, such as docs/results.md; needs all claims, without --quick',
    ),
}


class Claim(NamedTuple):
    """Header of a flagfile with a published result."""

    name: str  # name of the flagfile, without .flags
    module: str  # command that runs the claim, such as adding
    claim: str  # source and setting
    published: str  # published result
    measure: str  # key of MEASURES
    quick: list[str]  # flags of the small version


class ClaimRow(NamedTuple):
    """A row of the table of claims."""

    claim: str
    published: str
    ours: str  # mean and 95% confidence interval over seeds
    successful_seeds: str  # number of seeds that met the success criterion
    sequences: str  # maximal number of training sequences of a seed
    minutes: str  # time of the run; `interrupted` if it was resumed
    device: str
    flagfile: str


# --- flagfiles -------------------------------------------------------------------------------------


def read(path: Path) -> Claim | None:
    """Returns the claim in the header of a flagfile, or None if the header has no line `Claim`.

    Raises:
      UserError: a line of the header is missing or invalid.
    """
    lines = [line[1:] for line in path.read_text(encoding='utf-8').splitlines() if line.startswith('#')]
    fields: dict[str, str] = {}
    for line in lines:
        match = re.match(r' ([A-Z][a-z]+): +(.*)', line)
        if match:
            fields[match[1]] = match[2]
        elif fields and line.startswith('           '):
            fields[next(reversed(fields))] += ' ' + line.strip()
    if 'Claim' not in fields:
        return None
    missing = [name for name in (*FIELDS, 'Command') if name not in fields]
    if missing:
        raise UserError(f'{path} has no line `# {missing[0]}:` in its header; add it')
    if fields['Measure'] not in MEASURES:
        raise UserError(f'{path} has `Measure: {fields["Measure"]}` in its header; use one of {", ".join(MEASURES)}')
    command = re.match(r'(?:python -m experiments\.|seqjax )(\w+) ', fields['Command'])
    if command is None:
        raise UserError(
            f'{path} has `Command: {fields["Command"]}` in its header; use `python -m experiments.NAME` or '
            '`seqjax NAME`, followed by flags'
        )
    try:
        quick = shlex.split(fields['Quick'])
    except ValueError as error:
        raise UserError(f'{path} has `Quick: {fields["Quick"]}` in its header; correct its quotes ({error})') from error
    return Claim(path.stem, command[1], *(fields[name] for name in FIELDS[:3]), quick)


def all_claims() -> dict[str, Claim]:
    """Returns the claims of all flagfiles by name."""
    claims = [read(path) for path in sorted(command_line.flagfile_folder().glob('*.flags'))]
    return {claim.name: claim for claim in claims if claim is not None}


# --- results ---------------------------------------------------------------------------------------


def _sequences(seeds: Sequence[SeedResult]) -> str:
    needed = np.array([seed.sequences for seed in seeds if seed.sequences is not None], float)
    wrong = np.mean([seed.test[synthetic.WRONG] for seed in seeds])
    if not len(needed):
        return f'no seed; {wrong:.2%} wrong'
    return f'{text_tables.format_interval(needed, ",.0f", ",.0f")} sequences; {wrong:.2%} wrong'


def _loss(seeds: Sequence[SeedResult]) -> str:
    return f'loss {text_tables.format_interval(np.array([seed.test["loss"] for seed in seeds]))}'


def _excess(seeds: Sequence[SeedResult]) -> str:
    """Returns text with the mean of excess loss / entropy floor, where the floor is loss - excess loss."""
    ratios = [seed.test['excess'] / (seed.test['loss'] - seed.test['excess']) for seed in seeds]
    return f'{text_tables.format_interval(np.array(ratios), ".2%", ".2%")} above the floor'


def _exact(seeds: Sequence[SeedResult]) -> str:
    accuracies = 1 - np.array([seed.test[synthetic.WRONG] for seed in seeds])
    return f'{text_tables.format_interval(accuracies, ".2%", ".2%")} correct'


def _lengths(seeds: Sequence[SeedResult]) -> str:
    """Returns text with the mean and best accuracy at all lengths beyond training, see `seqjax.cli.lengths`."""
    _, accuracies = lengths.curves(seeds, lengths.BEYOND)
    mean, solved = text_tables.format_interval(accuracies.mean(1), '.1%', '.1%'), lengths.count_solved(accuracies)
    return f'mean {mean}, best {accuracies.mean(1).max():.1%}; {solved} of {len(seeds)} at {lengths.SOLVED:.0%}'


MEASURES: dict[str, Callable[[Sequence[SeedResult]], str]] = {
    'sequences': _sequences,
    'loss': _loss,
    'excess': _excess,
    'exact': _exact,
    'lengths': _lengths,
}


def row_of(claim: Claim, summary: Mapping[str, Any]) -> ClaimRow:
    """Returns the row of the table for a claim, from the summary of its finished run."""
    seeds, flags = [success_results.from_json(entry) for entry in summary['seeds']], summary['flags']
    successful = sum(seed.sequences is not None for seed in seeds)
    max_sequences = flags['steps'] * flags['batch_size']
    seconds = summary['seconds']
    return ClaimRow(
        claim=claim.claim,
        published=claim.published,
        ours=MEASURES[claim.measure](seeds),
        successful_seeds=f'{successful} of {len(seeds)}',
        sequences=f'at most {max_sequences:,}' if claim.measure == 'sequences' else f'{max_sequences:,}',
        minutes='interrupted' if seconds is None else f'{seconds / 60:.1f}',
        device=summary['device'],
        flagfile=claim.name,
    )


def markdown(rows: Sequence[ClaimRow]) -> Iterator[str]:
    """Yields the lines of a Markdown table with a row for each claim, as in docs/results.md."""
    yield '| claim | published | seqjax, mean over seeds ± 95% CI | successful seeds | sequences | minutes | device |'
    yield '|---|---|---|---|---|---|---|'
    for row in rows:
        yield '| ' + ' | '.join((f'{row.claim} (`{row.flagfile}`)', *row[1:-1])) + ' |'


# --- the command -----------------------------------------------------------------------------------


def run(
    *,
    names: list[str] | None = None,
    quick: bool = False,
    workdir: str | None = None,
    overwrite: bool = False,
    page: str | None = None,
) -> list[ClaimRow]:
    """Runs claims, prints a table of published and reproduced results, and writes it to claims.csv and claims.md.

    Without `workdir`, results are written to runs/claims, or to runs/claims_quick if `quick` is set.

    Raises:
      UserError (a ValueError): an argument is invalid, a claim does not exist, or its run fails.
    """
    defaults = cli_command.default_values(run)
    settings = flag_tables.check(FLAGS, locals(), defaults)
    claims = all_claims()
    for name in settings['names'] or ():
        if name not in claims:
            raise UserError(
                f'--names={name} is not a claim; use one of {", ".join(claims)}{options.nearest(name, claims)}'
            )
    page = settings.pop('page')
    if page is not None:
        if settings['names'] or settings['quick']:
            raise UserError(f'--page={page} needs the full version of all claims; omit --names and --quick')
        text_tables.replaced_block(files.expand('page', page), NAME, '')  # raises UserError before the claims run
    wanted, place = settings.pop('names') or list(claims), settings['workdir'] or default_folder(settings['quick'])
    settings |= {'workdir': place}  # without the names, which may differ from call to call
    with directory.open_workdir(settings, NAME, names=(directory.SUMMARY, TABLE, TEXT)) as (folder, _):
        folder.write_summary({'experiment': NAME, 'finished': True, 'flags': settings})
        rows = []
        for name in wanted:
            print(f'\n--- {name}: {claims[name].claim} ---\n', flush=True)
            rows.append(row_of(claims[name], _run_one(claims[name], folder.path / name, settings)))
        text = '\n'.join(markdown(rows)) + '\n'
        folder.write(TEXT, lambda path: path.write_text(text, encoding='utf-8'))
        result_files.write_table(folder, TABLE, ClaimRow._fields, rows)
        if page is not None:
            text_tables.replace_block(files.expand('page', page), NAME, text)
        print(f'\n{text}\n{folder.listing()}')
    return rows


def default_folder(quick: bool) -> str:
    return os.path.join('runs', NAME + ('_quick' if quick else ''))


def _run_one(claim: Claim, folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Runs a claim in the directory `folder`, unless its run there is finished, and returns the summary."""
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
