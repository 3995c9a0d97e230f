"""Representative parts of exhaustive grids: the rest of a grid is marked slow.

A test says which part of its parameters stays in the default run:

    @pytest.mark.representative  # every pair of values of two parameters occurs at least once
    @pytest.mark.representative(1)  # every value of every parameter occurs at least once
    @pytest.mark.representative(every=4)  # the first, the fifth, the ninth, ... in order of collection
    @pytest.mark.representative(every=4, first=1)  # the second, the sixth, the tenth, ...
    @pytest.mark.representative(by=lambda case: case.features)  # every one of these hashables occurs at least once
"""

import itertools
from collections import defaultdict

import pytest

PLAIN = (bool, int, float, str, bytes, type(None))


def mark_slow(items):
    """Marks the tests beyond the representative part of their grid as slow."""
    grids = defaultdict(list)
    for item in items:
        if item.get_closest_marker('representative') and hasattr(item, 'callspec'):
            grids[item.nodeid.split('[')[0]].append(item)
    for grid in grids.values():
        marker = grid[0].get_closest_marker('representative')
        kept = representative(grid, *marker.args, **marker.kwargs)
        for item in grid:
            if item not in kept:
                item.add_marker(pytest.mark.slow)


def representative(grid, strength=2, every=None, first=0, by=None):
    """Returns the items to keep: each n-th of the grid, or few that have all features of the grid."""
    if every:
        return grid[first::every]
    by = by or (lambda **params: combinations(params, strength))
    features = {item: set(by(**item.callspec.params)) for item in grid}
    missing, kept = set().union(*features.values()), []
    while missing:
        best = max(grid, key=lambda item: len(features[item] & missing))  # the first of equals
        missing -= features[best]
        kept.append(best)
    return kept


def combinations(params, strength):
    """Returns all combinations of `strength` parameters with their values."""
    values = sorted((name, identity(value)) for name, value in params.items())
    return itertools.combinations(values, min(strength, len(values)))


def identity(value):
    """Returns a string that is equal for equal plain values, and for one and the same object."""
    return f'{type(value).__name__} {value!r}' if isinstance(value, PLAIN) else f'object {id(value)}'
