"""Numbers written as text: what is read, what is refused, and that a word means the same alone and in a file."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqjax.datasets.readers import numbers, table_sources, tables
from seqjax.datasets.readers.numbers import InvalidNumberError, NumberFormat
from seqjax.datasets.readers.table_sources import Columns
from seqjax.errors import UserError

pandas = pytest.importorskip('pandas', reason='reads tables: pip install "seqjax[data]"')

POINT, COMMA = NumberFormat('.'), NumberFormat(',')
ENGLISH, GERMAN = NumberFormat('.', ','), NumberFormat(',', '.')
FRENCH, SWISS = NumberFormat(',', 'space'), NumberFormat('.', "'")

READ = [
    ('950', POINT, 950),
    ('-1.5', POINT, -1.5),
    ('+.5', POINT, 0.5),
    ('5.', POINT, 5),
    (' 1e-3 ', POINT, 0.001),
    ('1.473', POINT, 1.473),
    ('007', POINT, 7),
    ('10,5', COMMA, 10.5),
    ('1,473', COMMA, 1.473),
    ('1,5e3', COMMA, 1500),
    ('1,473', ENGLISH, 1473),
    ('-1,234.5', ENGLISH, -1234.5),
    ('1,234,567', ENGLISH, 1_234_567),
    ('12,34,567', ENGLISH, 1_234_567),
    ('1,23,45,678.25', ENGLISH, 12_345_678.25),
    ('1234.5', ENGLISH, 1234.5),
    ('1.234,56', GERMAN, 1234.56),
    ('1.234.567', GERMAN, 1_234_567),
    ('0,473', GERMAN, 0.473),
    ('1 234', FRENCH, 1234),
    ('1\u00a0234\u00a0567,5', FRENCH, 1_234_567.5),
    ('-1\u202f234', FRENCH, -1234),
    ("1'234.5", SWISS, 1234.5),
    ('1\u2019234', SWISS, 1234),
    ('NA', POINT, math.nan),
    ('', ENGLISH, math.nan),
    ('-nan', POINT, math.nan),
]


@pytest.mark.parametrize(('word', 'format', 'value'), READ)
def test_a_word_is_read_as_what_it_stands_for(word, format, value):
    np.testing.assert_equal(numbers.parse_number(word, format), value)
    np.testing.assert_equal(numbers.parse_column(['1', word, '2'], format), [1, value, 2])


REFUSED = [
    ('1,473', POINT),
    ('1.5', COMMA),
    ('1,23', ENGLISH),
    ('0,123', ENGLISH),
    ('1234,567', ENGLISH),
    ('1,234,56', ENGLISH),
    (',234', ENGLISH),
    ('1.234.56', GERMAN),
    ('1,234', FRENCH._replace(decimal='.')),
    ('1  234', FRENCH),
    ('(1,234)', ENGLISH),
    ('\u22125', POINT),
    ('5 %', POINT),
    ('$5', POINT),
    ('5\u20ac', POINT),
    ('5 EUR', POINT),
    ('1_000', POINT),
    ('\u0663', POINT),
    ('\uff11', POINT),
    ('inf', POINT),
    ('-Infinity', POINT),
    ('1e999', POINT),
    ('0x10', POINT),
    ('1e', POINT),
    ('.', POINT),
    ('1 2', POINT),
    ('1\n2', POINT),
    ('1.2.3', POINT),
    ('1.473', NumberFormat(seen=numbers.WHOLE)),
    ('950', NumberFormat(seen=numbers.GROUPED)),
]


@pytest.mark.parametrize(('word', 'format'), REFUSED)
def test_a_word_that_is_no_number_is_refused(word, format):
    with pytest.raises(UserError):
        numbers.parse_number(word, format)
    with pytest.raises(InvalidNumberError) as refused:
        numbers.parse_column(['', word, 'x'], format)
    assert (refused.value.place, refused.value.word) == (1, word)


def test_a_word_of_another_kind_settles_an_open_format():
    assert numbers.parse_number('1.5', NumberFormat(seen=numbers.WHOLE)) == 1.5
    assert (
        numbers.parse_number('1.473', NumberFormat(seen=''))
        == numbers.parse_number('1.473', NumberFormat(seen=numbers.GROUPED))
        == 1.473
    )


# --- columns of files ------------------------------------------------------------------------------


@pytest.fixture
def read(tmp_path):
    """Words of a column -> its values, read from a file with a second column."""

    def read_(words, separator=';', mask=True, rest='1', covariates=(), **how):
        rows = [f'"{word}"{separator}{rest}' for word in words]
        (tmp_path / 'x.csv').write_text('\n'.join([f'a{separator}b', *rows]) + '\n')
        return tables.read(tmp_path / 'x.csv', Columns(['a'], covariates), separator=separator, mask=mask, **how)

    return read_


def values(table):
    return table.series[0].values[:, 0].tolist()


@pytest.mark.parametrize('decimal', ['.', ','])
def test_a_number_of_many_digits_is_the_nearest_float_in_a_file_and_alone(read, decimal):
    rng = np.random.default_rng(0)
    words = [repr(x) for x in rng.normal(size=500).tolist()] + ['1e-300', '-2.5E+20', '0.1', '123456789012345678.5']
    words += [
        '0.000000000001234567',
        '-0.00000000000000000000957',
        '9007199254740993',
        '00.023540169428153880914',
        '0e999',
    ]
    words += [
        f'{x * 10.0**power:.17e}' for x, power in zip(rng.normal(size=500), rng.integers(-290, 290, 500), strict=True)
    ]
    expected = [float(word) for word in words]
    words = [word.replace('.', decimal) for word in words]
    assert values(read(words, decimal=decimal)) == expected
    assert numbers.parse_column(words, NumberFormat(decimal)).tolist() == expected
    assert [numbers.parse_number(word, NumberFormat(decimal)) for word in words] == expected


@pytest.mark.parametrize(
    ('words', 'rows'),
    [
        (['940', '985', '1.000', '1.015'], 'row 3.*row 1'),
        (['1.473', '950'], 'row 1.*row 2'),
        (['12.375', '', '3'], 'row 1.*row 3'),
        (['-1.473', '0'], 'row 1.*row 2'),
        (['1500', '12.500'], 'row 2.*row 1'),
        (['1.000', '2', '3'], 'row 1.*row 2'),
        (['5'] * 3000 + ['1.473'], 'row 3001.*row 1'),
        (['1.473'] * 3000 + ['5'], 'row 1.*row 3001'),
    ],
)
def test_groups_beside_whole_numbers_are_asked_for(read, words, rows, monkeypatch):
    """However the file is divided: the two kinds of numbers may lie in different parts of it."""
    for chunk in (2**16, 2 if len(words) < 50 else 999):
        monkeypatch.setattr(table_sources, 'CHUNK', chunk)
        with pytest.raises(UserError, match=f"{rows}.*--thousands='\\.' .*--decimal='\\.' "):
            read(words)
    known = [float(word) if word else math.nan for word in words]
    np.testing.assert_equal(values(read(words, decimal='.')), known)
    grouped = [float(word.replace('.', '')) if word else math.nan for word in words]
    np.testing.assert_equal(values(read(words, thousands='.')), grouped)


@pytest.mark.parametrize(
    'words',
    [
        ['0.473', '1.473', '950'],
        ['.473', '1.473', '950'],
        ['1.473', '950', '1.5'],
        ['1.4730', '950'],
        ['1473.250', '950'],
        ['1.473', '2.512', '12.375'],
        ['1.500', '12.375', ''],
        ['1.473', '950.0'],
        ['0.000', '1.473', '950'],
        ['1.473', '950', *['7'] * 3000, '0.25'],
        ['950', '1473', ''],
        ['1.4e-3', '950'],
        ['1e3', '950'],
    ],
)
def test_plain_decimals_need_no_flag(read, words, monkeypatch):
    for chunk in (2**16, 2 if len(words) < 50 else 999):
        monkeypatch.setattr(table_sources, 'CHUNK', chunk)
        np.testing.assert_equal(values(read(words)), [float(word) if word else math.nan for word in words])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(
        st.sampled_from(
            ['1.473', '12.500', '-999.999', '1.000', '950', '7', '1500', '', '20.5', '0.473', '0', '0.000']
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([1, 3, 2**16]),
)
def test_what_is_asked_for_follows_from_all_words_of_a_column(tmp_path_factory, words, chunk):
    kinds = {
        ''
        if not word
        else numbers.WHOLE
        if '.' not in word
        else numbers.GROUPED
        if word[-4] == '.' and word[0] != '0'
        else numbers.CERTAIN
        for word in words
    } - {''}
    path = tmp_path_factory.getbasetemp() / 'kinds.csv'
    path.write_text('\n'.join(['a,b', *(f'{word},x' for word in words)]) + '\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_sources, 'CHUNK', chunk)
        try:
            format = tables.read(path, Columns(['a']), mask=True).formats['a']
        except UserError:
            assert kinds == {numbers.WHOLE, numbers.GROUPED}
        else:
            assert kinds != {numbers.WHOLE, numbers.GROUPED}
            assert format.seen == (None if numbers.CERTAIN in kinds else next(iter(kinds), ''))


@pytest.mark.parametrize(
    ('words', 'rest', 'remedies'),
    [
        (['940', '1,000'], '1', [({'thousands': ','}, [940, 1000]), ({'decimal': ','}, [940, 1])]),
        (['940', '1,000'], '2.5', [({'thousands': ','}, [940, 1000])]),
        (['940', '1,000'], '2,5', [({'decimal': ','}, [940, 1])]),
        (['10,5', '11'], '1', [({'decimal': ','}, [10.5, 11])]),
        (['1.234,5', '950'], '1', [({'decimal': ',', 'thousands': '.'}, [1234.5, 950])]),
        (['1,234.5', '950'], '1', [({'thousands': ','}, [1234.5, 950])]),
        (['1,234,567', '950'], '1', [({'thousands': ','}, [1_234_567, 950])]),
        (['1 234', '950'], '1', [({'thousands': 'space'}, [1234, 950])]),
        (['1\u202f234,5', '950'], '1', [({'decimal': ',', 'thousands': 'space'}, [1234.5, 950])]),
        (["1'234.5", '950'], '1', [({'thousands': "'"}, [1234.5, 950])]),
        (['1,0', '1.0'], '1', []),
        (['1,473', 'x'], '1', []),
        (['1,473', '7'], 'x', []),
        (['$5', '950'], '1', []),
    ],
)
def test_flags_that_a_message_names_were_tried_on_the_file(read, words, rest, remedies):
    how = {'rest': rest, 'covariates': ['b']}
    with pytest.raises(UserError, match="row [12].*'[ab]'") as refused:
        read(words, **how)
    flags = [numbers.flags(numbers.format_of(**{'decimal': None, 'thousands': None, **signs})) for signs, _ in remedies]
    assert all(flag in str(refused.value) for flag in flags)
    assert str(refused.value).count('--') == sum(len(signs) for signs, _ in remedies)
    for signs, expected in remedies:
        assert values(read(words, **how, **signs)) == expected


def test_a_quoted_decimal_comma_may_be_the_separator_too(read):
    assert values(read(['10,5', '11,5', '12'], ',', decimal=',')) == [10.5, 11.5, 12]
    assert values(read(['1,473', '950'], ',', thousands=',')) == [1473, 950]
    with pytest.raises(UserError, match="--decimal=','"):
        read(['10,5', '11,5'], ',')


@pytest.mark.parametrize(('decimal', 'thousands'), [('.', '.'), (',', ',')])
def test_the_same_sign_cannot_separate_thousands_and_decimals(read, decimal, thousands):
    with pytest.raises(UserError, match='--thousands'):
        read(['1'], decimal=decimal, thousands=thousands)


def test_the_target_is_found_where_its_numbers_have_thousands_signs(tmp_path):
    (tmp_path / 'x.csv').write_text('note;a;b\nx;1,473;2\ny;950;3\n')
    how = {'separator': ';', 'thousands': ','}
    assert values(tables.read(tmp_path / 'x.csv', Columns(None, ['b']), **how)) == [1473, 950]
    with pytest.raises(UserError, match="'a', 'b'"):
        tables.read(tmp_path / 'x.csv', Columns(None), **how)
    with pytest.raises(UserError, match="'a'.*--thousands=','"):
        tables.read(tmp_path / 'x.csv', Columns(None, ['b']), separator=';')


def test_text_in_parquet_follows_the_same_rules(tmp_path):
    pytest.importorskip('pyarrow')
    path = tmp_path / 'x.parquet'
    pandas.DataFrame({'a': ['1.473', '950', None], 'b': [1.473, 950, 2]}).to_parquet(path)
    with pytest.raises(UserError, match="row 1.*'a'.*--thousands"):
        tables.read(path, Columns(['a'], ['b']), mask=True)
    table = tables.read(path, Columns(['a'], ['b']), mask=True, thousands='.')
    np.testing.assert_equal(table.series[0].values, [[1473, 1.473], [950, 950], [np.nan, 2]])
    assert values(tables.read(path, Columns(['b']))) == [1.473, 950, 2]  # numbers of the file are not ambiguous


@pytest.mark.parametrize(
    ('trained', 'later', 'refused'),
    [
        (['1473', '950'], ['1.473', '950'], True),
        (['1473', '950'], ['1.473', '1.512'], True),
        (['1473', '950'], ['1.5', '950'], False),
        (['1.473', '1.512'], ['950', '1.473'], True),
        (['1.473', '1.512'], ['950'], True),
        (['1.473', '1.512'], ['1.250'], False),
        (['1.5', '2'], ['1.473', '950'], False),
        (['0.473', '2'], ['7', '8'], False),
    ],
)
def test_a_later_file_is_read_as_that_of_the_training_or_refused(read, trained, later, refused):
    formats = read(trained).formats
    if refused:
        with pytest.raises(UserError, match="'a'"):
            read(later, formats=formats)
        words = zip(later, itertools.repeat(formats['a']))
        with pytest.raises(UserError):
            [numbers.parse_number(*pair) for pair in words]
    else:
        table = read(later, formats=formats)
        assert values(table) == [float(word) for word in later]


def test_a_later_file_in_another_format_is_refused_with_that_of_the_training(read):
    formats = read(['1.234,5', '950'], decimal=',', thousands='.').formats
    assert values(read(['2.000', '3,5'], formats=formats)) == [2000, 3.5]
    with pytest.raises(UserError, match="'1234.5'.*','.*'.'"):
        read(['1234.5'], formats=formats)


@pytest.mark.parametrize(
    ('thousands', 'trained', 'swapped', 'plain'),
    [
        (',', ['1,473', '950'], ['1.473', '950'], ['12,473', '951.25']),
        (',', ['1,473', '950'], ['-1.473', '2.000'], ['950']),
        ('.', ['1.473', '950'], ['1,473', '950'], ['1.473.000', '0,5']),
        ('space', ['1 473', ''], ['950', '+1.473'], ['1 473.123']),
        ("'", ['950'], ['100'] * 1500 + ['1.473'], ["1'473"] * 1500 + ['1.473', '0.5']),
    ],
)
def test_a_later_file_with_the_signs_the_other_way_round_is_refused(read, thousands, trained, swapped, plain):
    formats = read(trained, thousands=thousands).formats
    with pytest.raises(UserError, match="'a'"):
        read(swapped, formats=formats)
    word = next(
        word for word in swapped if not numbers.parse_number(word, formats['a']._replace(seen=None)).is_integer()
    )
    with pytest.raises(UserError):
        numbers.parse_number(word, formats['a'])
    assert values(read(plain, formats=formats)) == values(read(plain, formats={'a': formats['a']._replace(seen=None)}))


@pytest.mark.parametrize(('thousands', 'words'), [(',', ['1,473', '12.500']), ('.', ['1.473', '12,500', '0,1'])])
def test_decimals_beside_thousands_signs_in_training_need_no_flag(read, thousands, words):
    formats = read(words, thousands=thousands).formats
    assert formats['a'].seen is None and values(read(words[1:], formats=formats))[0] == 12.5
