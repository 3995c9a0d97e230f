"""Files of the UCR and UEA archive: what is read, that sktime reads the same, and what is told of mangled files."""

import tracemalloc

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from seqjax.datasets.readers import optional_packages, ts_format
from seqjax.datasets.readers.bounds import Bounds
from seqjax.errors import UserError

HEAD = '@problemName x\n@timeStamps false\n@univariate false\n@dimensions 2\n@classLabel true left Right\n@data\n'
GOOD = HEAD + '1.5,2,?:4,-5e1,nan:Right\n\n# a remark\n.25:8:left\n7,8:inf,9:?\n'


def read(folder, text, encoding='utf-8'):
    file = folder / 'x.ts'
    file.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return ts_format.read_series(file)


def check_good(series):
    nan, inf = np.nan, np.inf
    want = np.array([[1.5, 4], [2, -50], [nan, nan], [0.25, 8], [7, inf], [8, 9]], np.float32)
    np.testing.assert_array_equal(series.values, want)
    assert series.values.dtype == np.float32
    assert series.lengths.tolist() == [3, 1, 2] and series.labels.tolist() == [1, 0, ts_format.UNKNOWN]
    assert series.classes == ('left', 'Right')


def test_lengths_channels_missing_values_and_unknown_classes(tmp_path):
    check_good(read(tmp_path, GOOD))


@pytest.mark.parametrize(
    'change',
    [
        lambda text: '\ufeff' + text,
        lambda text: text.replace('\n', '\r\n'),
        lambda text: text.replace('\n', '\r'),
        lambda text: text.replace('@classLabel', '@CLASSLABEL').replace('@data', '@DATA'),
        lambda text: text.replace(':Right', ': RIGHT ').replace(',', ' , '),
        lambda text: text.rstrip('\n'),
        lambda text: text.replace('@dimensions 2\n', ''),
        lambda text: '# Caf\xe9\n'.encode('latin-1') + text.encode(),
    ],
    ids=['BOM', 'CRLF', 'CR', 'capitals', 'spaces', 'no last newline', 'no @dimensions', 'remark in another encoding'],
)
def test_what_changes_nothing(tmp_path, change):
    check_good(read(tmp_path, change(GOOD)))


def test_a_file_without_classes_says_so(tmp_path):
    series = read(tmp_path, '@univariate true\n@classLabel false\n@data\n1,2\n3\n')
    assert (
        series.classes == () and series.labels.tolist() == [ts_format.UNKNOWN] * 2 and series.lengths.tolist() == [2, 1]
    )


ROW = '1,2:3,4:left\n'
FAULTS = {
    'empty': ('', '@data'),
    'binary': (bytes(range(256)), 'x.ts'),
    'gzip': (b'\x1f\x8b\x08\x08\xff\xfe\n', 'x.ts'),
    'UTF-16': (GOOD.encode('utf-16'), 'x.ts'),
    'Latin-1': (HEAD.replace('left', 'lëft').encode('latin-1') + b'1:2:right\n', 'line 5'),
    'CSV': ('a,b\n1,2\n', 'line 1'),
    'no @data': (HEAD.replace('@data\n', '') + ROW, 'line 6'),
    'cut in the head': (HEAD[:60], '@data'),
    'cut after the head': (HEAD, '@data'),
    'cut in a class': (HEAD + '1,2:3,4:le', "'le'"),
    'cut in a channel': (HEAD + ROW + '1,2:3,', 'line 8'),
    'a channel too few': (HEAD + '1,2:left\n', 'line 7'),
    'a channel too many': (HEAD.replace('@dimensions 2\n', '') + ROW + '1:2:3:left', '3 channels'),
    'unequal channels': (HEAD + '1,2:3,4,5:left\n', 'channel 2'),
    'no number': (HEAD + ROW + '1,2:3,4x:left\n', "'4x'"),
    'nothing between commas': (HEAD + '1,,3:4,5,6:left\n', 'step 2 of channel 1'),
    'semicolons': (HEAD + '1,5;2,5:1,5;2,5:left\n', "'5;2'"),
    'length 0': (HEAD + '::left\n', 'channel 1'),
    'one channel of length 0': (HEAD + '1::left\n', 'channel 2'),
    'no class': (HEAD + '1:2:\n', 'x.ts'),
    'regression': (HEAD.replace('@classLabel true left Right', '@targetLabel true') + '1:2:0.5', 'x.ts'),
    'time stamps': (HEAD.replace('@timeStamps false', '@timeStamps true') + ROW, 'x.ts'),
    'no @classLabel': (HEAD.replace('@classLabel true left Right\n', '') + ROW, '@classLabel'),
    'no classes in it': (HEAD.replace(' left Right', '') + ROW, 'x.ts'),
    'no true or false': (HEAD.replace('true', 'yes') + ROW, "@classlabel 'yes'"),
    'no number after @dimension': (HEAD.replace('@dimensions 2', '@dimension') + ROW, "@dimension ''"),
    'no number after @dimensions': (HEAD.replace('@dimensions 2', '@dimensions') + ROW, "@dimensions ''"),
    'two channels in a univariate file': ('@univariate true\n@classLabel false\n@data\n1:2\n', '@univariate or'),
    'no channels': (HEAD.replace('@dimensions 2', '@dimensions 0') + ROW, "@dimensions '0'"),
    'very long word': (HEAD + 'x' * 10_000 + ':1:left', "has '" + 'x' * 40 + "...' at step 1"),
}


@pytest.mark.parametrize('text, words', FAULTS.values(), ids=FAULTS)
def test_faults_are_told_in_one_sentence(tmp_path, text, words):
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    sentence = str(caught.value)
    assert words in sentence and 'x.ts' in sentence and '\n' not in sentence and len(sentence) < 400, sentence


def test_a_file_that_is_not_there_or_a_folder(tmp_path):
    for path in (tmp_path, tmp_path / 'none.ts'):
        with pytest.raises(UserError, match=path.name):
            ts_format.read_series(path)


@pytest.mark.parametrize('name', ['BasicMotions_TEST', 'PLAID_TRAIN', 'UnitTest_TRAIN'])
def test_sktime_reads_the_same(name):
    pytest.importorskip('sktime')
    from sktime.datasets import load_from_tsfile_to_dataframe

    file = optional_packages.locate(f'sktime:datasets/data/{name.split("_")[0]}/{name}.ts')
    frame, classes = load_from_tsfile_to_dataframe(str(file))
    series = ts_format.read_series(file)
    assert [series.classes[label].lower() for label in series.labels] == classes.tolist()
    assert series.lengths.tolist() == [len(x) for x in frame['dim_0']]
    for channel in range(frame.shape[1]):
        want = np.concatenate(list(frame[f'dim_{channel}'])).astype(np.float32)
        np.testing.assert_array_equal(series.values[:, channel], want)


def test_reading_takes_at_most_about_twice_the_size_of_the_file(tmp_path):
    """Short numbers are the worst: two bytes in the file, four in memory."""
    rows = '1,2,3,4,5,6,7,8,9,1,2,3:1,2,3,4,5,6,7,8,9,1,2,3:left\n' * 5000
    file = tmp_path / 'x.ts'
    file.write_text(HEAD + rows)
    tracemalloc.start()
    series = ts_format.read_series(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(series.lengths) == 5000 and peak < 2.8 * file.stat().st_size


PIECES = st.sampled_from(
    [
        '1',
        '2.5',
        ',',
        ':',
        '\n',
        '?',
        'left',
        'Right',
        '@data',
        '\r',
        '#',
        ' ',
        'nan',
        '"',
        '\ufeff',
        'é',
        '\0',
        ';',
        '-',
    ]
)
FUZZ = hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)


def read_or_refuse(folder, content):
    """A result that is whole, or one sentence."""
    try:
        series = read(folder, content)
    except UserError as error:
        assert 'x.ts' in str(error)
        return
    count = len(series.lengths)
    assert count and len(series.labels) == count and series.lengths.min() >= 1
    assert series.lengths.sum() == len(series.values) and series.labels.max() < max(1, len(series.classes))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('fuzz')


@FUZZ
@hypothesis.given(pieces=st.lists(PIECES, max_size=20))
def test_any_text_behind_the_head_is_read_or_refused(folder, pieces):
    read_or_refuse(folder, HEAD + ''.join(pieces))


@FUZZ
@hypothesis.given(data=st.data())
def test_a_file_cut_anywhere_or_with_other_bytes_is_read_or_refused(folder, data):
    content = bytearray(GOOD.encode())
    stop = data.draw(st.integers(0, len(content)))
    for place, byte in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=3)
    ):
        content[place] = byte
    read_or_refuse(folder, bytes(content[:stop]))


@FUZZ
@hypothesis.given(
    rows=st.lists(
        st.tuples(
            st.lists(st.tuples(*[st.floats(width=32, allow_nan=False)] * 2), min_size=1, max_size=4),
            st.sampled_from(['left', 'Right', '?']),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_what_is_written_is_read_back(folder, rows):
    lines = [
        ':'.join([*(','.join(map(repr, channel)) for channel in zip(*steps, strict=True)), word])
        for steps, word in rows
    ]
    series = read(folder, HEAD + '\n'.join(lines))
    np.testing.assert_array_equal(series.values, np.array([step for steps, _ in rows for step in steps], np.float32))
    assert series.labels.tolist() == [{'left': 0, 'Right': 1, '?': ts_format.UNKNOWN}[word] for _, word in rows]


CLASSES = '@univariate true\n@classLabel true {}\n@data\n'


@pytest.mark.parametrize(
    'declared, words, classes, labels',
    [
        ('A a b', 'A a b a', ('A', 'a', 'b'), [0, 1, 2, 1]),
        ('Left left RIGHT', 'left Left RIGHT', ('Left', 'left', 'RIGHT'), [1, 0, 2]),
        ('ß ss', 'ss ß', ('ß', 'ss'), [1, 0]),
        ('left Right', 'LEFT right', ('left', 'Right'), [0, 1]),
        ('1.0 1 01', '1 01 1.0', ('1.0', '1', '01'), [1, 2, 0]),
        ('10 9 2', '2 9 10', ('10', '9', '2'), [2, 1, 0]),
        ('caf\u00e9 b', 'cafe\u0301 b', ('caf\u00e9', 'b'), [0, 1]),
        ('cafe\u0301 Cafe\u0301', 'caf\u00e9 Caf\u00e9', ('cafe\u0301', 'Cafe\u0301'), [0, 1]),
        ('caf\u00e9 cafe\u0301', 'cafe\u0301 caf\u00e9', ('caf\u00e9', 'cafe\u0301'), [1, 0]),
        ('"up hill" \'to go\' "b"', 'up_hill "up_hill" to_go "b"', ('up hill', 'to go', '"b"'), [0, 0, 1, 2]),
        ("'tis don't", "don't 'tis", ("'tis", "don't"), [1, 0]),
        ('? a', 'a ?', ('?', 'a'), [1, 0]),
        ('a b', '? b', ('a', 'b'), [ts_format.UNKNOWN, 1]),
    ],
)
def test_names_of_classes_are_kept_apart(tmp_path, declared, words, classes, labels):
    """Upper case and Unicode's forms are folded only if no two names become one; spaces are written here as _."""
    rows = ''.join(f'{i},2:{word.replace("_", " ")}\n' for i, word in enumerate(words.split()))
    series = read(tmp_path, CLASSES.format(declared) + rows)
    assert series.classes == classes and series.labels.tolist() == labels


@pytest.mark.parametrize('declared, word', [('A a b', 'B'), ('1 2', '1.0'), ('01 2', '1'), ('1 2', '1 2'), ('a b', '')])
def test_a_name_that_is_not_declared_is_shown_beside_those_that_are(tmp_path, declared, word):
    with pytest.raises(UserError, match=f"line 4.*'{word}'.*'{declared.split()[0]}'"):
        read(tmp_path, CLASSES.format(declared) + f'1,2:{word}\n')


SMALL = Bounds(columns=5, bytes=4000)


@pytest.mark.parametrize(
    'text, words',
    [
        (HEAD.replace('@dimensions 2\n', '') + '1:' * 6 + 'left\n', 'line 6.*--max_columns'),
        (HEAD.replace('@dimensions 2', '@dimensions 900000000') + '1:2:left\n', 'x.ts.*--max_columns'),
        (HEAD.replace('true left Right', 'false') + '1:' * 100 + '1\n', 'line 7.*--max_columns'),
        (HEAD + '1,' * 300 + '1:2:left\n', 'line 7 .*--max_bytes'),
        (HEAD + '1:2:left\n' * 500, 'x.ts.*--max_bytes'),
        (HEAD + ('1,' * 100 + '1:' + '1,' * 100 + '1:left\n') * 6, 'line 11 .*--max_bytes'),
    ],
)
def test_what_is_too_large_is_refused_before_it_is_taken_apart(tmp_path, text, words):
    (tmp_path / 'x.ts').write_text(text)
    with pytest.raises(UserError, match=words):
        ts_format.read_series(tmp_path / 'x.ts', SMALL)


def test_the_limits_can_be_lifted(tmp_path):
    (tmp_path / 'x.ts').write_text(HEAD.replace('@dimensions 2\n', '') + '1:' * 6 + 'left\n')
    assert ts_format.read_series(tmp_path / 'x.ts', SMALL._replace(columns=6)).values.shape == (1, 6)


@pytest.mark.parametrize('end', ['', ',', 'x,', '?', ',,'])
def test_a_long_line_is_read_piece_by_piece(tmp_path, monkeypatch, end):
    monkeypatch.setattr(ts_format, 'PIECE', 16)
    values = np.random.RandomState(0).normal(size=(2, 99)).astype(np.float32)
    one, two = (','.join(f'{x:.9g}' for x in channel) for channel in values)
    if end in ('', '?'):
        series = read(tmp_path, f'{HEAD}{one}{"," + end if end else ""}:{two}{",7" if end else ""}:left\n')
        np.testing.assert_array_equal(series.values[:99], values.T)
        assert series.lengths.tolist() == [99 + bool(end)]
    else:
        more = ',' + end
        with pytest.raises(UserError, match=f"line 7.*'{'x' if 'x' in end else ''}'.*step 100 of channel 2"):
            read(tmp_path, f'{HEAD}{one}{",1" * more.count(",")}:{two}{more}:left\n')
