"""Options by name: a mistyped one is refused with the function that was called and the nearest option."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

# Names of other libraries for an option here.
ALIASES = {'hidden': 'features', 'hidden_size': 'features', 'units': 'features'}


def nearest(word: Any, known: Iterable[Any], show: Callable[[str], str] = repr) -> str:
    """Returns the end of a message that suggests the most similar of the known words; empty if none is similar.

    >>> nearest('lsmt', ['lstm', 'gru']), nearest('hiden', ['hidden'], '--{}'.format)
    ("; did you mean 'lstm'?", '; did you mean --hidden?')
    """
    words = [other for other in known if isinstance(other, str)]
    aliases = {alias: word for alias, word in ALIASES.items() if word in words and alias not in words}
    close = difflib.get_close_matches(word, [*words, *aliases], 1) if isinstance(word, str) else []
    return f'; did you mean {show(aliases.get(close[0], close[0]))}?' if close else ''


def some(words: Iterable[str], most: int = 8) -> str:
    """Returns a few words, and how many more there are.

    >>> some('abcd', 2)
    'a, b and 2 more'
    """
    words = list(words)
    return ', '.join(words[:most]) + (f' and {len(words) - most:,} more' if len(words) > most else '')


def names(*functions: Callable[..., Any]) -> list[str] | None:
    """Returns the names of the arguments of functions or classes; None if one of them takes any name, or hides them."""
    known = []
    for function in functions:
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):  # of a callable without a signature
            return None
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return None
        known += [name for name in parameters if name not in ('self', 'parent', 'name')]
    return known


def check_options(function: str, given: Iterable[str], known: list[str] | None) -> None:
    """Raises TypeError if a given name is not among the known ones; with None every name is known.

    >>> check_options('RNN', ['revrse'], ['cell', 'reverse'])
    Traceback (most recent call last):
    TypeError: RNN has no option 'revrse'; did you mean 'reverse'?
    """
    for name in given:
        if known is not None and name not in (*known, 'parent', 'name'):
            raise TypeError(f'{function} has no option {name!r}{nearest(name, known) or "; use " + ", ".join(known)}')


class NamedOptions:
    """Mixin for Flax modules, to be named before `nn.Module`: their constructors check the names of options."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        make = cls.__init__  # which Flax has just made for this class
        known = names(make)

        @functools.wraps(make)
        def __init__(self: Any, *args: Any, **options: Any) -> None:
            check_options(cls.__name__, options, known)
            make(self, *args, **options)

        cls.__init__ = __init__  # type: ignore[method-assign]
