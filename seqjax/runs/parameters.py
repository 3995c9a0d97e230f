"""Saving the arrays of any pytree to one file: parameters, a train state, PRNG keys. `save` and `load` need no run.

The file has the safetensors format: the length of a JSON header, the header, the arrays one after the other. The
header's metadata have the sha256 of each array, and of the header itself.
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

CODES = {  # dtypes of safetensors
    **{'bool': 'BOOL', 'float16': 'F16', 'bfloat16': 'BF16', 'float32': 'F32', 'float64': 'F64'},
    **{'uint8': 'U8', 'uint16': 'U16', 'uint32': 'U32', 'uint64': 'U64', 'complex64': 'C64', 'complex128': 'C128'},
    **{'int8': 'I8', 'int16': 'I16', 'int32': 'I32', 'int64': 'I64'},
    **{'float8_e4m3fn': 'F8_E4M3', 'float8_e5m2': 'F8_E5M2'},
}
METADATA, FORMAT = '__metadata__', 'seqjax 1'
NO_SHA256 = '0' * 64  # placeholder for the header's own sha256 while it is computed
MAX_DIFFERENCES = 5  # differences shown in a message


def is_key(leaf: Any) -> bool:
    """Returns True if an array consists of typed PRNG keys, which are saved as integers."""
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def flatten_with_names(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by name, such as params/head/kernel.

    Raises:
      UserError: two leaves have the same name, such as in {'a/b': x, 'a': {'b': x}}, or a name cannot be encoded.
    """
    leaves: dict[str, Any] = {}
    for keys, leaf in key_paths(tree):
        name = '/'.join(keys)
        if name in leaves:
            raise UserError(f'two arrays of the tree are named {name!r}; rename the key that contains a "/"')
        if '\0' in name or not validation.is_encodable(name):
            raise UserError(f'the key {name!r} contains a character that cannot be written to a file; rename it')
        leaves[name] = leaf
    return leaves


def key_paths(tree: Any) -> Iterator[tuple[list[str], Any]]:
    """Yields (path, leaf) for each leaf of a tree; the path is a list of keys, field names and indices as strings."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        keys = (getattr(part, kind) for part in path for kind in ('key', 'name', 'idx') if hasattr(part, kind))
        yield [str(key) for key in keys], leaf


def save(path: str | os.PathLike[str], tree: Any) -> None:
    """Writes all arrays of a pytree to one file, atomically.

    Args:
      path: the file, which is replaced if it exists; its folder is created.
      tree: arrays of JAX or NumPy, PRNG keys and Python numbers, in containers of any kind.

    Raises:
      UserError: the file cannot be written, two arrays have the same name, or a dtype is not supported. The message
        names the array.

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
    entries[METADATA] = {'format': FORMAT, 'manifest': json.dumps(manifest), 'sha256': NO_SHA256}
    header = json.dumps(entries).encode()
    header += b' ' * (-len(header) % 8)  # so that arrays start at a multiple of 8
    before, _, after = header.rpartition(NO_SHA256.encode())
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
    """Returns a leaf as a little-endian NumPy array, PRNG keys as integers; raises UserError if it cannot be saved."""
    array = np.asarray(jax.random.key_data(leaf) if hasattr(leaf, 'dtype') and is_key(leaf) else leaf, order='C')
    if name == METADATA or array.dtype.name not in CODES:
        reason = (
            'its name is reserved by safetensors; rename it'
            if name == METADATA
            else f'its dtype is {array.dtype}; convert it to a numeric dtype, such as float32'
        )
        raise UserError(f'the array {name!r} cannot be saved: {reason}')
    return array.astype(array.dtype.newbyteorder('<'), copy=False)


def _describe(leaf: Any) -> list[Any]:
    """Returns [dtype, shape] of a leaf as the manifest stores it; [type, []] for a Python number."""
    if not hasattr(leaf, 'dtype'):
        return [type(leaf).__name__, []]
    return [leaf.dtype.name if isinstance(leaf.dtype, np.dtype) else str(leaf.dtype), list(leaf.shape)]


def load(path: str | os.PathLike[str], like: Any) -> Any:
    """Returns the tree of arrays in a file that `save` wrote.

    Args:
      path: the file.
      like: a tree of the same structure with shapes and dtypes: arrays, or the result of `jax.eval_shape`. Each array
        that is read has the type of its counterpart in `like`: NumPy array, Python number, or JAX array with the same
        sharding.

    Returns:
      The tree, with every array bit for bit as it was saved.

    Raises:
      UserError: the file does not exist, is corrupt or has another format; or arrays are missing, not in `like`, or
        have another shape or dtype. The message names them.
    """
    path, leaves = Path(path), flatten_with_names(like)
    arrays, stored = _read(path)
    expected = {name: _describe(leaf) for name, leaf in leaves.items()}
    differences = [f'{name} is missing' for name in expected if name not in stored]
    differences += [f'{name} is not expected' for name in stored if name not in expected]
    for name in expected:
        if name in stored and not _fits(arrays[name], stored[name], expected[name]):
            (dtype, shape), (want_dtype, want_shape) = stored[name], expected[name]
            differences.append(f'{name} is {dtype} {shape} and must be {want_dtype} {want_shape}')
    if differences:
        more = f', and {len(differences) - MAX_DIFFERENCES} more' if len(differences) > MAX_DIFFERENCES else ''
        raise UserError(f'{path} does not have the arrays of `like`: {", ".join(differences[:MAX_DIFFERENCES])}{more}')
    return jax.tree.unflatten(jax.tree.structure(like), [_convert(arrays[name], leaf) for name, leaf in leaves.items()])


def _fits(array: np.ndarray, stored: list[Any], expected: list[Any]) -> bool:
    """Returns True if a saved leaf, `stored`, can be loaded as the leaf `expected`; both are [dtype, shape].

    They are equal, or one is a Python number and the other a scalar array of the same kind (bool, int, float, complex);
    an integer must also fit into the expected dtype.
    """
    if stored == expected:
        return True
    (dtype, shape), (want_dtype, want_shape) = stored, expected
    if shape or want_shape or dtype in CODES and want_dtype in CODES:
        return False
    kinds = [{'bool': 'b', 'int': 'i', 'float': 'f', 'complex': 'c'}.get(x) or _kind(x) for x in (dtype, want_dtype)]
    fits = kinds[0] != 'i' or want_dtype not in CODES or np.can_cast(np.min_scalar_type(array.item()), want_dtype)
    return kinds[0] == kinds[1] and bool(fits)


def _kind(dtype: str) -> str:
    """Returns the kind of a dtype (b, i, f or c), or the name of a dtype of another kind, such as PRNG keys."""
    kinds = {'b': jnp.bool_, 'i': jnp.integer, 'f': jnp.floating, 'c': jnp.complexfloating}
    return next((kind for kind, base in kinds.items() if dtype in CODES and jnp.issubdtype(dtype, base)), dtype)


def _convert(array: np.ndarray, like: Any) -> Any:
    """Returns an array with the type of `like`: NumPy array, Python number, or JAX array with the sharding of `like`.

    If JAX would reduce the precision of a dtype such as float64, the result is a NumPy array.
    """
    if not hasattr(like, 'dtype'):
        return array.item()
    if not is_key(like):
        array = array.astype(like.dtype, copy=False)  # a Python number was saved
    if isinstance(like, np.ndarray | np.generic):
        return array[()] if isinstance(like, np.generic) else array
    if is_key(like):
        array = jax.random.wrap_key_data(array, impl=jax.random.key_impl(jnp.empty((), like.dtype)))
    elif jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        return array  # `array` is still a NumPy array
    sharding = getattr(like, 'sharding', None) if getattr(like, 'committed', True) else None
    return jnp.asarray(array) if sharding is None else jax.device_put(array, sharding)


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, list[Any]]]:
    """Returns the arrays of a file by name, keys as integers, and [dtype, shape] by name; verifies all checksums."""
    try:
        with path.open('rb') as file:
            entries, manifest = _read_header(file)
            dtypes, arrays = {code: name for name, code in CODES.items()}, {}
            for name, entry in entries.items():
                data = file.read(entry['data_offsets'][1] - entry['data_offsets'][0])
                if hashlib.sha256(data).hexdigest() != manifest[name][-1]:
                    raise ValueError(f'the checksum of the array {name!r} differs')
                dtype = jnp.dtype(dtypes[entry['dtype']])
                array = np.frombuffer(bytearray(data), dtype.newbyteorder('<')).reshape(entry['shape'])
                arrays[name] = array.astype(dtype, copy=False)
            return arrays, {name: entry[:-1] for name, entry in manifest.items()}
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror or error}; use another file') from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f'{path} is corrupt, or was not written by seqjax ({error}); use another file') from error


def _read_header(file: BinaryIO) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns {array: header entry} and the manifest; raises ValueError or a similar error if they are invalid."""
    size = os.fstat(file.fileno()).st_size
    count = int.from_bytes(file.read(8), 'little')
    if not 0 < count <= size - 8:
        raise ValueError('its header is truncated')
    header = file.read(count)
    entries = json.loads(header)
    metadata = entries.pop(METADATA)
    if metadata['format'] != FORMAT:
        raise ValueError(f'its format is {metadata["format"]!r} and must be {FORMAT!r}')
    before, checksum, after = header.rpartition(metadata['sha256'].encode())
    if hashlib.sha256(before + NO_SHA256.encode() + after).hexdigest() != checksum.decode():
        raise ValueError('the checksum of its header differs')
    end = 8 + count + max((entry['data_offsets'][1] for entry in entries.values()), default=0)
    if end != size:
        raise ValueError(f'it has {size:,} bytes and must have {end:,}')
    return entries, json.loads(metadata['manifest'])
