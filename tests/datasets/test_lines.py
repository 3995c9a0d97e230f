"""Rows of a table that come one line at a time."""

import pytest

from seqjax.datasets.readers.lines import LineReader
from seqjax.errors import UserError


def is_number(name, word):
    try:
        float(word or 'nan')
    except ValueError:
        return name == 'who'
    return True


def reader(names=('price', 'note', 'sold'), used=('sold', 'price'), separator=','):
    return LineReader(None if names is None else list(names), used, separator, is_number)


def test_a_line_has_the_columns_of_the_file_in_their_order():
    assert reader().read('2.5,any text,50') == {'sold': '50', 'price': '2.5'}
    assert reader().read(' 2.5, "any, text", 50') == {'sold': '50', 'price': '2.5'}
    assert reader().read('2.5,,') == {'sold': '', 'price': '2.5'}
    assert reader(separator='\t').read('2.5\t\t50') == {'sold': '50', 'price': '2.5'}
    assert reader(['x'], ['x']).read('') == reader(['x'], ['x']).read('""') == {'x': ''}


@pytest.mark.parametrize('header', ['sold,price', 'price,sold', 'sold,other,price', '"sold", price '])
def test_a_header_line_names_the_columns_of_the_lines_that_follow(header):
    lines = reader()
    assert lines.read(header) is None
    names = [word.strip(' "') for word in header.split(',')]
    row = ','.join({'sold': '50', 'price': '2.5', 'other': 'x'}[name] for name in names)
    assert lines.read(row) == lines.read(row) == {'sold': '50', 'price': '2.5'}
    assert lines.read('price,note,sold') is None
    assert lines.read('2.5,x,50') == {'sold': '50', 'price': '2.5'}


def test_names_that_are_numbers_are_a_header_in_the_first_line_alone():
    lines = reader(['1', '2'], ['2'])
    assert lines.read('1,2') is None
    assert lines.read('1,2') is None
    assert lines.read('5,6') == {'2': '6'} and lines.read('1,2') == {'2': '2'}
    assert reader(['1', '2'], ['2']).read('2,1') == {'2': '1'}


@pytest.mark.parametrize(
    ('line', 'words'),
    [
        ('50,2.5', "'price', 'note', 'sold'"),
        ('50', '1 .*3'),
        ('1,2,3,4', '4 .*3'),
        ('1;2;3', '1 .*3'),
        ('1,"2,3', 'quote'),
        ('1,"2"2,3', 'quote'),
        ('1,2\r,3', 'carriage return'),
        ('1,2,' + 'x' * 140_000, '131,072'),
        ('sold,price,sold', 'header'),
    ],
)
def test_a_line_that_does_not_match_is_refused(line, words):
    with pytest.raises(UserError, match=words):
        reader().read(line)


def test_a_run_that_has_not_kept_its_columns_needs_a_header_line():
    lines = reader(None)
    with pytest.raises(UserError, match="'sold,price'"):
        lines.read('1,2')
    assert lines.read('price,sold') is None and lines.read('2.5,50') == {'sold': '50', 'price': '2.5'}
