"""Texts as tokens: what is read, what a vocabulary knows, and a sentence for each file that is none."""

import os

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seqjax.datasets.readers import texts
from seqjax.datasets.readers.bounds import Bounds
from seqjax.datasets.readers.texts import Vocabulary
from seqjax.errors import UserError

FEW = settings(max_examples=60, deadline=None, derandomize=True)


def all_of(count):
    return count


def most_of(count):
    return count - count // 4


def written(folder, content, name='text.txt'):
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def read(folder, content, kind='characters', training=all_of, **options):
    return texts.read_text(written(folder, content), kind, training, **options)


# --- what is read ----------------------------------------------------------------------------------


def test_characters_are_numbered_by_their_codes(tmp_path):
    text = read(tmp_path, 'b—a\nb')
    assert text.tokens.tolist() == [2, 3, 1, 0, 2] and text.tokens.dtype == np.uint8
    assert text.vocabulary == Vocabulary('characters', '\nab—') and text.vocabulary.size == 5
    assert (text.files, text.notes, text.different) == (1, [], 0)


def test_bytes_are_themselves_whatever_they_are(tmp_path):
    content = b'\xff\xfe\0\r\n\xef'
    text = read(tmp_path, content, 'bytes')
    assert bytes(text.tokens) == content and text.vocabulary.size == 256 and text.vocabulary.unknown is None


def test_words_are_known_from_the_most_frequent_on(tmp_path):
    text = read(tmp_path, 'the cat, the dog,\n  the  end', 'words', size=3)
    #  'the' ' cat' ',' ' the' ' dog' ',' '\n' ' ' ' the' ' ' ' end'
    assert text.vocabulary.known == [',', ' the', ' ']
    assert text.tokens.tolist() == [3, 3, 0, 1, 3, 0, 3, 2, 1, 2, 3]
    assert text.missing == ['the', ' cat', ' dog', '\n', ' end'] and text.different == 5


@pytest.mark.parametrize('kind', ['characters', 'words'])
def test_a_vocabulary_is_of_the_training_part_alone(tmp_path, kind):
    text = read(tmp_path, 'a b ' * 6 + 'é a ü a', kind, most_of)
    known = text.vocabulary.known
    assert set(''.join(known)) == set('a b') and text.vocabulary.unknown == len(known)
    assert (text.tokens == text.vocabulary.unknown).sum() == 2
    assert [token.strip() for token in text.missing] == ['é', 'ü'] and text.different == 2


def test_a_mark_of_byte_order_is_dropped_and_ends_of_lines_are_one_character(tmp_path):
    text = read(tmp_path, b'\xef\xbb\xbfa\r\nb\rc\n')
    assert text.vocabulary.decode(text.tokens) == 'a\nb\nc\n'
    assert len(text.notes) == 2 and '\\r\\n' in text.notes[0]
    assert read(tmp_path, 'a\nb').notes == []


@pytest.mark.parametrize(('size', 'dtype'), [(255, np.uint8), (256, np.uint16), (70_000, np.uint32)])
def test_the_smallest_type_holds_all_tokens_and_the_unknown_one(tmp_path, size, dtype):
    known = ''.join(chr(code) for code in range(0x10000, 0x10000 + size))
    text = read(tmp_path, known)
    assert text.tokens.dtype == dtype and text.tokens.tolist() == list(range(size))
    assert np.iinfo(dtype).max >= text.vocabulary.unknown


def test_a_folder_is_its_texts_in_the_order_of_their_names(tmp_path):
    (tmp_path / 'a').mkdir()
    for name, content in {'b.txt': 'two', 'a/c.md': '\ufeffone', 'c.TXT': 'three', 'a/b.png': '\0'}.items():
        written(tmp_path, content, name)
    text = texts.read_text(tmp_path, 'characters', all_of)
    assert text.vocabulary.decode(text.tokens) == 'onetwothree' and text.files == 3


CONTENTS = st.text(st.sampled_from('ab \r\né中𝄞,_') | st.characters(exclude_categories=['Cs'], exclude_characters='\0'))


@given(content=CONTENTS, piece=st.integers(1, 9), mark=st.booleans())
@example('\r\n', 1, False)
@example('é', 1, True)
@example('a\r', 9, False)
@FEW
def test_a_text_is_the_same_in_whatever_pieces_it_is_read(tmp_path_factory, content, piece, mark):
    file = written(tmp_path_factory.mktemp('text'), b'\xef\xbb\xbf' * mark + content.encode())
    expected = content.removeprefix('\ufeff') if not mark else content
    expected = expected.replace('\r\n', '\n').replace('\r', '\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, 'PIECE', max(piece, 3))  # the mark is looked for in the first piece
        for kind in ('characters', 'words') if len(set(expected)) > 1 else ():
            try:
                text = texts.read_text(file, kind, all_of)
            except UserError:
                assert kind == 'words' and len(set(texts.WORD.findall(expected))) == 1
                continue
            assert text.vocabulary.decode(text.tokens) == expected
            assert [text.vocabulary.known[i] for i in text.tokens] == text.vocabulary.split(expected)
            again = texts.read_with_vocabulary(file, text.vocabulary)
            assert again.tokens.tobytes() == text.tokens.tobytes() and again.different == 0


@given(content=st.binary(max_size=40) | st.builds(lambda s, b: s.encode() + b, CONTENTS, st.binary(max_size=3)))
@example(b'\xe4\xb8')
@FEW
def test_whatever_a_file_holds_it_is_read_or_refused_in_a_sentence(tmp_path_factory, content):
    file = written(tmp_path_factory.mktemp('text'), content)
    for kind in texts.KINDS:
        try:
            text = texts.read_text(file, kind, most_of)
        except UserError as error:
            assert str(error).startswith(str(file)) and '\n' not in str(error)
        else:
            assert len(text.tokens) and text.tokens.max() < text.vocabulary.size


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('content', 'sentence'),
    [
        (b'', 'text.txt'),
        (b'\xef\xbb\xbf', 'text.txt'),
        (b'abc\0def', 'byte 3.*--tokenizer=bytes'),
        (b'caf\xe9 au lait', 'byte 3.*0xe9.*--tokenizer=bytes'),
        (b'\xef\xbb\xbfcaf\xe9 ', 'byte 6 is 0xe9'),
        ('中文'.encode()[:-1], 'byte 3 is 0xe6'),
        ('text'.encode('utf-16'), 'UTF-16'),
        ('aaaaaaa', "'a'"),
        ('aaaaaab', "'a'"),
        ('\n\n\n\n', r"'\\\\n'"),
    ],
)
def test_a_file_that_is_no_text_is_refused_in_a_sentence(tmp_path, content, sentence):
    with pytest.raises(UserError, match=sentence) as refused:
        read(tmp_path, content, training=most_of)
    assert str(tmp_path / 'text.txt') in str(refused.value)


def test_the_byte_that_is_wrong_is_counted_from_the_beginning_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, 'PIECE', 4)
    with pytest.raises(UserError, match='byte 9 is 0xff'):
        read(tmp_path, 'abc中文'.encode() + b'\xff')
    with pytest.raises(UserError, match='byte 6 is 0xe6'):  # begun in one piece, and wrong in the next
        read(tmp_path, 'abc中'.encode() + b'\xe6\x96a')
    with pytest.raises(UserError, match='byte 5 is 0;'):
        read(tmp_path, b'abcde\0')


def test_what_cannot_be_read_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r'none\.txt.*No such file'):
        texts.read_text(tmp_path / 'none.txt', 'characters', all_of)
    with pytest.raises(UserError, match=r'\.txt.*\.md'):
        texts.read_text(tmp_path, 'characters', all_of)
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(UserError, match='pipe'):
        texts.read_text(tmp_path / 'pipe', 'characters', all_of)
    (tmp_path / 'a.txt').write_text('abc')
    texts.check_size(tmp_path, Bounds(bytes=3))
    with pytest.raises(UserError, match='--max_bytes'):
        texts.check_size(tmp_path, Bounds(bytes=2))


# --- vocabularies ----------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=['Cs'])))
@example('\\n\n\\\\x41\x7f\u2028\U0001f600\U000e0001')
@FEW
def test_a_token_that_is_shown_in_a_line_is_found_again(token):
    shown = texts.escape(token)
    assert shown.isprintable() and texts.unescape(shown) == token


def test_a_prompt_is_encoded_and_what_is_unknown_named():
    tokens, missing = Vocabulary('characters', 'abc').encode('axbxy')
    assert tokens.tolist() == [0, 3, 1, 3, 3] and missing == ['x', 'y']
    tokens, missing = Vocabulary('words', ['the', ' cat']).encode('the cat sat')
    assert tokens.tolist() == [0, 1, 2] and missing == [' sat']
    tokens, missing = Vocabulary('bytes').encode('é')
    assert tokens.tolist() == [0xC3, 0xA9] and missing == []
    assert Vocabulary('bytes').decode(tokens) == 'é' and Vocabulary('bytes').decode(tokens[:1]) == '\ufffd'


def test_unknown_tokens_of_another_text_are_counted(tmp_path):
    text = texts.read_with_vocabulary(written(tmp_path, 'abxyxc'), Vocabulary('characters', 'abc'))
    assert text.tokens.tolist() == [0, 1, 3, 3, 3, 2] and text.missing == ['x', 'y'] and text.different == 2
