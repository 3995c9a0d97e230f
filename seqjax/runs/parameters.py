"""One file for the arrays of any pytree: parameters, a train state, PRNG keys. `save` and `load` need no run.

The file has the format of safetensors: the length of a JSON header, the header, the arrays one after the other. The
header's metadata hold the sha256 of each array, and that of the header itself.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import files, validation
from seqjax.errors import UserError

CODES = {  # of dtypes, as safetensors has them
    **{'bool': 'BOOL', 'float16': 'F16', 'bfloat16': 'BF16', 'float32': 'F32', 'float64': 'F64'},
    **{'uint8': 'U8', 'uint16': 'U16', 'uint32': 'U32', 'uint64': 'U64', 'complex64': 'C64', 'complex128': 'C128'},
    **{'int8': 'I8', 'int16': 'I16', 'int32': 'I32', 'int64': 'I64'},
    **{'float8_e4m3fn': 'F8_E4M3', 'float8_e5m2': 'F8_E5M2'},
}
METADATA, FORMAT = '__metadata__', 'seqjax 1'
UNSEALED = '0' * 64  # in place of the header's own sha256, while that is computed
SHOWN = 5  # differences of a message before the rest is cut


def is_key(leaf: Any) -> bool:
    """Whether an array is of keys, which are neither saved nor spread as they are."""
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def flatten_with_names(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by name: params/head/kernel.

    Raises:
      UserError: two leaves have one name, as those of {'a/b': x} and {'a': {'b': x}}, or it cannot be written.
    """
    found: dict[str, Any] = {}
    for words, leaf in key_paths(tree):
        name = '/'.join(words)
        if name in found:
            raise UserError(f'two arrays of the tree are named {name!r}; rename the key that contains a "/"')
        if '\0' in name or not validation.is_encodable(name):
            raise UserError(f'the key {name!r} contains a character that no file can hold; rename it')
        found[name] = leaf
    return found


def key_paths(tree: Any) -> Iterator[tuple[list[str], Any]]:
    """The keys, fields and places that lead to each leaf of a tree."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        found = (getattr(part, kind) for part in path for kind in ('key', 'name', 'idx') if hasattr(part, kind))
        yield [str(word) for word in found], leaf


def save(path: str | os.PathLike[str], tree: Any) -> None:
    """Writes all arrays of a pytree to one file, which is replaced as a whole or not at all.

    Args:
      path: the file; its folder is made.
      tree: arrays of JAX or NumPy, PRNG keys and plain numbers, in containers of any kind.

    Raises:
      UserError: the file cannot be written, or the tree cannot be saved: two arrays of one name, a dtype that no file
        has. The message names the array.

    >>> import tempfile
    >>> path = f'{tempfile.mkdtemp()}/x.safetensors'
    >>> save(path, {'kernel': jnp.ones((2, 3)), 'bias': jnp.zeros(3)})
    >>> jax.tree.map(jnp.shape, load(path, jax.eval_shape(lambda: {'kernel': jnp.ones((2, 3)), 'bias': jnp.zeros(3)})))
    {'bias': (3,), 'kernel': (2, 3)}
    """
    path, arrays = Path(path), {name: _to_host(name, leaf) for name, leaf in flatten_with_names(tree).items()}
    entries, manifest, end = {}, {}, 0
    for (name, leaf), array in zip(flatten_with_names(tree).items(), arrays.values(), strict=True):
        start, end = end, end + array.nbytes
        entries[name] = {'dtype': CODES[array.dtype.name], 'shape': list(array.shape), 'data_offsets': [start, end]}
        manifest[name] = [*_describe(leaf), hashlib.sha256(array.tobytes()).hexdigest()]
    entries[METADATA] = {'format': FORMAT, 'manifest': json.dumps(manifest), 'sha256': UNSEALED}
    header = json.dumps(entries).encode()
    header += b' ' * (-len(header) % 8)  # so that arrays begin at a multiple of 8
    before, _, after = header.rpartition(UNSEALED.encode())
    header = before + hashlib.sha256(header).hexdigest().encode() + after

    def write(temporary):
        with temporary.open('wb') as file:
            file.write(len(header).to_bytes(8, 'little') + header)
            for array in arrays.values():
                file.write(array.tobytes())
        files.sync(temporary)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, write)
        files.sync(path.parent)
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror or error}; choose another path') from error


def _to_host(name: str, leaf: Any) -> np.ndarray:
    """A leaf as its bytes are written, little endian."""
    array = np.asarray(jax.random.key_data(leaf) if hasattr(leaf, 'dtype') and is_key(leaf) else leaf, order='C')
    if name == METADATA or array.dtype.name not in CODES:
        why = 'is the name that the format reserves for itself' if name == METADATA else f'is {array.dtype}'
        raise UserError(f'the array {name!r} cannot be saved: it {why}')
    return array.astype(array.dtype.newbyteorder('<'), copy=False)


def _describe(leaf: Any) -> list[Any]:
    """Dtype and shape, as a manifest has them; of a plain number its type, such as int."""
    if not hasattr(leaf, 'dtype'):
        return [type(leaf).__name__, []]
    return [leaf.dtype.name if isinstance(leaf.dtype, np.dtype) else str(leaf.dtype), list(leaf.shape)]


def load(path: str | os.PathLike[str], like: Any) -> Any:
    """Reads what `save` wrote.

    Args:
      path: the file.
      like: a tree of the same structure, for shapes and dtypes: arrays, or what `jax.eval_shape` gives. NumPy arrays
        and plain numbers are read as such; an array goes where the sharding of its counterpart says.

    Returns:
      The tree, with every array as it was saved, bit for bit.

    Raises:
      UserError: the file does not exist, is corrupt or is of another format; or arrays are missing, not in `like`, or
        of another shape or dtype. The message names them.
    """
    path, want = Path(path), flatten_with_names(like)
    arrays, held = _read(path)
    asked = {name: _describe(leaf) for name, leaf in want.items()}
    faults = [f'{name} is missing' for name in asked if name not in held]
    faults += [f'{name} is not expected' for name in held if name not in asked]
    for name in [name for name in asked if name in held and not _fits(arrays[name], held[name], asked[name])]:
        (dtype, shape), (want_dtype, want_shape) = held[name], asked[name]
        faults.append(f'{name} is {dtype} {shape} and must be {want_dtype} {want_shape}')
    if faults:
        rest = f', and {len(faults) - SHOWN} more' if len(faults) > SHOWN else ''
        raise UserError(f'{path} is of another tree: {", ".join(faults[:SHOWN])}{rest}')
    return jax.tree.unflatten(jax.tree.structure(like), [_placed(arrays[name], leaf) for name, leaf in want.items()])


def _fits(array: np.ndarray, held: list[Any], asked: list[Any]) -> bool:
    """Returns True if dtypes and shapes agree; a plain number may become an array of its kind, and the reverse."""
    if held == asked:
        return True
    (dtype, shape), (want_dtype, want_shape) = held, asked
    if shape or want_shape or dtype in CODES and want_dtype in CODES:
        return False
    kinds = [{'bool': 'b', 'int': 'i', 'float': 'f', 'complex': 'c'}.get(x) or _kind(x) for x in (dtype, want_dtype)]
    fits = kinds[0] != 'i' or want_dtype not in CODES or np.can_cast(np.min_scalar_type(array.item()), want_dtype)
    return kinds[0] == kinds[1] and bool(fits)


def _kind(dtype: str) -> str:
    """b, i, f or c, of a dtype by name; its name if it has none of these kinds, as keys."""
    kinds = {'b': jnp.bool_, 'i': jnp.integer, 'f': jnp.floating, 'c': jnp.complexfloating}
    return next((kind for kind, of in kinds.items() if dtype in CODES and jnp.issubdtype(dtype, of)), dtype)


def _placed(array: np.ndarray, like: Any) -> Any:
    """An array as `like` is: of NumPy, a plain number, or where its sharding says."""
    if not hasattr(like, 'dtype'):
        return array.item()
    if not is_key(like):
        array = array.astype(like.dtype, copy=False)  # a plain number
    if isinstance(like, np.ndarray | np.generic):
        return array[()] if isinstance(like, np.generic) else array
    if is_key(like):
        array = jax.random.wrap_key_data(array, impl=jax.random.key_impl(jnp.empty((), like.dtype)))
    elif jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        return array  # JAX would round it
    sharding = getattr(like, 'sharding', None) if getattr(like, 'committed', True) else None
    return jnp.asarray(array) if sharding is None else jax.device_put(array, sharding)


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, list[Any]]]:
    """All arrays of a file by name, keys as the numbers that they are made of; and the dtypes and shapes of leaves."""
    try:
        with path.open('rb') as file:
            entries, manifest = _read_header(file)
            dtypes, arrays = {code: name for name, code in CODES.items()}, {}
            for name, entry in entries.items():
                data = file.read(entry['data_offsets'][1] - entry['data_offsets'][0])
                if hashlib.sha256(data).hexdigest() != manifest[name][-1]:
                    raise ValueError(f'the array {name!r} is damaged')
                dtype = jnp.dtype(dtypes[entry['dtype']])
                array = np.frombuffer(bytearray(data), dtype.newbyteorder('<')).reshape(entry['shape'])
                arrays[name] = array.astype(dtype, copy=False)
            return arrays, {name: described[:-1] for name, described in manifest.items()}
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror or error}') from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f'{path} is corrupt, or was not written by seqjax ({error})') from error


def _read_header(file: BinaryIO) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries of the arrays and the manifest; raises ValueError or the like if anything is wrong with them."""
    size = os.fstat(file.fileno()).st_size
    count = int.from_bytes(file.read(8), 'little')
    if not 0 < count <= size - 8:
        raise ValueError('its header is damaged')
    header = file.read(count)
    entries = json.loads(header)
    metadata = entries.pop(METADATA)
    if metadata['format'] != FORMAT:
        raise ValueError(f'its format is {metadata["format"]!r} and must be {FORMAT!r}')
    before, seal, after = header.rpartition(metadata['sha256'].encode())
    if hashlib.sha256(before + UNSEALED.encode() + after).hexdigest() != seal.decode():
        raise ValueError('its header is damaged')
    end = 8 + count + max((entry['data_offsets'][1] for entry in entries.values()), default=0)
    if end != size:
        raise ValueError(f'it has {size:,} bytes and must have {end:,}')
    return entries, json.loads(metadata['manifest'])
