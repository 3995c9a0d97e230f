"""The recipe of a forecast: all that a prediction must know of the training data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seqjax.datasets import forecast_heads, forecast_preprocessing, recipes

OPTIONAL_NAME = recipes.optional(recipes.text(1))
SCHEMA = {
    'targets': recipes.several(recipes.text(1), 1, distinct=True),
    'covariates': recipes.NAMES,
    'date': OPTIONAL_NAME,
    'id': OPTIONAL_NAME,
    'mask': recipes.SWITCH,
    'calendar': recipes.SWITCH,
    'lag': recipes.optional(recipes.whole(1)),
    'horizon': recipes.whole(1),
    'window': recipes.whole(1),
    'strategy': recipes.choice('direct', 'recursive'),
    'head': recipes.choice(*forecast_heads.NUMBERS),
    'cycles': recipes.several(recipes.choice(*forecast_preprocessing.CYCLES), distinct=True),
    'own': recipes.SWITCH,
}
LATER = {  # absent from the recipes of earlier versions
    'header': recipes.optional(recipes.several(recipes.text(), 1, distinct=True)),
    'separator': recipes.optional(recipes.text(1)),
    'left_out': recipes.optional(recipes.several(recipes.text(), distinct=True)),
}
PACES = {'months': 12_000, 'ends of months': 12_000, 'weekdays': 1, 'microseconds': 10**16}  # most of each unit


def check_recipe(recipe: Any, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a recipe that was read from a file; raises UserError if it is invalid or not that of the settings."""
    copied = ('date', 'id', 'horizon', 'window', 'strategy', 'head', 'calendar')
    implied = {
        'covariates': list(settings['covariates'] or ()),
        'mask': settings['missing'] == 'mask',
    }
    recipes.check(recipe, SCHEMA, {name: settings[name] for name in copied} | implied)
    recipes.check(recipe, {name: rule for name, rule in LATER.items() if name in recipe})
    lag = {'last': recipe['lag'] == 1, 'nothing': recipe['lag'] is None, 'season': (recipe['lag'] or 0) > 1}
    recipes.require(lag[settings['relative_to']], f'lag={recipe["lag"]} with --relative_to={settings["relative_to"]}')
    columns, scales, found = len(recipe['targets']) + len(recipe['covariates']), *map(recipe.get, ('scales', 'pace'))
    recipes.require(settings['target'] in (None, recipe['targets']), f'targets={recipe["targets"]}')
    recipes.require(
        isinstance(scales, dict)
        and len(scales) > 0
        and all(isinstance(rows, list) and len(rows) == columns for rows in scales.values())
        and all(
            forecast_heads.SCALE.holds(row) and len(row) == 2 and row[1] > 0 for rows in scales.values() for row in rows
        ),
        f'scales that are not a mean and a positive deviation for each of {columns} columns',
    )
    recipes.require(
        found is None
        and settings['date'] is None
        or isinstance(found, list)
        and len(found) == 2
        and found[0] in PACES
        and recipes.whole(1, PACES[found[0]]).holds(found[1]),
        f'pace={str(found)[:80]}',
    )
    recipes.require(bool(recipe['cycles']) == recipe['calendar'], f'cycles={recipe["cycles"]}')
    recipes.require(recipe['own'] == (len(scales) * len(recipe['targets']) == 1), f'own={recipe["own"]}')
    return recipe
