"""Tables of numbers in time: what is read, what is refused and in which words; nothing mangled gives a traceback."""

import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqjax.datasets.readers import dates, optional_packages, table_columns, table_sources, tables
from seqjax.datasets.readers.bounds import Bounds
from seqjax.datasets.readers.dates import Frequency
from seqjax.datasets.readers.table_sources import Columns
from seqjax.errors import UserError

pandas = pytest.importorskip('pandas', reason='reads tables: pip install "seqjax[data]"')

DEFAULT = Bounds()
PLAIN = 'day,a,b\n2020-01-01,1.5,7\n2020-01-02,-2e3,8\n2020-01-04,3,9\n'


@pytest.fixture
def read(tmp_path):
    """Text or bytes, and columns -> the table of a file that holds it."""

    def read_(
        content,
        targets=('a',),
        name='x.csv',
        separator=',',
        decimal=None,
        thousands=None,
        mask=False,
        bounds=DEFAULT,
        **columns,
    ):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        how = {'separator': separator, 'decimal': decimal, 'thousands': thousands, 'mask': mask, 'bounds': bounds}
        return tables.read(path, Columns(targets and list(targets), **columns), **how)

    return read_


def test_columns_are_read_as_they_stand(read):
    (series,) = read(PLAIN, ['b', 'a'], date='day').series
    assert series.name is None and series.rows.tolist() == [1, 2, 3]
    assert series.values.tolist() == [[7, 1.5], [8, -2000], [9, 3]]
    assert series.dates.astype(str).tolist() == [f'2020-01-0{day}T00:00:00.000000' for day in (1, 2, 4)]


@pytest.mark.parametrize(
    ('content', 'how'),
    [
        (b'\xef\xbb\xbf' + PLAIN.encode(), {}),
        (PLAIN.replace('\n', '\r\n'), {}),
        (PLAIN + '\n\n\n', {}),
        (PLAIN.removesuffix('\n'), {}),
        (PLAIN.replace(',', '\t'), {'name': 'x.tsv'}),
        (PLAIN.replace(',', ';').replace('.', ','), {'separator': ';', 'decimal': ','}),
        (PLAIN.replace('day', '"the\nday"').replace('2020-01-02', '"2020-01-02"'), {'date': 'the\nday'}),
        (PLAIN.replace(',', ' , '), {}),
        (re.sub(r'(2020-01-0\d)', r'\1T00:00:00+00:00', PLAIN), {}),
    ],
)
def test_ways_to_write_the_same_table(read, content, how):
    (series,) = read(content, **{'date': 'day', 'covariates': ['b'], **how}).series
    assert series.values.tolist() == [[1.5, 7], [-2000, 8], [3, 9]]
    assert series.dates.astype('datetime64[D]').astype(str).tolist() == ['2020-01-01', '2020-01-02', '2020-01-04']


def test_parquet_is_read_as_text_is(tmp_path, read):
    frame = pandas.read_csv(pandas.io.common.StringIO(PLAIN)).assign(who=['y', 'x', 'y'])
    for day in (frame['day'], pandas.to_datetime(frame['day']), pandas.to_datetime(frame['day'], utc=True)):
        frame.assign(day=day).to_parquet(tmp_path / 'x.parquet')
        y, x = tables.read(tmp_path / 'x.parquet', Columns(['a'], ['b'], 'day', 'who')).series
        assert (y.name, y.values.tolist(), y.rows.tolist()) == ('y', [[1.5, 7], [3, 9]], [1, 3])
        assert (x.name, x.values.tolist(), str(x.dates[0])[:10]) == ('x', [[-2000, 8]], '2020-01-02')
    with pytest.raises(UserError, match='y.parquet'):
        read(PLAIN, name='y.parquet')


def test_rows_of_several_series_may_be_mixed_and_their_ids_are_words(read):
    table = read('who,a\nNA,1\n7,2\nNA,3\n', id='who')
    assert [(one.name, one.values[:, 0].tolist(), one.rows.tolist()) for one in table.series] == [
        ('NA', [1, 3], [1, 3]),
        ('7', [2], [2]),
    ]


def test_the_one_column_of_numbers_is_found(read):
    assert read('day,a,note\n2020-01-01,1,x\n', None, date='day').columns.targets == ['a']
    assert read('year,a\n1700,1\n1701,2\n', None, date='year').columns.targets == ['a']


def test_missing_values_stay_missing_where_they_are_masked(read):
    (series,) = read('a,b\n,1\n2,NA\n3,4\n', ['a', 'b'], mask=True).series
    np.testing.assert_array_equal(series.values, [[np.nan, 1], [2, np.nan], [3, 4]])
    (series,) = read('a\n1\n\n3\n\n\n', mask=True).series  # a blank line in a file of one column is a value left out
    np.testing.assert_array_equal(series.values, [[1], [np.nan], [3]])


@pytest.mark.parametrize('text', ['1700', '1700.0', '1700-01-01', '01/01/1700', '17000101'])
def test_dates_are_written_in_many_ways(read, text):
    (series,) = read(f'day,a\n{text},1\n', date='day').series
    assert str(series.dates[0]) == '1700-01-01T00:00:00.000000'


REFUSED = {
    'empty': (b'', {}, 'is empty'),
    'blank': ('\n \n', {}, 'is blank'),
    'binary': (b'a,b\n1,2\n\0\0\1', {}, r'is binary: byte 9 is 0'),
    'utf-16': (PLAIN.encode('utf-16'), {}, 'is not UTF-8 but UTF-16'),
    'latin-1': (b'day,a\n2020-01-01,1\n\xe4,2\n', {'date': 'day'}, 'not UTF-8 in line 3: byte 1 is 0xe4; save it as'),
    'no rows': ('a,b\n', {}, 'has no rows'),
    'blank first line': ('\na,b\n1,2\n', {}, 'starts with a blank line'),
    'no such column': (
        PLAIN.replace('a', 'wind'),
        {'targets': ['wnd']},
        "no column 'wnd' \\(--target\\); did you mean 'wind'",
    ),
    'no header': ('1,2\n3,4\n', {}, "no column 'a' \\(--target\\), and its first line holds numbers"),
    'two of a name': ('a,b,a\n1,2,3\n', {}, "several columns named 'a'"),
    'two targets': ('a,b\n1,2\n', {'targets': None}, "has 2 columns of numbers, 'a', 'b'; .*--target"),
    'no number': ('a,b\nx,y\n', {'targets': None}, 'no unused column of numbers'),
    'two roles': (PLAIN, {'covariates': ['a']}, "--covariates=a has the column 'a', which is also in --target"),
    'text': (PLAIN.replace('3,9', 'three,9'), {}, "row 3, column 'a': 'three' is not a number"),
    'yes and no': ('a\nTrue\nFalse\n', {}, "row 1, column 'a': 'True' is not a number"),
    'decimal comma': ('a;b\n1,5;2\n', {'separator': ';'}, "'1,5' is not a number; use --decimal=','"),
    'decimal point': ('a;b\n1.5;2\n', {'separator': ';', 'decimal': ','}, r"use --decimal='\.'"),
    'semicolons': (PLAIN.replace(',', ';'), {}, "--separator=';'"),
    'tabs': (PLAIN.replace(',', '\t'), {}, "--separator='tab'"),
    'same sign': (PLAIN, {'decimal': ',', 'thousands': ','}, '--decimal=, and --thousands=, must be different'),
    'missing': (
        'a,b\n1,2\n,3\n,4\n',
        {},
        "row 2, column 'a': .*2 missing.*--missing=mask",
    ),
    'cut': ('a,b,c\n1,2,3\n4', {'targets': ['a', 'b']}, "row 2, column 'b': the value is missing"),
    'infinite': ('a\n1\n-inf\n', {'mask': True}, "row 2, column 'a': the value is infinite"),
    'more values': ('a,b\n1,2,3\n4,5,6\n', {}, 'more values than its 2 column names'),
    'one row of more': ('a,b\n1,2\n4,5,6\n', {}, 'is not a table with .*line 3'),
    'open quote': ('a,b\n1,2\n"4,5\n', {}, 'is not a table|not a number'),
    'no id': ('who,a\nx,1\n,2\n', {'id': 'who'}, "row 2, column 'who': the id"),
    'no date': ('day,a\n2020,1\n,2\n', {'date': 'day'}, "row 2, column 'day': the date is missing"),
    'numbers': ('day,a\n0,1\n1,2\n', {'date': 'day'}, "row 1, column 'day': '0' .* leave out --date"),
    'a word': ('day,a\n2020-01-01,1\nsoon,2\n', {'date': 'day'}, "row 2, column 'day': 'soon'"),
    'other order': (
        'day,a\n13/01/2020,1\n01/13/2020,2\n',
        {'date': 'day'},
        "row 2, column 'day': '01/13/2020' .*%d/%m/%Y",
    ),
    'same date': ('day,a\n2020-01-01,1\n2020-01-01,2\n', {'date': 'day'}, 'rows 1 and 2 have the same date 2020-01-01'),
    'unsorted': (
        'day,a\n2020-01-02,1\n2020-01-01,2\n',
        {'date': 'day'},
        'row 2: the date 2020-01-01 is before the date of row 1',
    ),
}


@pytest.mark.parametrize('fault', REFUSED)
def test_a_fault_is_told_in_a_sentence(read, fault):
    content, how, words = REFUSED[fault]
    with pytest.raises(UserError, match=words) as refused:
        read(content, **how)
    assert '\n' not in str(refused.value) and str(refused.value)


def test_a_fault_far_down_is_told_with_its_row(read):
    rows = [f'{row},{row % 7}' for row in range(table_sources.CHUNK + 9)]
    rows[table_sources.CHUNK + 5] = '1,x'
    with pytest.raises(UserError, match=f'row {table_sources.CHUNK + 6}, '):
        read('\n'.join(['b,a', *rows]))


def test_a_file_that_is_not_there_or_a_folder(tmp_path):
    for path in (tmp_path / 'none.csv', tmp_path, tmp_path / 'none.parquet'):
        with pytest.raises(UserError, match=path.name):
            tables.read(path, Columns(['a']))


def test_a_wide_table_is_read_by_the_columns_that_are_asked_for(read):
    wide = ','.join(f'c{i}' for i in range(3000)) + '\n' + ','.join(map(str, range(3000))) + '\n'
    assert read(wide, ['c2999', 'c5']).series[0].values.tolist() == [[2999, 5]]


def test_reading_takes_no_more_than_twice_the_file(tmp_path):
    """A date, a value and two covariates; what pandas itself holds of a part of the rows is within it."""
    count = 300_000
    rng = np.random.default_rng(0)
    days = pandas.date_range('2000-01-01', periods=count, freq='min').astype(str)
    frame = pandas.DataFrame({'day': days, **{name: rng.normal(size=count).round(5) for name in 'abc'}})
    frame.to_csv(tmp_path / 'x.csv', index=False)
    tables.read(tmp_path / 'x.csv', Columns(['a'], date='day'))  # imports
    tracemalloc.start()
    table = tables.read(tmp_path / 'x.csv', Columns(['a'], ['b', 'c'], 'day'))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(table.series[0].values) == count
    assert peak < 2.2 * (tmp_path / 'x.csv').stat().st_size


# --- whatever the bytes ----------------------------------------------------------------------------

CELLS = st.sampled_from(
    ['1', '-2.5', '1,5', '1e400', 'x', '', ' ', 'NA', 'nan', '"a\nb"', '"', "'", '2020-01-01', '2020-13-01', '1' * 400]
    + ['é', '\ufeff', '\0', 'True', '0x10', '=1+1', '1_000', '٣']
)
ROWS = st.lists(st.lists(CELLS, min_size=1, max_size=4), max_size=5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=ROWS, separator=st.sampled_from(',;\t'), end=st.sampled_from(['\n', '\r\n', '\r']), cut=st.integers(0, 12))
def test_any_table_is_read_or_refused(tmp_path_factory, rows, separator, end, cut):
    text = end.join(separator.join(row) for row in [['a', 'b', 'day'], *rows]).encode()
    check(tmp_path_factory, text[: len(text) - cut])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(content=st.binary(max_size=60), lead=st.sampled_from([b'', b'a\n', b'a,b\n1,2\n', b'PAR1', b'\xff\xfe']))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content, lead):
    check(tmp_path_factory, lead + content)


def check(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp()
    for name, columns in (
        ('x.csv', Columns(['a'], ['b'])),
        ('x.csv', Columns(['a'], (), 'day', 'b')),
        ('y.csv', Columns(None)),
    ):
        (folder / name).write_bytes(content)
        try:
            table = tables.read(folder / name, columns, mask=True)
        except UserError as refused:
            assert '\n' not in str(refused)
        else:
            assert table.series and not any(np.isinf(one.values).any() for one in table.series)


# --- dates, and files of packages ------------------------------------------------------------------


@pytest.mark.parametrize(
    ('frequency', 'words'),
    [('YS', '1 year'), ('MS', '1 month'), ('ME', '1 month'), ('QE', '3 month'), ('B', '1 weekday'), ('W', '7 day')]
    + [('D', '1 day'), ('15min', '15 minute'), ('2h', '2 hour'), ('7s', '7 second'), ('250us', '250 microseconds')],
)
def test_dates_go_on_at_their_pace(frequency, words):
    found = pandas.date_range('2021-12-31', periods=40, freq=frequency).to_numpy().astype(dates.MICRO)
    frequency = dates.infer_frequency(found[:30])
    assert words in frequency.words()
    assert frequency.after(found[29], 10).astype(dates.MICRO).tolist() == found[30:].tolist()
    assert not len(dates.gaps(found, frequency))
    assert dates.gaps(np.delete(found, 12), frequency).tolist() == [11]


def test_the_weekday_after_a_weekend_is_a_monday():
    after = Frequency('weekdays', 1).after(np.datetime64('2021-01-02T06', 'us'), 2)
    assert after.astype('datetime64[h]').astype(str).tolist() == ['2021-01-04T06', '2021-01-05T06']


def test_the_31st_of_a_shorter_month_is_its_last_day():
    assert Frequency('months', 1).after(np.datetime64('2021-12-31', 'us'), 2).astype(str).tolist() == [
        '2022-01-31T00:00:00.000000',
        '2022-02-28T00:00:00.000000',
    ]


def test_a_file_in_a_package_is_named_by_both(tmp_path, monkeypatch):
    assert (
        optional_packages.locate('seqjax:datasets/readers/optional_packages.py').read_text().startswith('"""Optional')
    )
    assert optional_packages.locate('some/where.csv').parts == ('some', 'where.csv')
    assert optional_packages.locate(r'C:\x.csv').name.endswith('x.csv')
    for path, words in (('nopackage_:x.csv', 'nopackage_'), ('seqjax:x.csv', 'x.csv')):
        with pytest.raises(UserError, match=words):
            optional_packages.locate(path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'seqjax:x.csv').write_text('a\n1\n')
    assert optional_packages.locate('seqjax:x.csv').read_text() == 'a\n1\n'


def test_a_library_that_is_missing_is_told_with_its_remedy():
    with pytest.raises(UserError, match=r'x.csv.*nolibrary_.*seqjax\[data\]'):
        optional_packages.need('nolibrary_.part', 'x.csv')


# --- files that are larger than they look ----------------------------------------------------------


def run_lengths(path, rows, columns=2):
    """A parquet file of a few kilobytes that has so many rows, all the same."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({f'c{i}': pyarrow.array(np.ones(2**20)) for i in range(columns)})
    with parquet.ParquetWriter(path, table.schema, compression='zstd') as writer:
        for _ in range(rows // 2**20):
            writer.write_table(table)


def test_a_parquet_file_that_expands_is_refused_before_it_is_read(tmp_path):
    pytest.importorskip('pyarrow')
    run_lengths(tmp_path / 'x.parquet', 2**22)
    assert (tmp_path / 'x.parquet').stat().st_size < 2**16
    tracemalloc.start()
    with pytest.raises(UserError, match='x.parquet.*--max_bytes'):
        tables.read(tmp_path / 'x.parquet', Columns(['c0'], ['c1']), bounds=Bounds(bytes=2**26 - 1))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    table = tables.read(tmp_path / 'x.parquet', Columns(['c0']), bounds=Bounds(bytes=2**25))  # the half of it
    assert len(table.series[0].rows) == 2**22


@pytest.mark.parametrize('end', ['\n', '\r\n', '\r', ''])
def test_the_columns_of_a_text_are_counted_before_it_is_parsed(read, end):
    names = [f'c{i}' for i in range(20_000)]
    with pytest.raises(UserError, match='x.csv.*--max_columns=20000'):
        read(','.join(names) + end + '1')
    content = end.join(['"a,\n""b",c,d', '1,2,3']) if end else None
    if content:
        how = {'targets': ['c'], 'bounds': Bounds(3)}
        assert read(content, **how).series[0].values.tolist() == [[2]]
        with pytest.raises(UserError, match='--max_columns=3'):
            read(content, **how | {'bounds': Bounds(2)})


def test_a_text_or_a_parquet_file_of_more_columns_or_bytes_is_refused(read, tmp_path):
    pytest.importorskip('pyarrow')
    with pytest.raises(UserError, match='--max_bytes'):
        read('a\n1\n', bounds=Bounds(bytes=3))
    assert read('a\n1\n', bounds=Bounds(bytes=4)).series[0].values.tolist() == [[1]]
    pandas.DataFrame({f'c{i}': [1.0] for i in range(30)}).to_parquet(tmp_path / 'y.parquet')
    with pytest.raises(UserError, match='y.parquet.*--max_columns=30'):
        tables.read(tmp_path / 'y.parquet', Columns(['c1']), bounds=Bounds(29))
    assert tables.read(tmp_path / 'y.parquet', Columns(['c1']), bounds=Bounds(30)).series[0].values.tolist() == [[1]]


def test_many_columns_of_one_name_are_refused_at_once(tmp_path):
    with pytest.raises(UserError, match="'a'"):
        table_columns.check_names(tmp_path, ['a'] * 90_000)
