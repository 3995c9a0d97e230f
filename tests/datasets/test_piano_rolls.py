"""Piano rolls out of .mat files: what is read, and a sentence for everything that is wrong."""

import re
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqjax.datasets.readers import piano_rolls
from seqjax.datasets.readers.bounds import Bounds
from seqjax.errors import UserError
from tests.helpers.oddities import ODD, odd

SHARED = Path(__file__).parent.parent.parent.parent / 'shared' / 'data'
io = pytest.importorskip('scipy.io', reason='.mat files need SciPy: pip install "seqjax[data]"')


def cells(*pieces):
    held = np.empty((1, len(pieces)), object)
    for i, piece in enumerate(pieces):
        held[0, i] = piece
    return held


def roll(frames, seed=0):
    return np.random.default_rng(seed).integers(0, 2, (frames, 88), np.uint8)


def good():
    """Variables of a file: two pieces to train on, one to validate, one to test."""
    return {'traindata': cells(roll(3), roll(5, 1)), 'validdata': cells(roll(4, 2)), 'testdata': cells(roll(2, 3))}


@pytest.fixture
def write(tmp_path):
    def write(variables, **options):
        path = tmp_path / 'rolls.mat'
        io.savemat(path, variables, **options)
        return str(path)

    return write


@pytest.mark.parametrize('compressed', [False, True])
@pytest.mark.parametrize('dtype', [np.uint8, np.int16, np.float64, np.float32, bool])
def test_pieces_are_read_part_by_part(write, dtype, compressed):
    variables = good()
    given = {key: cells(*(piece.astype(dtype) for piece in held[0])) for key, held in variables.items()}
    found = piano_rolls.read_rolls(write(given | {'else': 'x'}, do_compression=compressed))
    assert list(found) == ['train', 'validation', 'test']
    for part, key in piano_rolls.KEYS.items():
        assert [piece.dtype for piece in found[part]] == [np.uint8] * variables[key].size
        assert all((one == other).all() for one, other in zip(found[part], variables[key][0], strict=True))


def test_a_file_of_one_part_is_enough_where_others_are_not_asked_for(write):
    path = write({'testdata': good()['testdata']})
    assert list(piano_rolls.read_rolls(path)) == list(piano_rolls.read_rolls(path, ['test'])) == ['test']
    with pytest.raises(UserError, match='rolls.mat.*traindata'):
        piano_rolls.read_rolls(path, piano_rolls.KEYS)


def with_value(value, dtype=float):
    piece = roll(5).astype(dtype)
    piece[3, 7] = value
    return {'validdata': cells(roll(4), piece)}


FAULTS = {
    'numbers': ({'traindata': roll(5)}, 'traindata'),
    'text': ({'traindata': 'abc'}, 'traindata'),
    'a structure': ({'traindata': {'a': 1}}, 'traindata'),
    'no piece': ({'testdata': np.empty((1, 0), object)}, 'testdata'),
    'words': ({'testdata': cells(roll(3), 'abc')}, 'piece 2 of testdata'),
    'cells in cells': ({'testdata': cells(cells(roll(3), roll(4)))}, 'piece 1 of testdata'),
    'complex': ({'testdata': cells(roll(3) * 1j)}, 'piece 1 of testdata'),
    'a cube': ({'testdata': cells(np.zeros((2, 3, 88)))}, 'piece 1 of testdata'),
    'narrow': ({'traindata': cells(roll(3), roll(3)[:, :87])}, 'piece 2 of traindata has 87 .*88'),
    'turned': ({'traindata': cells(roll(3).T)}, '3 columns'),
    'short': (
        {'traindata': cells(roll(3), roll(1))},
        'piece 2 of traindata has 1 frames .* 2;',
    ),
    'empty': ({'traindata': cells(np.zeros((0, 88)))}, 'piece 1 of traindata has 0 frames .* 2;'),
    'loud': (with_value(2, np.uint8), 'piece 2 of validdata.* 2 .*frame 4, column 8'),
    'soft': (with_value(0.5), 'piece 2 of validdata.* 0.5 .*frame 4, column 8'),
    'negative': (with_value(-1, np.int8), 'piece 2 of validdata.* -1 .*frame 4'),
    'missing': (with_value(np.nan), 'piece 2 of validdata.* nan .*frame 4, column 8'),
    'endless': (with_value(np.inf), 'piece 2 of validdata.* inf .*frame 4'),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_what_is_no_piano_roll_is_refused(write, fault):
    variables, sentence = FAULTS[fault]
    with pytest.raises(UserError, match=f'rolls.mat.*{sentence}'):
        piano_rolls.read_rolls(write(good() | variables))


def test_sparse_pieces_are_refused(write):
    sparse = pytest.importorskip('scipy.sparse')
    with pytest.raises(UserError, match='piece 1 of testdata'):
        piano_rolls.read_rolls(write(good() | {'testdata': cells(sparse.csc_matrix(roll(3)))}))


@pytest.mark.parametrize('key', piano_rolls.KEYS.values())
def test_a_variable_that_is_missing_is_named(write, key):
    with pytest.raises(UserError, match=f'rolls.mat.*{key}'):
        piano_rolls.read_rolls(write({name: held for name, held in good().items() if name != key}), piano_rolls.KEYS)


def test_a_file_without_piano_rolls_is_refused(write):
    with pytest.raises(UserError, match='traindata'):
        piano_rolls.read_rolls(write({'x': np.eye(3)}))


def test_no_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match='none.mat.*No such file'):
        piano_rolls.read_rolls(str(tmp_path / 'none.mat'))
    with pytest.raises(UserError, match='Is a directory'):
        piano_rolls.read_rolls(str(tmp_path))


HDF5 = b'MATLAB 7.3 MAT-file'.ljust(124) + b'\x00\x02IM' + b'\x89HDF\r\n\x1a\n'


@pytest.mark.parametrize(
    ('content', 'sentence'),
    [
        (b'', '.mat file'),
        (b'time,note\n1,60\n' * 40, '.mat file'),
        (b'\xef\xbb\xbf' * 60, '.mat file'),
        (bytes(range(256)), '.mat file'),
        (HDF5, '-v7'),
    ],
)
def test_other_files_are_refused(tmp_path, content, sentence):
    path = tmp_path / 'other.mat'
    path.write_bytes(content)
    with pytest.raises(UserError, match=f'other.mat.*{sentence}'):
        piano_rolls.read_rolls(str(path))


def test_a_variable_that_stands_there_twice_is_refused(write, tmp_path):
    first = Path(write({'traindata': cells(roll(3))})).read_bytes()
    (tmp_path / 'twice.mat').write_bytes(first + Path(write(good())).read_bytes()[128:])  # without its head
    with pytest.raises(UserError, match='twice.mat.*traindata'):
        piano_rolls.read_rolls(str(tmp_path / 'twice.mat'))


@pytest.mark.parametrize(
    ('place', 'value', 'sentence'),
    [
        (241, 232, '59394'),  # of the first piece's values
        (209, 8, ''),  # its flags: complex, though it has no imaginary part
        (167, 8, ''),  # how many cells there are
        (133, 255, 'type 14.*65,'),  # the size of a variable
    ],
)
def test_bytes_that_scipy_would_fall_over_are_found_before_it_reads_them(write, place, value, sentence):
    """It would end the process, or ask for all the memory."""
    path = Path(write(good()))
    content = bytearray(path.read_bytes())
    content[place] = value
    path.write_bytes(content)
    with pytest.raises(UserError, match=f'rolls.mat.*{sentence}'):
        piano_rolls.read_rolls(str(path))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_a_mangled_file_gives_a_sentence_or_piano_rolls(tmp_path_factory, data):
    """Cut anywhere, or with bytes changed, most of them where the format itself stands."""
    path = tmp_path_factory.getbasetemp() / 'mangled.mat'
    io.savemat(path, good(), do_compression=data.draw(st.booleans()))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, min(len(content) - 1, 400)))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.none() | st.integers(0, len(content)))])
    try:
        found = piano_rolls.read_rolls(str(path))
    except UserError as error:
        assert str(error).startswith(str(path)) and '\n' not in str(error)
    else:
        for pieces in found.values():
            assert all(piece.shape[1] == 88 and len(piece) > 1 and piece.max() <= 1 for piece in pieces)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=4), min_size=3, max_size=3), st.integers(0, 99))
def test_any_pieces_come_back_as_they_were(tmp_path_factory, lengths, seed):
    path = tmp_path_factory.getbasetemp() / 'again.mat'
    given = {
        part: [roll(count, seed + i) for i, count in enumerate(counts)]
        for part, counts in zip(piano_rolls.KEYS, lengths, strict=True)
    }
    io.savemat(path, {piano_rolls.KEYS[part]: cells(*pieces) for part, pieces in given.items()})
    found = piano_rolls.read_rolls(str(path), piano_rolls.KEYS)
    assert {part: [piece.tolist() for piece in pieces] for part, pieces in found.items()} == {
        part: [piece.tolist() for piece in pieces] for part, pieces in given.items()
    }


@pytest.mark.parametrize(
    ('name', 'pieces', 'frames'),
    [
        ('JSB_Chorales', [229, 76, 77], [13_807, 4_602, 4_725]),
        ('Nottingham', [694, 173, 170], [176_561, 45_513, 44_463]),
    ],
)
def test_published_files_have_the_pieces_that_they_are_known_to_have(name, pieces, frames):
    path = SHARED / f'{name}.mat'
    if not path.exists():
        pytest.skip(f'{path} is not here')
    found = piano_rolls.read_rolls(str(path), piano_rolls.KEYS)
    assert [len(found[part]) for part in piano_rolls.KEYS] == pieces
    assert [sum(map(len, found[part])) for part in piano_rolls.KEYS] == frames


def compressed(claimed, size):
    """A compressed element whose tag claims so many bytes, and that has others."""
    content = zlib.compress(struct.pack('<II', 14, claimed) + bytes(size))
    return struct.pack('<II', 15, len(content)) + content


MAT = b'MATLAB 5.0'.ljust(124) + b'\x00\x01IM'


@pytest.mark.parametrize(
    ('elements', 'sentence'),
    [
        ([(2**20, 2**20)], '--max_bytes'),
        ([(2**32 - 9, 10)], '--max_bytes'),
        ([(15_000, 15_000), (15_000, 15_000)], 'bomb.mat'),
        ([(1000, 2**24)], 'bomb.mat'),
        ([(1000, 10)], '.mat file'),
    ],
)
def test_what_expands_too_far_is_refused_before_it_is_expanded(tmp_path, elements, sentence):
    path = tmp_path / 'bomb.mat'
    path.write_bytes(MAT + b''.join(compressed(*sizes) for sizes in elements))
    tracemalloc.start()
    with pytest.raises(UserError, match=sentence):
        piano_rolls.read_rolls(str(path), bounds=Bounds(bytes=100_000))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_compressed_file_within_the_limit_is_read(write):
    path = write(good(), do_compression=True)
    assert len(piano_rolls.read_rolls(path, bounds=Bounds(bytes=40_000))['train']) == 2
    with pytest.raises(UserError, match='--max_bytes'):
        piano_rolls.read_rolls(path, bounds=Bounds(bytes=1000))


@pytest.mark.parametrize('kind', ODD)
def test_what_is_not_a_file_is_refused_at_once(tmp_path, kind):
    path = str(odd(tmp_path, kind))
    with pytest.raises(UserError, match=re.escape(path)):
        piano_rolls.read_rolls(path)
