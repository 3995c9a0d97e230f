"""Online forecasts: a forecast after each row that arrives as a line of text."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from seqjax.datasets import forecast_heads, forecast_preprocessing, forecast_report
from seqjax.datasets.forecast_batching import ForecastTargets
from seqjax.datasets.readers import date_columns, date_formats, numbers
from seqjax.datasets.readers.date_formats import Timestamp
from seqjax.datasets.readers.lines import LineReader
from seqjax.datasets.readers.table_columns import Series
from seqjax.errors import UserError
from seqjax.types import Batch


class _State(NamedTuple):
    """State of a series after its last row."""

    stamp: Timestamp | None  # timestamp of the last row; None without --date
    past: np.ndarray  # [lag, C] standardized targets of the last rows; missing ones filled as in `PreparedSeries.past`
    scale: np.ndarray  # [2, C] mean and standard deviation of the targets in training


class ForecastStream:
    """Forecasts after each row of a stream of lines, with a separate state for each series.

    Args:
      options: flags of the run.
      preprocessing: preprocessing of the run.
    """

    def __init__(self, options: Mapping[str, Any], preprocessing: Mapping[str, Any]):
        self.preprocessing, self.read = preprocessing, forecast_heads.postprocess(preprocessing)
        self.dates = forecast_preprocessing.format_of(preprocessing)
        columns = forecast_preprocessing.columns_of(preprocessing)
        number_format = numbers.format_of(options['decimal'], options['thousands'])
        self.numbers = dict.fromkeys(columns.numbers, number_format) | forecast_preprocessing.number_formats(
            preprocessing
        )
        separator = preprocessing.get('separator', options['separator'])
        self.lines = LineReader(preprocessing.get('header'), columns.all, separator, self._is_value)
        self.answer = jax.jit(self._answer)
        self.restart()

    def restart(self) -> None:
        """Forgets the states of all series."""
        self.series, self.states = None, {}

    @property
    def columns(self) -> list[str]:
        """Names of the output columns: for each target and step ahead, forecast and bounds of intervals, if any."""
        suffixes = ['', *(f' {name}' for name in forecast_report.interval_columns(self.preprocessing)[0])]
        steps = range(1, self.preprocessing['horizon'] + 1)
        return [
            f'{target}+{step}{suffix}'
            for target in self.preprocessing['targets']
            for step in steps
            for suffix in suffixes
        ]

    def parse(self, line: str) -> np.ndarray | None:
        """Returns the model inputs [F] of a row and updates the state of its series; None for a line that is no row.

        A header line is no row, and neither is an empty line, unless the file has one column and the run has
        --missing=mask: then it is a missing value. After None, the caller must call `restart`.
        """
        if not line.strip() and not (self.lines.single and self.preprocessing['mask']):
            return None
        words = self.lines.read(line)
        if words is None:
            return None
        self.series = None if self.preprocessing['id'] is None else words[self.preprocessing['id']]
        if self.series == '':
            raise UserError(f'column {self.preprocessing["id"]!r} is empty; write the name of the series in every row')
        state = self.states.get(self.series)
        values = np.array([[self._number(name, words[name]) for name in self.numbers]])
        stamp = self._stamp(words, state and state.stamp)
        date = None if stamp is None else np.array([stamp.local])
        offset = None if stamp is None or stamp.offset is None else np.array([stamp.offset])
        prepared = forecast_preprocessing.prepare_series(
            'the line', Series(self.series, values, np.array([1]), date, offset), self.preprocessing
        )
        past = np.zeros((self.preprocessing['lag'] or 1, len(self.preprocessing['targets'])), np.float32)
        past = past if state is None else state.past
        now = np.where(prepared.valid[0], prepared.values[0], past[0])
        self.states[self.series] = _State(stamp, np.concatenate([past[1:], now[None]]), prepared.scale)
        return prepared.inputs[0]

    def _is_value(self, name: str, word: str) -> bool:
        """Returns True if a word can be parsed as a value of a column; the column of --id can have any value."""
        try:
            if name in self.numbers:
                numbers.parse_number(word, self.numbers[name])
            elif name == self.preprocessing['date']:
                date_columns.parse(word, self.dates)
        except UserError:
            return False
        return True

    def _number(self, name: str, word: str) -> float:
        try:
            value = numbers.parse_number(word, self.numbers[name])
        except UserError as error:
            raise UserError(f'column {name!r}: {error}') from error
        if np.isnan(value) and not self.preprocessing['mask']:
            raise UserError(
                f'column {name!r} has no value, and the run has --missing=refuse; add a value, or train with '
                '--missing=mask'
            )
        return value

    def _stamp(self, words: Mapping[str, str], before: Timestamp | None) -> Timestamp | None:
        """Returns the timestamp of a row, None without --date; raises UserError if it is not after `before`."""
        name = self.preprocessing['date']
        if name is None:
            return None
        stamp = date_columns.parse(words[name], self.dates, before, name)
        if before is not None and stamp.instant <= before.instant:
            last = date_formats.write_one(before, self.dates)
            series = '' if self.series is None else f' in series {self.series!r}'
            raise UserError(
                f'column {name!r} holds {words[name]!r}, which is not after {last}, the date of the row before{series};'
                ' sort the rows by date'
            )
        return stamp

    def _answer(self, outputs: jax.Array, past: jax.Array) -> jax.Array:
        known = past[None] if self.preprocessing['lag'] else None
        return self.read(outputs[None, None], Batch((), ForecastTargets((), (), known), ()))[0, 0]

    def values(self, outputs: np.ndarray, parsed: np.ndarray) -> Sequence[Any]:
        """Returns the values of `columns` for the last row, in units of the file, from its model outputs."""
        state = self.states[self.series]
        forecasts = np.asarray(self.answer(outputs, state.past), np.float64)  # [H, C, K]
        forecasts = forecasts * state.scale[1][:, None] + state.scale[0][:, None]
        order = forecast_report.interval_columns(self.preprocessing)[1]
        return forecasts[..., order].swapaxes(0, 1).reshape(-1).tolist()
