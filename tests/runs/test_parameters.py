"""One file for any tree of arrays: what comes back is what was saved, bit for bit, or a sentence."""

import json
import os
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding, PartitionSpec

from seqjax import files
from seqjax.errors import UserError
from seqjax.runs import parameters


class Pair(NamedTuple):
    first: object
    second: object


def train_state():
    model = nn.Dense(3)
    params = model.init(jax.random.key(0), jnp.ones((1, 2)))['params']
    return TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(1e-3))


def numbers(dtype):
    """Every sign, subnormals, what is not a number or infinite."""
    values = np.array([0, 1, -1, 3.14159, 1e-40, 6e-8, 250], np.float64)
    floating = jnp.issubdtype(dtype, jnp.floating)
    return np.array([*values, np.nan, np.inf, -0.0] if floating else values.clip(0), jnp.dtype(dtype))


TREES = {
    'parameters': lambda: {'head': {'kernel': jnp.ones((2, 3)), 'bias': jnp.zeros(3)}, 'rnn': {'b': jnp.arange(4)}},
    'train state': train_state,
    'keys': lambda: {'key': jax.random.key(1), 'keys': jax.random.split(jax.random.key(2, impl='rbg'), (2, 3))},
    'plain numbers': lambda: {'step': 3, 'rate': 1e-3, 'on': True, 'z': 1 - 2j, 'large': 2**40},
    'scalars of NumPy': lambda: {'x': np.float16(0.1), 'y': np.array(2.0), 'z': jnp.float32(3), 'b': np.bool_(True)},
    'no elements': lambda: {
        'x': jnp.zeros((0, 3)),
        'y': np.zeros((2, 0), np.int8),
        'k': jax.random.split(jax.random.key(0), 0),
    },
    'no arrays': lambda: {'a': {}, 'b': (), 'c': None},
    'containers': lambda: [
        FrozenDict({'a': jnp.ones(2)}),
        Pair(jnp.ones(1), (jnp.zeros(2), [jnp.arange(3)])),
        None,
        {},
    ],
    'one array': lambda: jnp.arange(5),
    'odd keys': lambda: {'': jnp.ones(1), ' ': jnp.ones(2), 'a.b': {'c': jnp.ones(3)}, 'a': {'b.c': jnp.ones(4)}},
    'keys of files': lambda: {
        '..': jnp.ones(1),
        'x.npy': jnp.ones(2),
        'x': jnp.ones(3),
        'file': jnp.ones(4),
        '/': jnp.ones(5),
    },
    'cases': lambda: {
        'A': jnp.ones(1),
        'a': jnp.ones(2),
        'ä': jnp.ones(3),
        'a\u0308': jnp.ones(4),
        'a\nb"\\': jnp.ones(5),
    },
    'keys of numbers': lambda: {1: jnp.ones(1), 10: {(0, 1): jnp.ones(2)}, 2: jnp.ones(3)},
    'not contiguous': lambda: {
        't': np.arange(6).reshape(2, 3).T,
        's': np.arange(10)[::3],
        'big': np.arange(3, dtype='>i4'),
    },
    **{dtype: lambda dtype=dtype: {'x': numbers(dtype)} for dtype in parameters.CODES},
    **{
        f'{dtype} of JAX': lambda dtype=dtype: {'x': jnp.asarray(numbers(dtype))}
        for dtype in ('bfloat16', 'float16', 'int8')
    },
}


def bits(leaf):
    leaf = jax.random.key_data(leaf) if hasattr(leaf, 'dtype') and parameters.is_key(leaf) else leaf
    return np.asarray(leaf).astype(np.asarray(leaf).dtype.newbyteorder('=')).tobytes()


@pytest.mark.parametrize('name', TREES)
def test_what_is_saved_is_loaded_bit_for_bit(name, tmp_path):
    tree = TREES[name]()
    parameters.save(tmp_path / 'x', tree)
    got = parameters.load(str(tmp_path / 'x'), tree)
    assert jax.tree.structure(got) == jax.tree.structure(tree)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(tree), strict=True):
        assert isinstance(one, type(other)) and bits(one) == bits(other)
        assert np.shape(one) == np.shape(other) and getattr(one, 'dtype', 0) == getattr(other, 'dtype', 0)
    assert [path.name for path in tmp_path.iterdir()] == ['x']


def test_plain_numbers_and_arrays_of_their_kind_stand_for_each_other(tmp_path):
    """As the step of a train state, which is an int until its first compiled step."""
    parameters.save(tmp_path / 'x', {'step': 3, 'rate': 0.5, 'on': True})
    got = parameters.load(tmp_path / 'x', {'step': jnp.int32(0), 'rate': jnp.bfloat16(0), 'on': np.bool_(False)})
    assert [(x.dtype.name, x.item()) for x in got.values()] == [('bool', True), ('bfloat16', 0.5), ('int32', 3)]
    parameters.save(tmp_path / 'x', got)
    assert parameters.load(tmp_path / 'x', {'step': 0, 'rate': 1.0, 'on': False}) == {
        'step': 3,
        'rate': 0.5,
        'on': True,
    }
    parameters.save(tmp_path / 'x', {'step': 2**40})
    for like in (jnp.int32(0), jnp.float32(0), 1.0, False, np.zeros(1, int)):
        with pytest.raises(UserError, match='step.*int'):
            parameters.load(tmp_path / 'x', {'step': like})


@pytest.mark.parametrize('name', ['parameters', 'train state', 'keys', 'containers', 'bfloat16 of JAX', 'no elements'])
def test_shapes_are_enough_to_load(name, tmp_path):
    tree = TREES[name]()
    parameters.save(tmp_path / 'x', tree)
    got = parameters.load(tmp_path / 'x', jax.eval_shape(lambda: tree))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(got))
    assert [bits(x) for x in jax.tree.leaves(got)] == [bits(jnp.asarray(x)) for x in jax.tree.leaves(tree)]


def test_another_program_reads_the_format(tmp_path):
    """Eight bytes with the length of a JSON header, the header, the arrays: as safetensors has it."""
    tree = {'b': jnp.full((2, 2), 1.5, jnp.bfloat16), 'a': {'k': np.arange(3, dtype=np.int64)}}
    parameters.save(tmp_path / 'x.safetensors', tree)
    data = (tmp_path / 'x.safetensors').read_bytes()
    length = int.from_bytes(data[:8], 'little')
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    assert header['a/k'] == {'dtype': 'I64', 'shape': [3], 'data_offsets': [0, 24]}
    assert header['b'] == {'dtype': 'BF16', 'shape': [2, 2], 'data_offsets': [24, 32]} and length % 8 == 0
    assert all(isinstance(value, str) for value in header['__metadata__'].values())
    np.testing.assert_array_equal(np.frombuffer(rest[:24], '<i8'), [0, 1, 2])
    assert len(rest) == 32


def test_arrays_go_where_their_counterparts_lie(tmp_path):
    mesh = jax.make_mesh((1,), ('data',))
    sharding = NamedSharding(mesh, PartitionSpec('data'))
    tree = {'x': jnp.arange(4.0), 'k': jax.random.split(jax.random.key(0), 4)}
    parameters.save(tmp_path / 'x', tree)
    for like in (
        jax.device_put(tree, sharding),
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree),
    ):
        got = parameters.load(tmp_path / 'x', like)
        assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(got))
        assert jax.tree.map(bits, got) == jax.tree.map(bits, tree)
    assert not parameters.load(tmp_path / 'x', tree)['x'].committed


PLAIN = {'head': {'kernel': jnp.ones((2, 3)), 'bias': jnp.zeros(3)}, 'step': 4}


@pytest.mark.parametrize(
    ('like', 'named'),
    [
        ({'head': {'kernel': jnp.ones((2, 3)), 'bias': jnp.zeros(3)}}, ['step is not expected']),
        ({'head': {'kernel': jnp.ones((2, 3)), 'bias': jnp.zeros(3), 'x': 1}, 'step': 4}, ['head/x is missing']),
        (
            {'head': {'kernel': jnp.ones((3, 2)), 'bias': jnp.zeros(3)}, 'step': 4},
            ['head/kernel is float32 [2, 3] and must be float32 [3, 2]'],
        ),
        (
            {'head': {'kernel': jnp.ones((2, 3), jnp.bfloat16), 'bias': jnp.zeros(3)}, 'step': 4},
            ['head/kernel is float32 [2, 3] and must be bfloat16 [2, 3]'],
        ),
        (
            {'head': {'kernel': jnp.ones((2, 3)), 'bias': jnp.zeros(3)}, 'step': 4.0},
            ['step is int [] and must be float []'],
        ),
        (
            {'tail': {'kernel': jnp.ones((2, 3)), 'bias': jax.random.key(0)}},
            ['tail/bias is missing', 'head/bias is not'],
        ),
        (jnp.ones(3), ['head/bias', 'head/kernel', 'step']),
    ],
)
def test_another_tree_is_named(like, named, tmp_path):
    parameters.save(tmp_path / 'x', PLAIN)
    with pytest.raises(UserError) as error:
        parameters.load(tmp_path / 'x', like)
    assert all(part in str(error.value) for part in named) and '\n' not in str(error.value)


def test_keys_are_not_numbers_nor_keys_of_another_kind(tmp_path):
    key = jax.random.key(0)
    parameters.save(tmp_path / 'x', key)
    for like in (jax.random.key_data(key), jax.random.key(0, impl='rbg')):
        with pytest.raises(UserError, match='key<fry>'):
            parameters.load(tmp_path / 'x', like)


def test_many_differences_are_counted(tmp_path):
    parameters.save(tmp_path / 'x', {f'w{i}': i for i in range(30)})
    with pytest.raises(UserError, match='w12.*25'):
        parameters.load(tmp_path / 'x', {})


def test_every_flipped_bit_is_found(tmp_path):
    parameters.save(tmp_path / 'x', {'k': jax.random.key(0), 'w': jnp.arange(3.0)})
    whole = (tmp_path / 'x').read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (tmp_path / 'x').write_bytes(damaged)
        with pytest.raises(UserError, match='/x '):
            parameters.load(tmp_path / 'x', {'k': jax.random.key(0), 'w': jnp.arange(3.0)})


@pytest.mark.parametrize('change', [lambda x: x[:-1], lambda x: x + b'\0', lambda x: x[: len(x) // 2], lambda x: b''])
def test_a_file_of_another_length_is_corrupt(change, tmp_path):
    parameters.save(tmp_path / 'x', PLAIN)
    (tmp_path / 'x').write_bytes(change((tmp_path / 'x').read_bytes()))
    with pytest.raises(UserError, match='/x '):
        parameters.load(tmp_path / 'x', PLAIN)


OTHERS = {
    'words': b'some words, and more of them',
    'npz': b'PK\x03\x04' + bytes(100),
    'safetensors of others': (2).to_bytes(8, 'little') + b'{}',
    'no object': (2).to_bytes(8, 'little') + b'[]',
    'deep': (10**5).to_bytes(8, 'little') + b'[' * 10**5,
    'other metadata': (38).to_bytes(8, 'little') + b'{"__metadata__": {"format": "pt"}}    ',
}


@pytest.mark.parametrize('data', OTHERS.values(), ids=OTHERS)
def test_another_file_is_refused(data, tmp_path):
    (tmp_path / 'x').write_bytes(data)
    with pytest.raises(UserError, match='/x '):
        parameters.load(tmp_path / 'x', PLAIN)


def test_what_cannot_be_read_or_written_is_named(tmp_path):
    with pytest.raises(UserError, match='nothing.*No such file'):
        parameters.load(tmp_path / 'nothing', PLAIN)
    with pytest.raises(UserError, match='Is a directory'):
        parameters.load(tmp_path, PLAIN)
    with pytest.raises(UserError, match='Is a directory'):
        parameters.save(tmp_path, PLAIN)
    (tmp_path / 'file').write_bytes(b'')
    with pytest.raises(UserError, match='file/x'):
        parameters.save(tmp_path / 'file' / 'x', PLAIN)
    parameters.save(tmp_path / 'new' / 'folder' / 'x', PLAIN)
    assert parameters.load(tmp_path / 'new' / 'folder' / 'x', PLAIN)['step'] == 4


def test_a_save_that_fails_leaves_the_file_before(tmp_path, monkeypatch):
    parameters.save(tmp_path / 'x', PLAIN)
    monkeypatch.setattr(files, 'sync', lambda path: os.stat(tmp_path / 'no such file'))
    with pytest.raises(UserError, match='/x'):
        parameters.save(tmp_path / 'x', PLAIN | {'step': 5})
    assert parameters.load(tmp_path / 'x', PLAIN)['step'] == 4 and [path.name for path in tmp_path.iterdir()] == ['x']


@pytest.mark.parametrize(
    ('tree', 'named'),
    [
        ({'a/b': jnp.ones(1), 'a': {'b': jnp.ones(2)}}, "'a/b'"),
        ({'a': {'b/c': jnp.ones(1)}, 'a/b': {'c': jnp.ones(2)}}, "'a/b/c'"),
        ({'': {'a': jnp.ones(1)}, '/a': jnp.ones(2)}, "'/a'"),
        ({'a\0b': jnp.ones(1)}, r"'a\\x00b'"),
        ({'\udc80': jnp.ones(1)}, r"'\\udc80'"),
        ({'__metadata__': jnp.ones(1)}, "'__metadata__'"),
        ({'x': {'words': 'words'}}, "'x/words'.*<U5"),
        ({'x': [np.array([None])]}, "'x/0'.*object"),
        ({'x': np.array(['2020-01-01'], 'M8[D]')}, "'x'.*datetime64"),
        ({'x': jnp.ones(3, jnp.int4)}, "'x'.*int4"),
    ],
)
def test_what_cannot_be_saved_is_named(tree, named, tmp_path):
    with pytest.raises(UserError, match=named):
        parameters.save(tmp_path / 'x', tree)
    assert not list(tmp_path.iterdir())


def test_both_are_in_checkpoint():
    assert parameters.save is parameters.save and parameters.load is parameters.load
