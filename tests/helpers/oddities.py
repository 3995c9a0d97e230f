"""Paths that are not regular files, and a process without root's permissions."""

import contextlib
import ctypes
import os
import socket

import pytest

ODD = ('pipe', 'socket', 'device', 'loop', 'dangling', 'folder', 'inside a file')
HEADER, OVERRIDES = (0x20080522, 0), 0b110  # of capget; CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


def odd(folder, kind, name='odd'):
    """Makes a path folder/name that is not a regular file, and returns it."""
    path = folder / name
    if kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'socket':
        cwd = os.getcwd()
        os.chdir(folder)  # the path of a socket has 108 bytes at most
        try:
            with socket.socket(socket.AF_UNIX) as unix_socket:
                unix_socket.bind(name)
        finally:
            os.chdir(cwd)
    elif kind == 'device':
        path.symlink_to('/dev/zero')
    elif kind == 'loop':
        path.symlink_to(path)
    elif kind == 'dangling':
        path.symlink_to(folder / 'nowhere')
    elif kind == 'folder':
        path.mkdir()
    else:
        (folder / 'plain').write_text('x')
        path = folder / 'plain' / name
    return path


@contextlib.contextmanager
def ordinary_user():
    """Drops root's capabilities to read and write everything; skips the test if that is impossible."""
    if os.geteuid():
        yield
        return
    libc, header, capabilities = (
        ctypes.CDLL(None, use_errno=True),
        (ctypes.c_uint32 * 2)(*HEADER),
        (ctypes.c_uint32 * 6)(),
    )
    if not hasattr(libc, 'capget') or libc.capget(header, capabilities):
        pytest.skip('needs an ordinary user, or a Linux whose root can become one')
    less = (ctypes.c_uint32 * 6)(capabilities[0] & ~OVERRIDES, *capabilities[1:])
    assert not libc.capset(header, less)
    try:
        yield
    finally:
        assert not libc.capset(header, capabilities)
