"""Reproduce published results, with 95% confidence intervals over seeds.

    python -m experiments.claims                        # all of them; ./run.sh claims does the same
    python -m experiments.claims --names=parity,anbn
    python -m experiments.claims --quick                # small versions, in minutes
    python -m experiments.claims --names=parity --seed=5000         # on other seeds
    python -m experiments.claims --search=experiments/flags/search  # tries settings on validation sequences

A claim is a flagfile of experiments/flags/ whose header has the lines `Source`, `Claim`, `Published`, `Measure`,
`Command` and `Quick`; a line `Ours` says what is not from the source. If it has a line `Search`, the search log
experiments/flags/search/NAME.csv has the results for a grid of settings, on validation sequences and seeds from 0.
Results are reported for seeds from 1000 on. A run that was stopped is resumed, and a finished run is not repeated.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import claim_results
from experiments.claim_results import MEASURES, ClaimRow, ClaimRun
from seqjax import files, options
from seqjax.cli import command as cli_command
from seqjax.cli import command_line, flag_tables, registry
from seqjax.cli.command import Command
from seqjax.cli.flag_tables import Flag, FlagTable
from seqjax.cli.parsers import BoolParser, GridParser, IntParser, ListParser, NameParser, PathParser
from seqjax.errors import UserError
from seqjax.reporting import text_tables
from seqjax.runs import directory, result_files

NAME, TABLE, TEXT = 'claims', 'claims.csv', 'claims.md'
SOURCES = 'sources'  # block of a page with the sources' and our settings
SEARCH, SEARCH_SEED = 'search', 0  # folder of the search logs in experiments/flags, and the first seed of a search
FIELDS = ('Claim', 'Published', 'Measure', 'Source')
FLAGS = {
    'names': Flag(ListParser(NameParser()), 'names of the flagfiles of the claims to run; all claims by default'),
    'quick': Flag(BoolParser(), 'run the small version of each claim (`Quick` in its header), in minutes'),
    'seed': Flag(IntParser(0, 2**32 - 1), "first seed of every claim (default: the flagfile's own)"),
    'search': Flag(
        PathParser(),
        'folder for search logs: instead of the claims, run the grid of each (`Search` in its header) on validation '
        'sequences and seeds from 0, and write NAME.csv to this folder',
    ),
    'workdir': flag_tables.SHARED['workdir'],
    'overwrite': flag_tables.SHARED['overwrite'],
    'page': Flag(
        PathParser('file'),
        'Markdown page whose tables of claims are replaced, such as docs/results.md; needs all claims, with their own '
        'seeds and without --quick',
    ),
}


class Claim(NamedTuple):
    """Header of a flagfile with a published result."""

    name: str  # name of the flagfile, without .flags
    module: str  # command that runs the claim, such as adding
    claim: str  # source and setting
    published: str  # published result
    measure: str  # key of MEASURES
    source: str  # task, criterion, model and training of the source
    ours: str  # what is from the source and what is ours; empty if the header does not say so
    quick: list[str]  # flags of the small version
    search: list[str]  # --grid and other flags of the search; empty if there is no search

    @property
    def command(self) -> str:
        """Command line that runs the claim."""
        return f'{registry.invocation(self.module)} --flagfile={self.name}'

    def grid(self) -> tuple[dict[str, list[str]], list[str]]:
        """Returns the values of the varied flags by name, and the other flags, of `search`."""
        grids = [word for word in self.search if word.startswith('--grid=')]
        try:
            axes = dict(GridParser().parse(word.removeprefix('--grid=')) for word in grids)
        except ValueError as error:
            raise UserError(f'{self.name}.flags has {" ".join(grids)} in its header, which {error}') from error
        return axes, [word for word in self.search if word not in grids]


# --- flagfiles -------------------------------------------------------------------------------------


def read(path: Path) -> Claim | None:
    """Returns the claim in the header of a flagfile, or None if the header has no line `Claim`.

    Raises:
      UserError: a line of the header is missing or invalid.
    """
    fields = _header(path)
    if 'Claim' not in fields:
        return None
    missing = [name for name in (*FIELDS, 'Command', 'Quick') if name not in fields]
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
    quick, search = (_words(path, name, fields.get(name, '')) for name in ('Quick', 'Search'))
    return Claim(path.stem, command[1], *(fields[name] for name in FIELDS), fields.get('Ours', ''), quick, search)


def _header(path: Path) -> dict[str, str]:
    """Returns the lines `# NAME: TEXT` of the header of a flagfile by name, with their continuations."""
    fields: dict[str, str] = {}
    for line in path.read_text(encoding='utf-8').splitlines():
        match = re.match(r'# ([A-Z][a-z]+): +(.*)', line)
        if match:
            fields[match[1]] = match[2]
        elif fields and line.startswith('#           '):
            fields[next(reversed(fields))] += ' ' + line[1:].strip()
    return fields


def _words(path: Path, name: str, text: str) -> list[str]:
    """Returns the flags of the line `name` of a header as a list."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f'{path} has `{name}: {text}` in its header; correct its quotes ({error})') from error


def all_claims() -> dict[str, Claim]:
    """Returns the claims of all flagfiles by name."""
    claims = [read(path) for path in sorted(command_line.flagfile_folder().glob('*.flags'))]
    return {claim.name: claim for claim in claims if claim is not None}


# --- search ----------------------------------------------------------------------------------------


def search(claim: Claim, folder: Path, settings: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Runs a claim with every setting of its grid on validation sequences, and yields the rows of its search log.

    The columns are those of sweep.csv: flags of the grid, seed, step (of the test), metric and value. The metric
    `sequences` is the number of training sequences until success, infinite for a seed that failed.

    Args:
      claim: a claim with `search` flags.
      folder: parent of the run directories.
      settings: flags of the command.
    """
    grid, flags = claim.grid()
    for setting in itertools.product(*grid.values()):
        words = [f'--{name}={value}' for name, value in zip(grid, setting, strict=True)]
        print(f'\n--- {claim.name}: {" ".join(words)} ---\n', flush=True)
        place = folder / '_'.join(word.removeprefix('--') for word in words)
        own = [*flags, *(claim.quick if settings['quick'] else []), *words, '--split=validation']
        run = ClaimRun.of(_run_one(claim, place, settings, [f'--seed={SEARCH_SEED}', *own]))
        for seed in run.seeds:
            step = run.flags['steps']
            if seed.sequences is not None and not run.flags['train_all_steps']:
                step = seed.sequences // run.flags['batch_size']
            needed = math.inf if seed.sequences is None else seed.sequences
            for metric, value in {'sequences': needed, **claim_results.held_out_metrics(seed)}.items():
                yield [*setting, seed.seed, step, metric, float(value)]


def search_log(name: str) -> str:
    """Returns a Markdown link from a page of docs/ to the search log of a claim; an empty text if there is none."""
    path = command_line.flagfile_folder() / SEARCH / f'{name}.csv'
    return f'[{name}.csv](../experiments/flags/{SEARCH}/{name}.csv)' if path.exists() else ''


# --- the command -----------------------------------------------------------------------------------


def run(
    *,
    names: list[str] | None = None,
    quick: bool = False,
    seed: int | None = None,
    search: str | None = None,
    workdir: str | None = None,
    overwrite: bool = False,
    page: str | None = None,
) -> list[ClaimRow]:
    """Runs claims, prints tables of published and reproduced results, and writes them to claims.csv and claims.md.

    Without `workdir`, results are written to runs/claims, or to runs/claims_quick, runs/claims_seed_5000 and so on.
    With `search`, only search logs are written, and the result is an empty list.

    Raises:
      UserError (a ValueError): an argument is invalid, a claim does not exist, or its run fails.
    """
    settings = flag_tables.check(FLAGS, locals(), cli_command.default_values(run))
    claims = all_claims()
    for name in settings['names'] or ():
        if name not in claims:
            raise UserError(
                f'--names={name} is not a claim; use one of {", ".join(claims)}{options.nearest(name, claims)}'
            )
    for other in ('seed', 'page') if settings['search'] is not None else ():
        if settings[other] is not None:
            raise UserError(f'--{other}={settings[other]} has no effect with --search; omit one of them')
    page = settings.pop('page')
    if page is not None:
        if settings['names'] or settings['quick'] or settings['seed'] is not None:
            raise UserError(f'--page={page} needs the full version of all claims; omit --names, --quick and --seed')
        for block in (NAME, SOURCES):
            text_tables.replaced_block(files.expand('page', page), block, '')  # raises UserError before the claims run
    wanted = [claims[name] for name in settings.pop('names') or claims]  # names may differ from call to call
    settings['workdir'] = settings['workdir'] or default_folder(settings)
    if settings['search'] is not None:
        _write_search_logs(wanted, settings)
        return []
    return _run_claims(wanted, settings, page)


def default_folder(settings: Mapping[str, Any]) -> str:
    parts = ['quick'] * settings['quick'] + ['search'] * (settings['search'] is not None)
    parts += [] if settings['seed'] is None else [f'seed_{settings["seed"]}']
    return os.path.join('runs', '_'.join([NAME, *parts]))


def _run_claims(claims: Sequence[Claim], settings: Mapping[str, Any], page: str | None) -> list[ClaimRow]:
    """Runs claims, prints and writes their tables, and returns their rows."""
    with directory.open_workdir(settings, NAME, names=(directory.SUMMARY, TABLE, TEXT)) as (folder, _):
        folder.write_summary({'experiment': NAME, 'finished': True, 'flags': settings})
        rows = []
        seed = [] if settings['seed'] is None else [f'--seed={settings["seed"]}']
        for claim in claims:
            print(f'\n--- {claim.name}: {claim.claim} ---\n', flush=True)
            flags = [*(claim.quick if settings['quick'] else []), *seed]
            summary = _run_one(claim, folder.path / claim.name, settings, flags)
            rows.append(claim_results.row_of(claim, summary, search_log(claim.name)))
        text = '\n'.join(claim_results.markdown(rows)) + '\n'
        folder.write(TEXT, lambda path: path.write_text(text, encoding='utf-8'))
        result_files.write_table(folder, TABLE, ClaimRow._fields, rows)
        if page is not None:
            text_tables.replace_block(files.expand('page', page), NAME, text)
            text_tables.replace_block(files.expand('page', page), SOURCES, '\n'.join(claim_results.sources(claims)))
        print(f'\n{text}\n{folder.listing()}')
    return rows


def _write_search_logs(claims: Sequence[Claim], settings: Mapping[str, Any]) -> None:
    """Writes NAME.csv to the folder --search for every claim with a `Search` line in its header."""
    target, folder = files.expand('search', settings['search']), files.expand('workdir', settings['workdir'])
    with files.writing(target):
        target.mkdir(parents=True, exist_ok=True)
    for claim in claims:
        if claim.search:
            rows = list(search(claim, folder / claim.name, settings))
            columns = [*claim.grid()[0], 'seed', 'step', 'metric', 'value']
            result_files.write_table(directory.Workdir(target), f'{claim.name}.csv', columns, rows)
            print(f'\nsearch log: {target / claim.name}.csv')


def _run_one(claim: Claim, folder: Path, settings: Mapping[str, Any], flags: Sequence[str]) -> dict[str, Any]:
    """Runs a claim with further flags in the directory `folder`, unless its run there is finished.

    Returns:
      The content of summary.json.
    """
    argv = [f'--flagfile={command_line.flagfile_folder() / claim.name}.flags', *flags, f'--workdir={folder}']
    argv += ['--overwrite'] if settings['overwrite'] else []
    command = registry.find(claim.module)
    command.run(**command.parse(argv))
    with files.reading(folder / directory.SUMMARY):
        return json.loads((folder / directory.SUMMARY).read_text(encoding='utf-8'))


COMMAND = Command('claims', __doc__, run, FlagTable(FLAGS, cli_command.default_values(run)))
main = COMMAND.main


if __name__ == '__main__':
    COMMAND.execute()
