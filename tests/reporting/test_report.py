"""What a person sees: numbers, the parameter table, intervals, quantiles and pictures."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import config
from seqjax.cli import task_registry, task_setup
from seqjax.cli.settings import Settings
from seqjax.errors import UserError
from seqjax.nn import models, rnn, seq2seq
from seqjax.nn.build import build_model
from seqjax.nn.cells.lstm_cell import LSTMCell
from seqjax.nn.wrappers import TimeDistributed
from seqjax.reporting import plots, statistics, text_tables
from seqjax.tasks import synthetic, td
from seqjax.training import run_summary

TABLES = {
    'one_to_one': ['rnn (RNN(LSTMCell)) (None, 5) 140', 'head (Dense) (None, 1) 6', 'Total params: 146'],
    'many_to_one': ['rnn (RNN(LSTMCell)) (None, 5) 140', 'head (Dense) (None, 5) 30', 'Total params: 170'],
    'many_to_many': [
        'rnn (RNN(LSTMCell)) (None, 5, 5) 140',
        'head (TimeDistributed(Dense)) (None, 5, 1) 6',
        'Total params: 146',
    ],
}


@pytest.mark.parametrize('setup', TABLES)
def test_the_table_of_each_setup(setup):
    """The notebook's shapes and counts, the rows in the order of the calls, all lines as wide as the rules."""
    task = td.td(setup)
    model = build_model(task.spec, config.ModelConfig(hidden=5))
    lines = text_tables.format_table(text_tables.model_layers(model, task.data.inputs)).splitlines()
    assert [' '.join(line.split()) for line in lines if '=' not in line][1:] == TABLES[setup]
    assert lines[1] == lines[-2] == '=' * len(lines[0]) == '=' * len(lines[2]) == '=' * len(lines[3])


def assert_complete(model, inputs):
    """The rows add up to the numbers of all parameters, named as these are; the total of the table says so."""
    params = jax.eval_shape(model.init, jax.random.key(0), inputs).get('params', {})
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    layers = text_tables.model_layers(model, inputs)
    assert sum(layer.params for layer in layers) == total
    assert {layer.name for layer in layers if layer.params} == {
        name for name in params if jax.tree.leaves(params[name])
    }
    for layer in layers:
        assert layer.params == sum(leaf.size for leaf in jax.tree.leaves(params.get(layer.name, {})))
    assert text_tables.format_table(layers).endswith(f'Total params: {total:,}')
    assert run_summary.new_summary('x', {}, layers)['params'] == total
    return [(layer.name, layer.kind, layer.output_shape, layer.params) for layer in layers]


TOKENS, PAIR = np.zeros((2, 4), int), (np.zeros((2, 4), int), np.zeros((2, 3), int))
FLOATS = np.zeros((2, 4, 3), np.float32)


@pytest.mark.parametrize('options', [{}, {'bidirectional': True, 'merge_mode': 'sum', 'source_vocabulary': 5}])
@pytest.mark.parametrize('attention', config.ATTENTIONS)
def test_the_table_of_an_encoder_and_decoder_is_complete(attention, options):
    assert_complete(seq2seq.encoder_decoder(7, features=4, attention=attention, **options), PAIR)


def test_the_table_holds_on_to_no_tracer():
    """As JAX_CHECK_TRACER_LEAKS=1 has it."""
    with jax.checking_leaks():
        assert text_tables.model_layers(nn.Sequential([nn.Dense(4), nn.Dense(2)]), FLOATS)


def test_an_attention_shows_its_context():
    """By hand: query (c and h), key and score of an additive attention of 4 units are 8 x 4 + 4 x 4 + 4 weights."""
    rows = assert_complete(seq2seq.encoder_decoder(7, features=4, attention='additive'), PAIR)
    assert ('attention', 'AdditiveAttention', (None, 4), 52) in rows
    rows = assert_complete(seq2seq.encoder_decoder(7, features=4, attention='general'), PAIR)
    assert ('attention', 'DotAttention', (None, 4), 16) in rows


@pytest.mark.parametrize('cell', models.CELLS)
def test_the_table_of_every_cell_is_complete(cell):
    assert_complete(models.sequence_model('last', 2, cell=cell, features=4), FLOATS)


@pytest.mark.parametrize('cell', ['lstm', 'lru'])
@pytest.mark.parametrize(
    ('options', 'inputs'),
    [
        ({'learn_initial_carry': True}, FLOATS),
        ({'vocabulary': 5, 'bidirectional': True, 'learn_initial_carry': True}, TOKENS),
        ({'layers': 2, 'dropout': 0.5, 'input_dropout': 0.1, 'output_dropout': 0.1}, FLOATS),
        ({'vocabulary': 5, 'stateful': True}, (TOKENS, np.array([4, 2]))),
    ],
)
def test_the_table_of_a_sequence_model_is_complete(cell, options, inputs):
    assert_complete(models.sequence_model('per_step', 2, cell=cell, features=4, **options), inputs)


@pytest.mark.parametrize('name', [name for name in task_registry.NAMES if name != 'echo'])
def test_the_table_of_every_task_is_complete(name):
    experiment = task_registry.find(name)
    problem = experiment.synthetic_task(experiment.defaults)
    assert_complete(
        task_setup.make_model(problem.spec, Settings.of(experiment.defaults).model), synthetic.input_shapes(problem)
    )


class Custom(nn.Module):
    """Its own parameters, parts reached by methods alone, a shared part, one that gives no array, a tied embedding."""

    def setup(self):
        self.scale = self.param('scale', nn.initializers.ones, (3, 2))
        self.pair = self.param('pair', lambda key: {'a': jnp.ones(2), 'b': jnp.ones((2, 2))})
        self.embed, self.shared, self.aside = nn.Embed(5, 3), nn.Dense(3), Aside()

    def __call__(self, tokens):
        x = self.shared(self.shared(self.embed(tokens)))
        return self.embed.attend(x) + self.scale.sum() + self.pair['a'].sum() + self.aside.weight()


class Aside(nn.Module):
    @nn.compact
    def weight(self):
        return self.param('weight', nn.initializers.ones, (2, 3)).sum()

    def nothing(self):
        return None


def test_the_table_has_what_the_model_itself_owns():
    assert assert_complete(Custom(), TOKENS) == [
        ('embed', 'Embed', (None, 4, 3), 15),
        ('shared', 'Dense', (None, 4, 3), 12),
        ('aside', 'Aside', (None,), 6),
        ('pair', 'parameters', (), 6),
        ('scale', 'parameter', (3, 2), 6),
    ]
    rows = assert_complete(rnn.RNN(LSTMCell(4), learn_initial_carry=True), FLOATS)
    assert [row for row in rows if row[1] == 'parameter'] == [
        ('initial_carry_c', 'parameter', (4,), 4),
        ('initial_carry_h', 'parameter', (4,), 4),
    ]
    assert assert_complete(nn.Dense(2), FLOATS) == [('bias', 'parameter', (2,), 2), ('kernel', 'parameter', (3, 2), 6)]


@pytest.mark.parametrize(
    'model',
    [
        nn.Sequential([nn.remat(nn.Dense)(4), nn.relu, nn.Dropout(0.5, deterministic=True), nn.Dense(2)]),
        nn.vmap(nn.Dense, variable_axes={'params': 0}, split_rngs={'params': True})(4),
        nn.Sequential([nn.vmap(nn.Dense, variable_axes={'params': 0}, split_rngs={'params': True})(4), nn.LayerNorm()]),
        nn.Sequential([TimeDistributed(nn.Dense(4)), nn.RNN(nn.GRUCell(3)), nn.MultiHeadDotProductAttention(1)]),
        nn.Sequential(
            [nn.WeightNorm(nn.Dense(4)), nn.Dense(2, kernel_init=nn.with_partitioning(nn.zeros, ('a', 'b')))]
        ),
        nn.Sequential([nn.relu]),
        nn.Sequential(
            [nn.BatchNorm(use_running_average=True), nn.Bidirectional(nn.RNN(nn.GRUCell(3)), nn.RNN(nn.GRUCell(3)))]
        ),
    ],
    ids=range(7),
)
def test_the_table_of_any_module_is_complete(model):
    assert_complete(model, FLOATS)


@pytest.mark.parametrize(
    ('x', 'shown'),
    [(-0.04, '0.0'), (-0.0, '0.0'), (-0.06, '-0.1'), (0.96, '1.0'), (np.float32(0.2), '0.2'), (-12.34, '-12.3')],
)
def test_a_number_with_one_decimal(x, shown):
    assert text_tables.format_decimals(x) == shown


# Wilson score intervals at 95% as statsmodels' proportion_confint(..., method='wilson') gives them.
WILSON = {
    (0, 10): (0.0, 0.27753280),
    (1, 10): (0.01787621, 0.40415003),
    (5, 10): (0.23659309, 0.76340691),
    (10, 10): (0.72246720, 1.0),
}


@pytest.mark.parametrize('case', WILSON)
def test_share_interval(case):
    assert statistics.wilson_interval(*case) == pytest.approx(WILSON[case], abs=1e-6)


@pytest.mark.parametrize(('successes', 'count'), [(0, 1), (1, 1), (0, 10**6), (10**6, 10**6)])
def test_share_interval_stays_a_share(successes, count):
    low, high = statistics.wilson_interval(successes, count)
    assert 0 <= low <= successes / count <= high <= 1 and low < high


def test_loss_quantiles_count_a_diverged_seed_as_the_worst():
    """NumPy's own quantiles of each step; NaN and infinity stand above all finite losses and nothing becomes NaN."""
    losses = np.random.default_rng(0).uniform(1, 2, size=(41, 3)).astype(np.float32)
    np.testing.assert_allclose(
        statistics.loss_quantiles(losses), [np.quantile(losses, q, axis=0) for q in (0.025, 0.25, 0.5, 0.75, 0.975)]
    )
    sick = losses.copy()
    sick[:10, 0], sick[:10, 1], sick[0, 2] = np.nan, np.inf, -np.inf
    got = statistics.loss_quantiles(sick)
    assert np.isfinite(got).all() and (got[4, :2] > 1e38).all()
    worst = losses.copy()
    worst[:10, :2], worst[0, 2] = 1e30, 1e30
    np.testing.assert_allclose(got[:3], np.quantile(worst, [0.025, 0.25, 0.5], axis=0), rtol=1e-6)


def test_loss_quantiles_of_many_steps_and_of_one_seed_leave_the_losses_alone():
    """They are taken in blocks of steps, over which they are sorted in place."""
    steps = 2 * statistics.COLUMNS + 3
    for count in (1, 5):
        losses = np.random.default_rng(count).uniform(1, 2, size=(count, steps)).astype(np.float32)
        losses[0, ::7] = np.nan
        before = losses.copy()
        got = statistics.loss_quantiles(losses)
        np.testing.assert_array_equal(losses, before)
        finite = np.where(np.isfinite(losses), losses, np.finfo(np.float32).max)
        np.testing.assert_array_equal(got, np.quantile(finite, statistics.BANDS, axis=0))


@pytest.mark.parametrize('shape', [(7,), (3, 7)])
@pytest.mark.parametrize('value', [0.0, 1e-30, 3e38])
def test_a_loss_curve_is_drawn_whatever_its_size(shape, value):
    """A warning is an error here: losses of exactly 0 (--length=1 has them) fit no logarithmic axis."""
    pytest.importorskip('matplotlib')
    figure, (axis,) = plots.new_figure(1, 'title')
    plots.draw_loss(axis, np.full(shape, value, np.float32))
    figure.canvas.draw()


def test_pictures_show_the_numbers_they_were_given():
    pytest.importorskip('matplotlib')
    rng = np.random.default_rng(1)
    losses, predictions, targets = rng.uniform(1, 2, (30, 4)), rng.normal(size=(30, 3)), np.array([0.0, 0.3, 0.7])
    _, (left, right) = plots.new_figure(2, 'title')
    plots.draw_loss(left, losses)
    plots.draw_predictions(right, targets, predictions)
    (median,) = [line for line in left.lines if line.get_label() == 'median']
    np.testing.assert_array_equal(median.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(median.get_ydata(), np.median(losses, axis=0))
    (dots,) = [line for line in right.lines if line.get_label() == 'median prediction']
    np.testing.assert_allclose(dots.get_ydata(), np.median(predictions, axis=0))
    assert '95% of 30 seeds' in [text.get_text() for text in left.get_legend().get_texts()]
    _, (left, right) = plots.new_figure(2, 'title')
    plots.draw_loss(left, losses[0])
    plots.draw_predictions(right, targets, predictions[0])
    np.testing.assert_array_equal(left.lines[0].get_ydata(), losses[0])
    np.testing.assert_array_equal(right.lines[0].get_ydata(), predictions[0])


def test_the_interval_of_a_median_covers_it_as_often_as_it_says():
    """Of 2,000 samples of a skewed distribution, within three standard errors; few values give their range."""
    rng = np.random.default_rng(0)
    for count in (6, 15, 50):
        found = [statistics.median_interval(values) for values in rng.exponential(size=(2000, count))]
        covered = np.mean([low <= np.log(2) <= high for low, _, high in found])
        assert 0.95 - 3 * (0.05 * 0.95 / 2000) ** 0.5 <= covered <= 0.99, (count, covered)
    assert statistics.median_interval(np.array([3.0, 1.0, np.nan])) == (1.0, 3.0, np.inf)


def test_a_block_of_a_page_is_replaced_alone(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('before\n<!-- x -->\nold \\1\n<!-- end of x -->\nafter\n')
    text_tables.replace_block(page, 'x', r'new \1')
    text_tables.replace_block(page, 'x', r'new \1')
    assert page.read_text() == 'before\n<!-- x -->\n\nnew \\1\n\n<!-- end of x -->\nafter\n'
    for name, place in (('y', page), ('x', tmp_path / 'none.md')):
        with pytest.raises(UserError, match=place.name):
            text_tables.replace_block(place, name, '')
