"""The series of a file that a forecast can use: long enough for the settings, not constant, with known targets."""

from collections.abc import Mapping, Sequence
from typing import Any

from seqjax import options
from seqjax.datasets import forecast_preprocessing
from seqjax.datasets.forecast_batching import OriginRanges, Split
from seqjax.datasets.forecast_preprocessing import PreparedSeries, UnusableSeriesError
from seqjax.datasets.readers.table_columns import Series
from seqjax.datasets.readers.tables import SeriesTable
from seqjax.errors import UserError

MIN_TRAINING_ROWS = 4  # minimum number of training rows of a series


def usable_series(
    name: str, table: SeriesTable, splits: Sequence[Split], preprocessing: Mapping[str, Any], order: int | None
) -> tuple[SeriesTable, list[Split], dict[str, Any], dict[str | None, str]]:
    """Returns the table and splits of the usable series, their scales, and the excluded series with the reasons.

    Raises UserError if a series is too short or constant, unless --skip_short is set and another series is usable.
    """
    usable, scales, left_out = [], {}, {}
    for series, split in zip(table.series, splits, strict=True):
        try:
            _check_lengths(name, series, split, preprocessing, order)
            scales[series.name or ''] = forecast_preprocessing.fit_scale(
                name, series, table.columns.numbers, split.validation
            )
            usable.append((series, split))
        except UnusableSeriesError as error:
            if len(table.series) == 1:
                raise
            left_out[series.name] = str(error).removeprefix(f'{name}: ')
    if left_out and not (usable and preprocessing['skip_short']):
        skip_hint = '; or pass --skip_short to exclude them' if usable else ''
        raise UserError(
            f'{name}: {len(left_out):,} of {len(table.series):,} series are too short or constant, '
            f'{options.some(map(repr, left_out), 5)}; the first: {next(iter(left_out.values()))}{skip_hint}'
        )
    return table._replace(series=[series for series, _ in usable]), [split for _, split in usable], scales, left_out


def left_out_lines(left_out: Mapping[str | None, str]) -> list[str]:
    """Returns lines that name the excluded series, with the reasons of the first three; none if none is excluded."""
    if not left_out:
        return []
    count = len(left_out)
    return [
        f'excluded by --skip_short, as too short or constant: {count:,} series, {options.some(map(repr, left_out), 5)}',
        *list(left_out.values())[:3],
    ]


def _check_lengths(
    name: str, series: Series, split: Split, preprocessing: Mapping[str, Any], order: int | None
) -> None:
    """Raises UnusableSeriesError if a split of a series has too few rows for the settings, or for training at all."""
    where, rows = f'{name}{series.phrase.replace(" of", ":", 1)}', max(split.validation, 0)
    if rows < MIN_TRAINING_ROWS:
        raise UnusableSeriesError(
            f'{where} has {rows} training rows and needs {MIN_TRAINING_ROWS}; add rows, or start validation later'
        )
    if rows < preprocessing['window'] + 1:
        raise UnusableSeriesError(
            f'{where} has {rows} training rows, but --window={preprocessing["window"]} needs '
            f'{preprocessing["window"] + 1}; use a smaller --window'
        )
    if preprocessing['seasons'] and min(preprocessing['seasons']) >= rows:
        raise UnusableSeriesError(
            f'{where} has {rows} training rows, but --season={min(preprocessing["seasons"])} needs more than '
            f'{min(preprocessing["seasons"])}; use a shorter season'
        )
    if order and 2 * order + 2 > rows:
        raise UnusableSeriesError(
            f'{where} has {rows} training rows, but --ar_order={order} needs {2 * order + 2}; use a lower --ar_order'
        )
    for split_name, count in (('validation', split.test - split.validation), ('test', len(series.rows) - split.test)):
        if count < preprocessing['horizon']:
            raise UnusableSeriesError(
                f'{where} has {max(count, 0)} {split_name} rows, fewer than --horizon={preprocessing["horizon"]}; '
                f'use a shorter --horizon, or a larger {split_name} split'
            )


def check_targets(
    name: str, prepared_series: Sequence[PreparedSeries], origins: Mapping[str, OriginRanges], horizon: int
) -> None:
    """Raises UserError if all targets of a split are missing, in all series; the splits are the keys of `origins`."""
    for split_name, ranges in origins.items():
        if not any(
            prepared.valid[first + 1 : stop + horizon].any()
            for prepared, (first, stop) in zip(prepared_series, ranges, strict=True)
        ):
            raise UserError(f'{name} has only missing target values in its {split_name} split; choose other splits')
