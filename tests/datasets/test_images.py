"""Images in the format of MNIST, and scikit-learn's digits: what is read, and what is told of damaged files."""

import gzip
import re
import struct

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from seqjax.datasets.readers import images as readers_images
from seqjax.datasets.readers.bounds import Bounds
from seqjax.errors import UserError
from tests.helpers.oddities import ODD, odd

PIXELS = np.random.RandomState(0).randint(0, 256, (5, 3, 4)).astype(np.uint8)
LABELS = np.array([3, 1, 4, 1, 5], np.uint8)
IMAGES, CLASSES = 'train-images-idx3-ubyte', 'train-labels-idx1-ubyte'


def idx(values):
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f'>{values.ndim}I', *values.shape) + values.tobytes()


def write(folder, name, content):
    file = folder / name
    file.write_bytes(content)
    return file


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('labels_packed', [False, True])
def test_images_and_the_labels_beside_them(tmp_path, packed, labels_packed):
    ways = {False: (lambda x: x, ''), True: (gzip.compress, '.gz')}
    (pack, end), (pack_labels, end_labels) = ways[packed], ways[labels_packed]
    file = write(tmp_path, IMAGES + end, pack(idx(PIXELS)))
    write(tmp_path, CLASSES + end_labels, pack_labels(idx(LABELS)))
    images = readers_images.read_images(file)
    np.testing.assert_array_equal(images.values, PIXELS)
    np.testing.assert_array_equal(images.labels, LABELS)
    assert images.values.dtype == np.uint8


def test_labels_elsewhere_or_not_at_all(tmp_path):
    file, labels = write(tmp_path, 'a', idx(PIXELS)), write(tmp_path, 'b', idx(LABELS))
    assert readers_images.read_images(file).labels is None
    np.testing.assert_array_equal(readers_images.read_images(file, labels).labels, LABELS)


def test_files_beside_have_the_other_words(tmp_path):
    file = write(tmp_path, IMAGES, b'')
    assert readers_images.sibling_file(file, 'train', 't10k') is None
    other = write(tmp_path, 't10k-images-idx3-ubyte.gz', b'')
    assert readers_images.sibling_file(file, 'train', 't10k') == other
    assert readers_images.sibling_file(other, 'train', 't10k') is None


def test_the_digits_of_scikit_learn():
    images = readers_images.read_images('digits')
    assert images.values.shape == (1797, 8, 8) and images.values.dtype == np.uint8 and images.values.max() == 16
    assert images.labels[:10].tolist() == list(range(10)) and images.labels.shape == (1797,)


GOOD = idx(PIXELS)
FAULTS = {
    'empty': (b'', '/x '),
    'text': (b'1,2,3\n', '31 2c 32 2c'),
    'floats': (b'\0\0\x0d\x03' + GOOD[4:], '00 00 0d 03'),
    'labels for images': (idx(LABELS), '00 00 08 01'),
    'cut in the head': (GOOD[:9], '9 bytes'),
    'cut': (GOOD[:-1], '59 bytes'),
    'too long': (GOOD + b'\0', 'has 61 bytes'),
    'huge sizes': (GOOD[:4] + b'\xff' * 12 + GOOD[16:], 'has 60 bytes'),
    'no images': (idx(PIXELS[:0]), '0 x 3 x 4'),
    'no pixels': (idx(PIXELS[:, :0]), '5 x 0 x 4'),
    'cut gzip': (gzip.compress(GOOD)[:-12], '/x '),
    'changed gzip': (gzip.compress(GOOD)[:20] + b'\xff\xff\xff' + gzip.compress(GOOD)[23:], '/x '),
    'twice gzipped': (gzip.compress(gzip.compress(GOOD)), '1f 8b'),
}


@pytest.mark.parametrize('content, words', FAULTS.values(), ids=FAULTS)
def test_faults_are_told_in_one_sentence(tmp_path, content, words):
    with pytest.raises(UserError) as caught:
        readers_images.read_images(write(tmp_path, 'x', content))
    assert words in str(caught.value) and '\n' not in str(caught.value)


def test_labels_that_do_not_belong_to_the_images(tmp_path):
    file, labels = write(tmp_path, 'a', GOOD), write(tmp_path, 'b', idx(LABELS[:4]))
    with pytest.raises(UserError, match='b .*4.*a .*5'):
        readers_images.read_images(file, labels)
    with pytest.raises(UserError, match='00 00 08 03.*00 00 08 01'):
        readers_images.read_images(file, file)


def test_a_file_that_is_not_there_or_a_folder(tmp_path):
    for path in (tmp_path, tmp_path / 'none'):
        with pytest.raises(UserError, match=path.name):
            readers_images.read_images(path)


def test_nothing_is_copied_of_a_plain_file(tmp_path):
    """The array is a view of the bytes that were read, and is not to be written."""
    values = readers_images.read_idx(write(tmp_path, 'a', GOOD), axes=3)
    assert not values.flags.owndata and not values.flags.writeable


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('fuzz')


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)
@hypothesis.given(data=st.data())
def test_a_file_cut_anywhere_or_with_other_bytes_is_read_or_refused(folder, data):
    content = bytearray(data.draw(st.sampled_from([GOOD, gzip.compress(GOOD)])))
    stop = data.draw(st.integers(0, len(content)))
    for place, byte in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=2)
    ):
        content[place] = byte
    try:
        images = readers_images.read_images(write(folder, 'x', bytes(content[:stop])))
    except UserError as error:
        assert str(error).startswith(str(folder / 'x'))
    else:
        assert images.values.ndim == 3 and images.values.dtype == np.uint8


@pytest.mark.parametrize(
    'images, labels, test',
    [
        ('train-images.idx3-ubyte', 'train-labels.idx1-ubyte', 't10k-images.idx3-ubyte'),
        ('train-images.idx3-ubyte.gz', 'train-labels.idx1-ubyte', 't10k-images.idx3-ubyte.gz'),
        ('train-images.idx3-ubyte', 'train-labels-idx1-ubyte.gz', 't10k-images-idx3-ubyte'),
        ('Train-Images-IDX3-ubyte', 'Train-Labels-IDX1-ubyte', 'T10k-Images-IDX3-ubyte'),
        ('TRAIN-IMAGES.IDX3-UBYTE.GZ', 'train-labels.idx1-ubyte', 't10k-images-idx3-ubyte.gz'),
        ('train-images-idx3-ubyte', 'TRAIN-LABELS-IDX1-UBYTE.GZ', 'T10K-IMAGES.IDX3-UBYTE'),
    ],
)
def test_files_beside_have_a_dot_or_a_dash_in_any_case(tmp_path, images, labels, test):
    packed = {name: gzip.compress if name.lower().endswith('.gz') else bytes for name in (images, labels, test)}
    file = write(tmp_path, images, packed[images](idx(PIXELS)))
    other = write(tmp_path, labels, packed[labels](idx(LABELS)))
    held_out = write(tmp_path, test, packed[test](idx(PIXELS)))
    assert readers_images.sibling_file(file, 'images', 'labels', 'idx3', 'idx1') == other
    assert readers_images.sibling_file(file, 'train', 't10k') == held_out
    np.testing.assert_array_equal(readers_images.read_images(file).labels, LABELS)
    assert readers_images.sibling_file(other, 'images', 'labels') is None


def test_of_several_files_beside_the_one_with_the_nearest_name_is_taken(tmp_path):
    file = write(tmp_path, 'train-images.idx3-ubyte', b'')
    names = ['T10K-images.idx3-ubyte', 't10k-images-idx3-ubyte', 't10k-images.idx3-ubyte.gz', 't10k-images.idx3-ubyte']
    for name in names:
        write(tmp_path, name, b'')
    assert readers_images.sibling_file(file, 'train', 't10k').name == 't10k-images.idx3-ubyte'
    (tmp_path / names[-1]).unlink()
    assert readers_images.sibling_file(file, 'train', 't10k').name == 't10k-images.idx3-ubyte.gz'


HUGE = 2**32 - 1


@pytest.mark.parametrize(
    'sizes, values, words',
    [
        ((0, HUGE, HUGE), b'', f'0 x {HUGE} x {HUGE}'),
        ((HUGE, 0, HUGE), b'', f'{HUGE} x 0 x {HUGE}'),
        ((HUGE, HUGE, 0), bytes(9), f'{HUGE} x {HUGE} x 0'),
        ((HUGE, HUGE, HUGE), bytes(9), '9 bytes|--max_bytes'),
        ((1, 1, 20_000), bytes(20_000), '--max_bytes'),
        ((1, 1, 9), bytes(20_000), '1 x 1 x 9'),
    ],
)
@pytest.mark.parametrize('pack', [bytes, gzip.compress])
def test_sizes_are_checked_before_values_are_read(tmp_path, monkeypatch, sizes, values, words, pack):
    file = write(tmp_path, 'x', pack(bytes([0, 0, 8, 3]) + struct.pack('>3I', *sizes) + values))
    with pytest.raises(UserError, match=words):
        readers_images.read_images(file, bounds=Bounds(bytes=10_000))


def test_the_limit_can_be_lifted(tmp_path):
    file = write(tmp_path, 'x', gzip.compress(idx(np.zeros((1, 1, 20_000), np.uint8))))
    assert readers_images.read_images(file, bounds=Bounds(bytes=20_016)).values.shape == (1, 1, 20_000)


@pytest.mark.parametrize('kind', ODD)
def test_what_is_not_a_file_is_refused_at_once(tmp_path, kind):
    path = odd(tmp_path, kind)
    with pytest.raises(UserError, match=re.escape(str(path))):
        readers_images.read_images(path)
