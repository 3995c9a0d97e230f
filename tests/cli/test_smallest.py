"""The smallest files and settings of every kind: each works, or ends in one sentence."""

import json

import jax
import numpy as np
import pytest

from seqjax import config
from seqjax.cli import registry, task_setup
from seqjax.errors import UserError
from tests.helpers import kinds

pytest.importorskip('pandas', reason='files are read by the extra "data"')


def table(path, rows, *, dates=True, gap='D', ids=()):
    rng = np.random.default_rng(0)
    lines = [','.join(['day'] * dates + ['who'] * bool(ids) + ['x', 'z'])]
    for who in ids or [None]:
        for step in range(rows):
            day = [str(np.datetime64('2020-01-01') + np.timedelta64(step, gap))] if dates else []
            lines.append(','.join([*day, *([who] if who else []), *(f'{value:.3f}' for value in rng.normal(size=2))]))
    path.write_text('\n'.join(lines) + '\n')


def run(kind, flags, split='all'):
    """All of a run and of a prediction but the training: of a model only shapes are computed."""
    settings = kind.check({'num_seeds': 1, 'hidden': 2, **flags})
    data = kind.dataset(settings)
    model = task_setup.make_model(data.spec, settings.model)
    batch = jax.eval_shape(data.batch, data.data, jax.random.key(0), jax.ShapeDtypeStruct((), np.int32))
    data.train_plus_validation()
    for split in config.SPLITS if kind.name == 'forecast' else ():  # others take their time
        assert all(np.isfinite(score(split).totals).all() for score in data.baselines.values())

    def answers_to(batches):
        def answer(batch):
            outputs, _ = model.init_with_output(jax.random.key(0), batch.inputs)
            return data.postprocess(outputs, batch)

        one = jax.eval_shape(answer, jax.tree.map(lambda x: x[0], batches))
        return jax.tree.map(lambda x: np.zeros((len(batches.mask), *x.shape), x.dtype), one)

    jax.eval_shape(lambda batch: data.loss_fn(model.init_with_output(jax.random.key(0), batch.inputs)[0], batch), batch)
    answers = answers_to(data.test.batches)
    assert len(data.items(answers).totals) >= 1
    list(data.summary(answers))
    columns, rows = data.test.table(answers)
    assert all(len(row) == len(columns) for row in rows)
    preprocessing = json.loads(json.dumps(dict(data.preprocessing)))
    kind.spec(preprocessing)
    unseen = kind.prediction_inputs(settings, preprocessing, settings.options['data'], split)
    columns, rows = unseen.table(answers_to(unseen.batches))
    assert all(len(row) == len(columns) for row in rows)
    return data


BASE = {'target': 'x', 'window': 4, 'horizon': 1, 'batch_size': 1}
FORECAST = [
    {'date': 'day', 'calendar': True},
    {'date': 'day', 'calendar': True, 'strategy': 'recursive'},
    {'date': 'day', 'calendar': True, 'likelihood': 'quantile', 'covariates': 'z'},
    {'strategy': 'recursive'},
    {'strategy': 'recursive', 'likelihood': 'gaussian', 'date': 'day', 'calendar': True, 'target': ['x', 'z']},
    {'likelihood': 'gaussian'},
    {'residual': 'none'},
    {'residual': 'season', 'season': 2},
    {'residual': 'season', 'date': 'day'},
    {'season': 27},
    {'season': [2, 3, 27]},
    {'ar_order': 1},
    {'ar_order': 13},
    {'missing': 'mask'},
    {'window': 1},
    {'window': 27},
    {'validation_from': '38', 'test_from': '39'},
    {'validation_from': '6', 'test_from': '40'},
    {'date': 'day', 'validation_from': '2020-02-07', 'test_from': '2020-02-08', 'calendar': True},
    {'validation_fraction': 0.02, 'test_fraction': 0.02},
    {'layers': 2, 'dropout': 0.5, 'cell': 'gru'},
]


@pytest.mark.representative(every=2)
@pytest.mark.parametrize(
    'flags', FORECAST, ids=lambda flags: ' '.join(f'{name}={value}' for name, value in flags.items())
)
def test_a_forecast_of_one_step(in_tmp, flags):
    table(in_tmp / 'x.csv', 40)
    data = run(registry.module('forecast').EXPERIMENT, {**BASE, **flags, 'data': 'x.csv'}, 'test')
    assert data.spec.outputs >= 1


@pytest.mark.representative(1)
@pytest.mark.parametrize('rows', range(1, 9))
@pytest.mark.parametrize('flags', [{}, {'date': 'day', 'calendar': True}, {'validation_from': '5', 'test_from': '6'}])
def test_a_forecast_of_a_few_rows_works_or_ends_in_one_sentence(in_tmp, rows, flags):
    table(in_tmp / 'x.csv', rows)
    kind = registry.module('forecast').EXPERIMENT
    flags = {**BASE, **flags, 'window': 1, 'data': 'x.csv'}
    if rows >= 6:
        assert run(kind, flags, 'test').preprocessing['window'] == 1
        return
    with pytest.raises(UserError, match='x.csv') as caught:
        run(kind, flags)
    assert (
        '\n' not in str(caught.value)
        and f'{rows} rows' in str(caught.value).replace('from 2 to ', '') + f' {rows} rows'
    )


@pytest.mark.parametrize(
    ('content', 'flags'),
    [
        ({'gap': 'h'}, {'date': 'day', 'calendar': True}),
        ({'gap': 'W'}, {'date': 'day', 'calendar': True}),
        ({'dates': False}, {'target': None, 'covariates': 'z'}),
        ({'ids': ['a']}, {'id': 'who'}),
        ({'ids': ['a'], 'gap': 'h'}, {'id': 'who', 'date': 'day', 'calendar': True, 'skip_short': True}),
    ],
)
def test_a_forecast_of_one_series_or_one_column(in_tmp, content, flags):
    table(in_tmp / 'x.csv', 40, **content)
    run(registry.module('forecast').EXPERIMENT, {**BASE, **flags, 'data': 'x.csv'})


OTHERS = {
    'classify': ('slopes.ts', kinds.archive, [{}, {'batch_size': 1}, {'missing': 'mask'}, {'bidirectional': True}]),
    'text': (
        'cats.txt',
        kinds.text,
        [
            {'window': 1, 'max_eval_tokens': 400},
            {'window': 16, 'batch_size': 1},
            {'tokenizer': 'words', 'window': 1},
            {'tokenizer': 'bytes'},
        ],
    ),
    'music': ('songs.mat', kinds.rolls, [{'window': 1}, {'batch_size': 1}, {'window': 1000}]),
    'digits': (
        'digits',
        None,
        [{'test_size': 1}, {'test_size': 100, 'scan_order': 'pixels'}, {'permute': True}, {'batch_size': 1}],
    ),
}


@pytest.mark.representative(every=2)
@pytest.mark.parametrize(('name', 'flags'), [(name, flags) for name, (_, _, all_) in OTHERS.items() for flags in all_])
def test_other_kinds_with_the_smallest_settings(in_tmp, name, flags):
    file, make, _ = OTHERS[name]
    if make is not None:
        make(in_tmp / file)
    try:
        run(registry.module(name).EXPERIMENT, {**flags, 'data': file})
    except UserError as error:
        assert '\n' not in str(error) and '--' in str(error)
