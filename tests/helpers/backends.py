"""The backends of the recurrences that this machine can run."""

from seqjax.ops.native import library


def available(names):
    """Returns the names without 'native' if no compiler can build its kernels."""
    return [name for name in names if name != 'native' or library.load('float32').key is not None]
