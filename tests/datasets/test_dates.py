"""Dates: the format of a column, time zones and changes of the clock, and dates in the output, against pandas."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqjax.cli import forecast
from seqjax.datasets import forecast_preprocessing, forecast_report, forecasting
from seqjax.datasets.readers import date_columns, date_formats, dates, table_sources, tables
from seqjax.datasets.readers.date_columns import ColumnReader
from seqjax.datasets.readers.date_formats import DateFormat, Timestamp
from seqjax.datasets.readers.table_sources import Columns
from seqjax.errors import UserError

pandas = pytest.importorskip('pandas', reason='reads tables: pip install "seqjax[data]"')

BERLIN = 'Europe/Berlin'


@pytest.fixture
def read(tmp_path):
    """Dates, and what is known of their format -> the table of a file that holds them."""

    def read_(texts, form=date_columns.UNDECIDED, **columns):
        path = tmp_path / 'x.csv'
        frame = pandas.DataFrame({'day': texts, 'v': np.arange(len(texts)) % 7.0} | columns)
        frame.to_csv(path, index=False)
        return tables.read(path, Columns(['v'], date='day', id='who' if columns else None), dates=form)

    return read_


def local(table):
    return pandas.Series(table.series[0].dates)


def same(found, expected):
    assert found.astype(dates.MICRO).tolist() == np.asarray(expected).astype(dates.MICRO).tolist()


# --- formats ---------------------------------------------------------------------------------------

DAYS = pandas.date_range('2021-01-05', periods=40)
MINUTES = pandas.date_range('2021-01-05 09:15', periods=400, freq='47min')
MONTHS = pandas.date_range('2011-01-01', periods=40, freq='MS')


@pytest.mark.parametrize(
    ('days', 'format'),
    [(DAYS, format) for format in ('%d/%m/%Y', '%m/%d/%Y', '%d.%m.%Y', '%d-%m-%Y', '%d/%m/%y', '%m-%d-%y', '%y/%m/%d')]
    + [(DAYS, format) for format in ('%d %b %Y', '%d-%b-%y', '%B %d, %Y', '%a, %d %b %Y', '%y%m%d', '%Y-%b-%d')]
    + [
        (MINUTES, format)
        for format in ('%d/%m/%Y %H:%M', '%m/%d/%Y %I:%M %p', '%d.%m.%Y, %H:%M:%S', '%m/%d/%y %I:%M%p')
    ]
    + [(MINUTES, '%Y-%m-%d %I:%M:%S %p')]
    + [(MONTHS, format) for format in ('%b %Y', '%B %Y', '%m/%Y', '%m.%Y', '%b-%y', '%Y %b')],
)
def test_all_dates_of_a_column_decide_its_format(read, days, format):
    texts = days.strftime(format)
    table = read(texts)
    same(table.series[0].dates, pandas.to_datetime(texts, format=format))
    assert table.dates.format == format
    assert format in forecast_report.dates_line(table)


@pytest.mark.parametrize(
    'format',
    ['%Y-%m-%d', '%Y/%m/%d', '%Y.%m.%d', '%Y%m%d', '%Y-%m', '%Y/%m/%d %H:%M', '%Y%m%dT%H%M%S', '%Y-%m-%dT%H:%M:%S.%f'],
)
def test_dates_that_begin_with_the_year_are_iso_8601(read, format):
    days = {'%Y-%m': MONTHS}.get(format, MINUTES if 'H' in format else DAYS)
    table = read(days.strftime(format))
    same(table.series[0].dates, days)
    assert table.dates.format == 'iso8601' and 'iso8601' not in forecast_report.dates_line(table)


@pytest.mark.parametrize('form', ['{0.year}Q{0.quarter}', 'Q{0.quarter} {0.year}', '{0.year}-Q{0.quarter}'])
def test_quarters(read, form):
    quarters = pandas.period_range('2010Q1', periods=13, freq='Q')
    table = read([form.format(quarter) for quarter in quarters])
    same(table.series[0].dates, quarters.to_timestamp())
    assert all(part in forecast_report.dates_line(table) for part in ('2010-01-01', '2013-01-01', 'quarter', '3 month'))


def test_weeks(read):
    mondays = pandas.date_range('2009-01-05', '2016-02-01', freq='7D')  # two years of 53 weeks in it
    years = mondays.isocalendar()
    texts = [f'{year}-W{week:02}' for year, week in zip(years.year, years.week, strict=True)]
    same(read(texts).series[0].dates, mondays)
    same(read([f'{text}-3' for text in texts]).series[0].dates, mondays + pandas.Timedelta('2D'))


@pytest.mark.parametrize('days', [MONTHS, MONTHS[:4], pandas.date_range('2010-05-01', periods=3, freq='MS')])
@pytest.mark.parametrize('form', ['%d/%m/%Y', '%m/%d/%Y', '%d.%m.%Y', '%d-%m-%Y %H:%M', '%m/%d/%Y %I:%M %p'])
def test_two_readings_are_refused_and_the_flag_settles_it(read, days, form):
    """Every first of a month may be a day of January; an even pace does not tell."""
    texts = days.strftime(form)
    other = form.replace('%d', '%D').replace('%m', '%d').replace('%D', '%m')
    with pytest.raises(UserError, match="'day'.*--date_format") as refused:
        read(texts)
    row = next(place for place, day in enumerate(days) if day.day != day.month)
    swapped = pandas.to_datetime(texts, format=other)
    for format, read_as in ((form, days[row]), (other, swapped[row])):
        assert f'--date_format={format}' in str(refused.value) and f'{read_as:%Y-%m-%d}' in str(refused.value)
    same(read(texts, DateFormat.of_flags(form, None)).series[0].dates, days)
    same(read(texts, DateFormat.of_flags(other, None)).series[0].dates, swapped)


@pytest.mark.parametrize('text', ['01/02/03', '10/01/02', '201001', '01-02-2010'])
def test_a_single_date_of_two_readings_is_refused(read, text):
    with pytest.raises(UserError, match='--date_format'):
        read([text])
    assert len(read(['02/02/2010']).series[0].dates) == 1  # either way the same day


def test_the_last_row_of_the_last_part_may_decide(read, monkeypatch):
    monkeypatch.setattr(table_sources, 'CHUNK', 4)
    days = pandas.DatetimeIndex([*pandas.date_range('2010-01-01', periods=12, freq='MS'), '2010-12-13'])
    assert read(days.strftime('%d/%m/%Y')).dates.format == '%d/%m/%Y'
    assert read(days.strftime('%m/%d/%Y')).dates.format == '%m/%d/%Y'
    with pytest.raises(UserError, match="row 14.*'31/12/2010'.*%m/%d/%Y"):
        read([*days.strftime('%m/%d/%Y'), '31/12/2010'])


def test_only_dates_that_rise_in_each_series_are_a_reading(read):
    days = ['03/01/2010', '07/02/2010', '02/03/2010', '05/04/2010']  # March, July, February in the other reading
    assert read(days).dates.format == '%d/%m/%Y'
    both = [day for day in days for _ in 'ab']
    assert read(both, who=['a', 'b'] * 4).dates.format == '%d/%m/%Y'
    with pytest.raises(UserError, match='--date_format'):  # neither rises
        read([*days, '02/01/2010'])


@pytest.mark.parametrize(
    ('unit', 'days'),
    [('epoch_s', MINUTES), ('epoch_ms', MINUTES + pandas.Timedelta('7ms')), ('epoch_s', DAYS)]
    + [('epoch_s', pandas.date_range('1969-12-31 23:59:58.5', periods=9, freq='s'))],
)
def test_seconds_since_1970_are_read_by_the_flag(read, unit, days):
    numbers = (days - pandas.Timestamp(0)) / pandas.Timedelta(1, unit.removeprefix('epoch_'))
    numbers = numbers.astype('int64') if (numbers == numbers.astype('int64')).all() else numbers
    table = read(numbers, DateFormat.of_flags(unit, None))
    same(table.series[0].dates, days)
    assert days[0].strftime('%Y-%m-%d') in forecast_report.dates_line(table) and '+00:00' in forecast_report.dates_line(
        table
    )
    berlin = read(numbers, DateFormat.of_flags(unit, BERLIN))
    same(berlin.series[0].dates, days.tz_localize('UTC').tz_convert(BERLIN).tz_localize(None))


def test_a_number_since_1970_is_not_guessed(read):
    with pytest.raises(UserError, match='--date_format=epoch_s'):
        read(['1577836800', '1577836860'])
    with pytest.raises(UserError, match='--date_format=epoch_ms'):
        read(['1577836800000', '1577836860000'])


@pytest.mark.parametrize('text', ['today', 'NOW', 'nan', 'soon', '0', '12', '٢٠٢٠', '-2010', '2010.5', '2010-13-01'])
def test_what_is_not_a_date(read, text):
    with pytest.raises(UserError, match="row 1.*'day'"):
        read([text])
    with pytest.raises(UserError, match="row 2.*'day'"):
        read(['13/12/2010', text])


@pytest.mark.parametrize(
    'format',
    ['%d', '%m', '%H:%M', '%Y-%d', '%Y %I', '%Y%m%Y', '%Y%y', '%Y-%m-%d %M', '%Y-%m-%d %H:%S', '%Y%', '%Y%U', '%Y%Z']
    + ['%z%Y', 'epoch', 'DD/MM/YYYY', '', '%Y %b %m', '%H %I %p %Y', 3, None],
)
def test_an_invalid_date_format_is_refused_at_the_flag(format):
    with pytest.raises(UserError, match='date_format'):
        forecast.run(data='x.csv', date='day', date_format=format or '')


@pytest.mark.parametrize('zone', ['Berlin', 'Europe', '', 'CEST', '../etc/passwd', '+01:00', '/etc/localtime', 1])
def test_an_invalid_time_zone_is_refused_at_the_flag(zone):
    with pytest.raises(UserError, match='--time_zone'):
        forecast.run(data='x.csv', date='day', time_zone=zone)


def test_flags_of_dates_need_a_column_of_dates():
    for flags in ({'date_format': '%Y'}, {'time_zone': 'UTC'}):
        with pytest.raises(UserError, match='--date$'):
            forecast.run(data='x.csv', **flags)


# --- of a run --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('learned', 'later', 'format', 'wrong'),
    [
        (DAYS, pandas.date_range('2021-07-01', periods=12), '%d/%m/%Y', '2021-07-02'),
        (DAYS, pandas.date_range('2021-07-01', periods=12), '%m/%d/%Y', '13/07/2021'),
        (MONTHS, MONTHS[:1], '%b %Y', '02/2011'),
        (MINUTES, MINUTES[:3], '%d.%m.%Y %H:%M', '05.01.2021'),
        (DAYS, DAYS[:2], '%Y-%m-%d', '02/02/2021'),
    ],
)
def test_a_later_file_is_read_in_the_format_of_the_run(read, learned, later, format, wrong):
    form = DateFormat(*json.loads(json.dumps(read(learned.strftime(format)).dates)))
    texts = list(later.strftime(format))
    same(read(texts, form).series[0].dates, later)
    with pytest.raises(UserError, match=f"row {len(texts) + 1}.*'day'.*'{wrong}'.*{form.format}"):
        read([*texts, wrong], form)


def ready_to_predict(table, frequency):
    """Returns what `prediction_inputs` says of a file, for a run on dates of that pace."""
    preprocessing = {
        'targets': ['v'],
        'covariates': [],
        'date': 'day',
        'id': None,
        'mask': False,
        'lag': 1,
        'horizon': 1,
    }
    preprocessing |= {'window': 4, 'head': 'point', 'cycles': [], 'strategy': 'direct', 'scales': {'': [[0, 1]]}}
    return forecasting.prediction_inputs('y.csv', table, preprocessing | {'frequency': list(frequency)}, batch_size=1)


@pytest.mark.parametrize(
    ('freq', 'form', 'other', 'count', 'frequency'),
    [
        ('MS', '%d/%m/%Y', '%m/%d/%Y', 3, ('months', 1)),
        ('MS', '%m.%d.%y', '%d.%m.%y', 30, ('months', 1)),
        ('D', '%m/%d/%Y', '%d/%m/%Y', 12, ('microseconds', dates.DAY)),
        ('B', '%d-%m-%Y', '%m-%d-%Y', 5, ('weekdays', 1)),
        ('12h', '%d/%m/%Y %H:%M', '%m/%d/%Y %H:%M', 20, ('microseconds', dates.DAY // 2)),
    ],
)
def test_dates_that_have_the_pace_of_the_run_in_another_format_alone_are_refused(
    read, freq, form, other, count, frequency
):
    days = pandas.date_range('2012-10-01', periods=count, freq=freq)
    known = DateFormat(form, aware=False)
    assert str(count) in ready_to_predict(read(days.strftime(form), known), frequency).description[0]
    with pytest.raises(UserError, match=f'y.csv.*{re.escape(other)}.*{re.escape(form)}'):
        ready_to_predict(read(days.strftime(other), known), frequency)


def test_seconds_for_milliseconds_are_refused(read):
    seconds, form = 1262304000 + 3600 * np.arange(20), DateFormat.of_flags('epoch_ms', None)
    frequency = ('microseconds', dates.DAY // 24)
    assert ready_to_predict(read(1000 * seconds, form), frequency).description
    with pytest.raises(UserError, match='epoch_s.*epoch_ms'):
        ready_to_predict(read(seconds, form), frequency)


@pytest.mark.parametrize('form', ['%d/%m/%Y', '%Y-%m-%d', '%m.%d.%Y %H:%M'])
def test_dates_of_another_pace_than_the_run_are_read_if_no_other_format_explains_it(read, form):
    texts = pandas.date_range('2012-10-01', periods=30).strftime(form)
    assert ready_to_predict(read(texts), ('months', 1)).description


@pytest.mark.parametrize(('count', 'after'), [(5, '2012-10-08'), (4, '2012-10-05'), (2, '2012-10-03')])
def test_a_weekend_follows_the_friday_of_a_short_file_if_the_run_is_on_weekdays(read, count, after):
    (series,) = read(pandas.date_range('2012-10-01', periods=count).strftime('%Y-%m-%d')).series
    assert forecast_preprocessing.dates_after(series, {'frequency': ['weekdays', 1]}, 1)[0] == np.datetime64(after)


@pytest.mark.parametrize(
    ('texts', 'flags'),
    [
        (DAYS.strftime('%d/%m/%Y'), (None, None)),
        (MINUTES.strftime('%Y-%m-%d %H:%M:%S'), (None, None)),
        (MINUTES.tz_localize(BERLIN).map(str), (None, None)),
        (MINUTES.strftime('%d/%m/%Y %H:%M'), (None, BERLIN)),
        (MINUTES.tz_localize('UTC').strftime('%m/%d/%Y %I:%M %p%z'), (None, BERLIN)),
        (pandas.period_range('2010Q1', periods=9, freq='Q').astype(str), ('quarter', None)),
        (['2010-W05', '2010-W06'], ('week', None)),
        (['1577836800', '1577836860.25'], ('epoch_s', BERLIN)),
    ],
)
def test_a_single_text_is_read_as_in_a_file(read, texts, flags):
    table = read(texts, DateFormat.of_flags(*flags))
    form, (series,) = DateFormat(*json.loads(json.dumps(table.dates))), table.series
    written = date_formats.write(series.dates, series.offsets, form)
    offsets = [None] * len(texts) if series.offsets is None else series.offsets.tolist()
    before = None
    for place, text in enumerate(list(texts)[:50]):
        timestamp = date_columns.parse(f' {text} ', form, before)
        assert timestamp == Timestamp(series.dates[place], offsets[place])
        assert date_formats.write_one(timestamp, form) == written[place]
        before = timestamp


def test_a_single_text_that_does_not_fit(read):
    form = read(DAYS.strftime('%d/%m/%Y')).dates
    for text in ('2021-01-13', '', '01/13/2021', '13/01/2021 10:00', '13/01/2021 10:00+01:00'):
        with pytest.raises(UserError, match="'when'"):
            date_columns.parse(text, form, column='when')


# --- time zones ------------------------------------------------------------------------------------

AUTUMN = (
    pandas.date_range('2022-10-28', periods=6, tz=BERLIN),
    pandas.date_range('2022-10-29 20:00', periods=12, freq='h', tz=BERLIN),
)
SPRING = (
    pandas.date_range('2022-03-25', periods=6, tz=BERLIN),
    pandas.date_range('2022-03-26 20:00', periods=24, freq='30min', tz=BERLIN),
)
ELSEWHERE = [
    pandas.date_range('2022-11-04 12:00', periods=5, tz='America/New_York'),
    pandas.date_range('2022-04-02 22:00', periods=16, freq='30min', tz='Australia/Lord_Howe'),
    pandas.date_range('2022-10-29 22:00', periods=9, freq='h', tz='Europe/Dublin'),
]
PACES = {'D': '1 day', 'h': '1 hour', '30min': '30 minute'}


@pytest.mark.parametrize('days', [*AUTUMN, *SPRING, *ELSEWHERE])
def test_a_change_of_the_clock_is_no_gap(read, tmp_path, days):
    """Dates with their offset, in a text or a parquet file, and local times with --time_zone."""
    words = PACES[days.freqstr]
    zone, clock = str(days.tz), days.tz_localize(None)
    pandas.DataFrame({'day': days, 'v': np.arange(len(days)) % 7}).to_parquet(tmp_path / 'x.parquet')
    found = [
        read(days.map(str)),
        read(days.map(lambda day: day.isoformat()), DateFormat.of_flags(None, zone)),
        read(days.tz_convert('UTC').strftime('%Y-%m-%dT%H:%M:%SZ'), DateFormat.of_flags(None, zone)),
        read(clock.strftime('%d.%m.%Y %H:%M'), DateFormat.of_flags('%d.%m.%Y %H:%M', zone)),
        tables.read(tmp_path / 'x.parquet', Columns(['v'], date='day')),
    ]
    for table in found:
        (series,) = table.series
        same(series.dates, clock)
        same(series.instants, days.tz_convert('UTC').tz_localize(None))
        assert words in forecast_report.dates_line(table)
        assert f'{clock[0]:%Y-%m-%d}' in forecast_report.dates_line(
            table
        ) and f'{clock[-1]:%Y-%m-%d}' in forecast_report.dates_line(table)
    written = date_formats.write(series.dates, series.offsets, table.dates)
    assert (pandas.to_datetime(pandas.Series(written), utc=True) == days.tz_convert('UTC')).all()
    assert written[0] == str(days[0])
    assert table.dates.zone == zone  # parquet knows it


@pytest.mark.parametrize('days', [AUTUMN[1], *ELSEWHERE[1:]])
def test_an_hour_that_comes_twice_is_refused_with_a_remedy_that_works(read, days):
    clock = days.tz_localize(None).strftime('%Y-%m-%d %H:%M')
    with pytest.raises(UserError, match='--time_zone'):
        read(clock)
    same(
        read(clock, DateFormat.of_flags(None, str(days.tz))).series[0].instants,
        days.tz_convert('UTC').tz_localize(None),
    )
    once = [text for place, text in enumerate(clock) if place == 0 or text > max(clock[:place])]
    assert len(read(once).series[0].dates) == len(once)
    with pytest.raises(UserError, match='rows 1 and 2'):  # a row twice is no change of the clock
        read([clock[0], *clock], DateFormat.of_flags(None, str(days.tz)))


def test_each_series_has_its_own_hour_that_comes_twice(read):
    days = AUTUMN[1]
    clock = [text for text in days.strftime('%Y-%m-%d %H:%M') for _ in 'ab']
    table = read(clock, DateFormat.of_flags(None, BERLIN), who=['a', 'b'] * len(days))
    for series in table.series:
        same(series.instants, days.tz_convert('UTC').tz_localize(None))


def test_a_time_that_a_clock_skips_does_not_exist_but_a_day_may_begin_there(read):
    with pytest.raises(UserError, match="row 2.*'day'.*--time_zone=Europe/Berlin"):
        read(['2022-03-27 01:30', '2022-03-27 02:30'], DateFormat.of_flags(None, BERLIN))
    days = pandas.date_range('2017-10-13', periods=5)  # the 15th began at 01:00
    table = read(days.strftime('%Y-%m-%d'), DateFormat.of_flags(None, 'America/Sao_Paulo'))
    same(table.series[0].dates, days)
    assert '1 day' in forecast_report.dates_line(table)


@pytest.mark.parametrize('freq', ['D', 'h', '15min', 'W', 'MS', 'QS', 'ME', 'B'])
@pytest.mark.parametrize('zone', [BERLIN, 'America/New_York', 'UTC', 'Australia/Lord_Howe'])
def test_dates_go_on_in_their_time_zone(freq, zone):
    days = pandas.date_range('2022-01-31', periods=500, freq=freq, tz=zone)
    if freq == '15min':
        days = pandas.date_range('2022-10-28', periods=500, freq=freq, tz=zone)
    clock = days.tz_localize(None).to_numpy().astype(dates.MICRO)
    offsets = dates.seconds(clock - days.tz_convert('UTC').tz_localize(None).to_numpy().astype(dates.MICRO))
    frequency = dates.infer_frequency(clock[:30], offsets[:30])
    ahead, later = dates.following(clock[29], int(offsets[29]), frequency, 470, zone)
    same(ahead, clock[30:])
    assert later.tolist() == offsets[30:].tolist()
    assert not len(dates.gaps(clock, frequency, offsets))
    if freq != 'B':
        assert len(dates.gaps(np.delete(clock, 40), frequency, np.delete(offsets, 40))) == 1


def test_dates_of_a_fixed_offset_go_on_with_the_last(read):
    (series,) = read(AUTUMN[0].map(str)).series
    ahead, offsets = dates.following(
        series.dates[-1], int(series.offsets[-1]), dates.infer_frequency(series.dates), 300
    )
    same(ahead, pandas.date_range('2022-11-03', periods=300))
    assert set(offsets.tolist()) == {3600}


@pytest.mark.parametrize(
    ('texts', 'row'),
    [
        (['2022-01-01 00:00Z', '2022-01-02 00:00'], 2),
        (['2022-01-01 00:00', '2022-01-02 00:00+01:00'], 2),
        (['13/01/2022 10:00', '14/01/2022 10:00', '15/01/2022 10:00 -0500'], 3),
    ],
)
def test_dates_with_and_without_an_offset_do_not_mix(read, texts, row):
    with pytest.raises(UserError, match=f"row {row}.*'day'"):
        read(texts)


def test_a_run_on_dates_with_an_offset_reads_such_dates_alone(read):
    zoned, plain = AUTUMN[0].map(str), AUTUMN[0].strftime('%Y-%m-%d')
    for learned, later in ((zoned, plain), (plain, zoned)):
        with pytest.raises(UserError, match="row 1.*'day'"):
            read(later, read(learned).dates)


@pytest.mark.parametrize('end', ['Z', ' UTC', '+00:00', '+0530', '-03:30', '+05', '+00:53:28'])
def test_offsets_are_written_in_many_ways(read, end):
    table = read([f'2022-01-{day} 06:00:00{end}' for day in (13, 14)])
    same(table.series[0].dates, pandas.to_datetime(['2022-01-13 06:00', '2022-01-14 06:00']))
    written = date_formats.write(table.series[0].dates, table.series[0].offsets, table.dates)
    if end != '+00:53:28':  # pandas reads no seconds of an offset
        assert pandas.Timestamp(written[0]) == pandas.Timestamp(f'2022-01-13 06:00:00{end}')
    assert written[0].startswith('2022-01-13 06:00:00') and len(written[0]) >= 25
    with pytest.raises(UserError, match="row 1.*'day'"):
        read(['2022-01-13 06:00+25:00'])


@pytest.mark.parametrize('zone', [None, 'UTC', BERLIN, '+01:00'])
def test_dates_of_parquet(tmp_path, zone):
    days = pandas.date_range('2022-10-28', periods=6, tz=zone)
    pandas.DataFrame({'day': days, 'v': range(6)}).to_parquet(tmp_path / 'x.parquet')
    table = tables.read(tmp_path / 'x.parquet', Columns(['v'], date='day'))
    (series,) = table.series
    same(series.dates, days.tz_localize(None))
    written = date_formats.write(series.dates, series.offsets, table.dates)
    assert written == [str(day) if zone else str(day)[:10] for day in days]
    assert table.dates.zone == (zone if zone != '+01:00' else None)


def test_dates_of_parquet_need_no_format(read, tmp_path):
    form = read(DAYS.strftime('%d/%m/%Y')).dates
    pandas.DataFrame({'day': DAYS, 'v': range(40)}).to_parquet(tmp_path / 'x.parquet')
    same(tables.read(tmp_path / 'x.parquet', Columns(['v'], date='day'), dates=form).series[0].dates, DAYS)
    later = tables.read(tmp_path / 'x.parquet', Columns(['v'], date='day')).dates
    same(read(DAYS.strftime('%Y-%m-%d'), later).series[0].dates, DAYS)
    pandas.DataFrame({'day': DAYS.date, 'v': range(40)}).to_parquet(tmp_path / 'x.parquet')
    same(tables.read(tmp_path / 'x.parquet', Columns(['v'], date='day')).series[0].dates, DAYS)


# --- the frame of what is asked and told -----------------------------------------------------------


@pytest.mark.parametrize(
    ('days', 'text', 'place'),
    [
        (AUTUMN[0], '2022-10-31', 3),
        (AUTUMN[0], '2022-10-31T00:00+01:00', 3),
        (AUTUMN[0], '2022-10-30T22:30Z', 3),
        (AUTUMN[0], '2022-10-30T23:00Z', 3),
        (AUTUMN[0], '2022-10-30T23:01Z', 4),
        (AUTUMN[1], '2022-10-30 02:00', 6),
        (AUTUMN[1], '2022-10-30 02:00+01:00', 7),
        (AUTUMN[1], '2022-10-30 02:30', 8),
        (AUTUMN[1], '2022-10-30 03:00', 8),
    ],
)
def test_a_split_is_at_a_date_of_the_file(read, days, text, place):
    table = read(days.map(str))
    (series,) = table.series
    flags = {'validation_from': series.dates[1].astype(str), 'test_from': text}
    assert forecast.split_series('x.csv', series, flags, table.dates).test == place


def test_a_split_by_a_date_with_an_offset_needs_such_dates(read):
    table = read(DAYS.strftime('%Y-%m-%d'))
    flags = {'validation_from': '2021-01-10', 'test_from': '2021-01-20T00:00Z'}
    with pytest.raises(UserError, match='--test_from=2021-01-20T00:00Z'):
        forecast.split_series('x.csv', table.series[0], flags, table.dates)


def test_the_calendar_goes_by_the_local_time(read):
    days = pandas.date_range('2022-07-01 06:00', periods=3, freq='D', tz=BERLIN)
    (series,) = read(days.tz_convert('UTC').strftime('%Y-%m-%dT%H:%M:%SZ'), DateFormat.of_flags(None, BERLIN)).series
    np.testing.assert_allclose(
        forecast_preprocessing.calendar(series.dates, ['day']), [[1, 0]] * 3, atol=1e-12
    )  # a quarter of the day


@pytest.mark.parametrize(
    ('days', 'first'),
    [
        (DAYS, '2021-01-05'),
        (pandas.date_range('2021-01-05', periods=30, freq='h'), '2021-01-05 00:00:00'),
        (pandas.date_range('2021-01-05', periods=30, freq='h', tz=BERLIN), '2021-01-05 00:00:00+01:00'),
        (pandas.date_range('2021-01-05', periods=30, freq='D', tz='Asia/Kolkata'), '2021-01-05 00:00:00+05:30'),
        (pandas.date_range('2021-01-05', periods=30, freq='250ms'), '2021-01-05 00:00:00.000000'),
    ],
)
def test_dates_are_written_in_one_format(read, days, first):
    table = read(days.map(str))
    (series,) = table.series
    written = date_formats.write(series.dates, series.offsets, table.dates)
    assert written[0] == first and len({len(text) for text in written}) == 1
    assert pandas.Series(pandas.to_datetime(written)).tolist() == list(days)
    assert date_formats.write(
        series.dates[:1], None if series.offsets is None else series.offsets[:1], table.dates
    ) == [
        first  # of the column, not of a part of it
    ]


TEXTS = st.sampled_from(
    ['2020-01-01', '01/02/2020', '13/02/2020', '2020Q1', '2020-W01', '1577836800', '2020-01-01T00:00Z', 'x', '01/02/20']
    + ['2020-01-01 10:00+01:00', 'Jan 2020', '31.12.2020 23:59', '9' * 30, '1e400', '12/31/2020 1:00 PM', '+01:00', 'W']
)
FORMS = st.sampled_from([(None, None), ('%d/%m/%Y', None), ('epoch_ms', BERLIN), ('quarter', 'UTC'), (None, BERLIN)])


@settings(max_examples=80, deadline=None, derandomize=True)
@given(texts=st.lists(TEXTS | st.text(max_size=8), min_size=1, max_size=4), flags=FORMS)
def test_any_column_is_read_or_refused(texts, flags):
    reader = ColumnReader(lambda row: f'row {row}', DateFormat.of_flags(*flags))
    try:
        reader.add_texts(1, texts)
        found, offsets, form = reader.finish()
    except UserError as refused:
        assert 'row ' in str(refused) and '\n' not in str(refused)
    else:
        assert len(found) == len(texts) and not np.isnat(found).any() and form.aware == (offsets is not None)
