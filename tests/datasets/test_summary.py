"""Summary of a table: its numbers are those of pandas, and it names the values that look out of place."""

import numpy as np
import pytest

from seqjax.datasets.readers import summary
from seqjax.datasets.readers.table_columns import Series
from seqjax.datasets.readers.table_sources import Columns
from seqjax.datasets.readers.tables import SeriesTable

RNG = np.random.default_rng(0)
PLAIN = RNG.normal(100, 10, 60).round(2)


def table(*columns, names='abc', series=('x',)):
    """Columns of numbers -> the table that has them, each series on rows of its own."""
    values = np.stack(columns, 1).astype(float)
    parts = np.split(values, len(series))
    rows = np.split(np.arange(1, len(values) + 1), len(series))
    several = [
        Series(name if len(series) > 1 else None, *pair, None) for name, *pair in zip(series, parts, rows, strict=True)
    ]
    return SeriesTable(Columns([names[0]], list(names[1 : len(columns)])), several)


def changed(**values):
    """PLAIN with other values in some rows, by their number in the file."""
    column = PLAIN.copy()
    for row, value in values.items():
        column[int(row[1:]) - 1] = value
    return column


def test_each_column_has_a_line_of_its_numbers():
    pandas = pytest.importorskip('pandas')
    columns = PLAIN, np.where(np.arange(60) % 7, RNG.normal(size=60), np.nan), np.full(60, np.nan)
    head, *lines = summary.lines(table(*columns))
    assert head.split() == ['column', 'count', 'missing', 'min', 'median', 'max']
    for line, name, values in zip(lines, 'ab', columns, strict=False):
        known = pandas.Series(values)
        expected = [
            known.count(),
            known.isna().sum(),
            *(f'{getattr(known, how)():.6g}' for how in ('min', 'median', 'max')),
        ]
        assert line.split() == [name, *map(str, expected)]
    assert lines[2].split() == ['c', '0', '60', *'---']
    assert len(lines) == 3 and len({len(line) for line in [head, *lines]}) == 1


@pytest.mark.parametrize(
    ('values', 'words'),
    [
        (changed(r12=-999), ['row 12 is -999;', 'missing']),
        (changed(r12=-9999, r30=-9999), ['row 12 is -9999, as in 1 more rows;', 'missing']),
        (np.where(np.arange(60) % 3, PLAIN, -999), ['row 1 is -999, as in 19 more rows;', 'missing']),
        (np.where(np.arange(60) % 5, 0, -99), ['row 1 is -99, as in 11 more rows;', 'missing']),
        (changed(r60=PLAIN[:-1].sum()), ['row 60 is', 'sum of all other rows']),
        (changed(r1=PLAIN[1:].sum()), ['row 1 is', 'sum of all other rows']),
        (changed(r7=1e5), ['row 7 is 100000;', 'interquartile']),
        (changed(r7=-1e5, r8=1e6), ['row 7 is -100000, as in 1 more rows;', 'interquartile']),
        (np.where(np.arange(60) % 3, 0, np.arange(60) + (np.arange(60) == 6) * 1e4), ['row 7 is 10006;', 'interq']),
    ],
)
def test_a_value_that_looks_out_of_place_is_named_with_its_row(values, words):
    *_, line = lines = summary.lines(table(values))
    assert len(lines) == 3 and line.startswith('a: ') and all(word in line for word in words)


@pytest.mark.parametrize(
    'values',
    [
        PLAIN,
        np.arange(60),
        np.zeros(60),
        np.arange(60) % 2,
        (np.arange(60) == 30) * 5,
        -np.arange(60) * 40,
        np.exp(RNG.normal(size=60)),
        np.where(np.arange(60) % 5, 0, np.arange(60)),
        np.arange(-1100, -900, 1),
        np.arange(-150, 150, 3),
        1.05 ** np.arange(60),
    ],
)
def test_nothing_is_said_of_plain_values(values):
    assert len(summary.lines(table(values))) == 2


def test_values_are_compared_with_those_of_their_series_and_rows_counted_in_the_file():
    column = np.concatenate([PLAIN, 1000 * PLAIN, PLAIN])
    assert len(summary.lines(table(column, series='xyz'))) == 2
    column[125] = 1e5
    assert "series 'z': row 126" in summary.lines(table(column, series='xyz'))[-1]


def test_many_columns_and_many_odd_values_are_summarised():
    columns = np.tile(PLAIN[:, None], 30)
    columns[3, 25], columns[:, 28] = -7.5, np.nan
    names = [f'c{i}' for i in range(30)]
    head, *lines = summary.lines(table(*columns.T, names=names))
    assert len(lines) == summary.MAX_COLUMNS + 1
    assert all(part in lines[-1] for part in ('10 more', '540', '-7.5', '60'))
    columns[5] = -999
    lines = summary.lines(table(*columns.T, names=names))
    assert len(lines) == 2 + summary.MAX_COLUMNS + summary.MAX_LINES + 1 and lines[-1].startswith('21 more')
