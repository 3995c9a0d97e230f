"""The benchmark: all libraries do the same work, and made-up times come to the verdicts that they must."""

import csv
import os

import jax
import numpy as np
import pytest

from benchmarks import bench
from benchmarks.peers import bench_config, cases, client, machine, measure, scores, table, worker
from benchmarks.peers.cases import Case
from benchmarks.peers.client import Client
from benchmarks.peers.flaxes import Flax
from benchmarks.peers.kerases import Keras
from benchmarks.peers.ours import Ours
from benchmarks.peers.scores import Timing, Timings
from benchmarks.peers.torches import Torch
from seqjax.errors import UserError
from seqjax.ops import gru, lstm

SMALL = Case(3, 4, 2, 5)
CELLS = (cases.LSTM, cases.GRU)


# --- the work --------------------------------------------------------------------------------------


@pytest.fixture(params=[scores.FLAX, scores.KERAS, scores.TORCH])
def peer(request):
    if request.param == scores.TORCH:
        pytest.importorskip('torch', reason='PyTorch is measured where it is installed')
        return Torch()
    if request.param == scores.KERAS:
        request.getfixturevalue('keras')
        return Keras()
    return Flax()


@pytest.mark.parametrize('cell', CELLS)
@pytest.mark.parametrize('what', [cases.FORWARD, cases.TRAINING, cases.STREAMING])
def test_a_peer_does_our_work(what, cell, peer):
    """From the same weights: outputs of all steps; loss and gradients of all weights; the second step of a stream."""
    sizes = SMALL._replace(steps=1 if what == cases.STREAMING else SMALL.steps, cell=cell)
    with jax.numpy_rank_promotion('allow'):
        ours, theirs = (getattr(one, what)(*sizes) for one in (Ours(), peer))
        ours.call(), theirs.call()
        found = [{name: np.asarray(x) for name, x in work.results().items()} for work in (ours, theirs)]
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) == (1 + len(cases.arrays(sizes).weights) if what == cases.TRAINING else 1)
    for name, x in found[0].items():
        assert x.shape == found[1][name].shape
        np.testing.assert_allclose(x, found[1][name], rtol=1e-4, atol=1e-5, err_msg=name)
        assert what == cases.TRAINING or x.std() > 0.01


def test_other_work_is_refused():
    """Beyond a ten-thousandth of the largest number; NaN is refused too."""
    ours = {'outputs': np.array([1.0, -2.0])}
    cases.check_equal(ours, {'outputs': np.array([1.0, -2.0001])}, 'flax', 'forward 5x5x1x5')
    for other in ([1.0, -2.001], [np.nan, -2.0]):
        with pytest.raises(UserError, match='forward 5x5x1x5.*flax'):
            cases.check_equal(ours, {'outputs': np.array(other)}, 'flax', 'forward 5x5x1x5')


@pytest.mark.parametrize('peer', [Ours, Flax])
def test_replicas_are_trained(peer):
    """Each call moves every seed on, from where it was."""
    work, losses = peer().replicas(3, 100), []
    for _ in range(3):
        work.call()
        losses.append(np.asarray(work.results()['loss']))
    assert losses[0].shape == (3,) and len(set(losses[0].tolist())) == 3
    assert (losses[1] < losses[0]).all() and (losses[2] < losses[1]).all()


@pytest.mark.parametrize('cell', CELLS)
def test_a_training_step_knows_its_memory(cell):
    """The temporaries grow with the steps that the backward pass needs again."""
    few, many = (Ours().training(*SMALL._replace(steps=steps, cell=cell)).temporaries for steps in (4, 400))
    assert 0 < few < many


def test_a_case_repeats_its_arrays():
    one, other = cases.arrays(SMALL), cases.arrays(SMALL)
    assert one.inputs.tobytes() == other.inputs.tobytes() and one.inputs.dtype == one.targets.dtype == np.float32
    assert {name: (x.shape, x.dtype) for name, x in one.weights.items()} == {
        'kernel': ((2, 20), np.float32),
        'recurrent_kernel': ((5, 20), np.float32),
        'bias': ((20,), np.float32),
    }
    weights = cases.arrays(SMALL._replace(cell=cases.GRU)).weights
    assert [x.shape for x in weights.values()] == [(2, 15), (5, 15), (15,), (15,)]
    assert not weights['recurrent_bias'][:10].any() and weights['recurrent_bias'][10:].all()  # only n has both in Flax


def test_random_rows_are_within_their_ranges_and_limits():
    """The same for the same seed, others for another."""
    rows = cases.draw(np.random.default_rng(7), 200, cases.FLOPS)
    for values, (low, high) in zip(np.array([row.sizes for row in rows]).T, cases.RANGES, strict=True):
        assert low <= values.min() < 3 * low and high / 3 < values.max() <= high
    assert all(row.flops(cases.TRAINING) <= cases.FLOPS and row.flax_bytes() <= cases.BYTES for row in rows)
    assert rows == cases.draw(np.random.default_rng(7), 200, cases.FLOPS)
    assert rows != cases.draw(np.random.default_rng(8), 200, cases.FLOPS)
    grus = cases.draw(np.random.default_rng(7), 20, cases.FLOPS, cases.GRU)
    assert {row.cell for row in rows} == {cases.LSTM} and {row.cell for row in grus} == {cases.GRU}


def test_a_row_is_read_as_it_is_written():
    for case in (SMALL, SMALL._replace(cell=cases.GRU)):
        assert cases.parse(str(case)) == case and cases.sizes(str(case)) == case.sizes == (3, 4, 2, 5)


def test_flops_are_those_of_the_matrix_products():
    assert Case(2, 3, 5, 7, cases.GRU).flops(cases.FORWARD) == 2 * 2 * 3 * (5 + 7) * 21
    assert Case(2, 3, 5, 7).flops(cases.FORWARD) == 2 * 2 * 3 * (5 + 7) * 28
    assert Case(2, 3, 5, 7).flops(cases.TRAINING) == 3 * Case(2, 3, 5, 7).flops(cases.FORWARD)


# --- the processes ---------------------------------------------------------------------------------


def test_a_visit_has_as_many_calls_as_its_time_and_at_least_one(monkeypatch):
    clock = iter(np.arange(0, 100, 0.5))
    monkeypatch.setattr(worker.time, 'perf_counter', lambda: next(clock))
    assert worker.timed(lambda: None, 0) == [0.5]
    assert worker.timed(lambda: None, 1.4) == [0.5] * 3


def test_a_worker_that_fails_is_told_with_its_last_words():
    told = "flax ended with exit code 1 .*KeyError: 'nothing'.*--peers"
    with Client(scores.FLAX, {}) as one, pytest.raises(UserError, match=told):
        one.ask('measure', name='nothing', seconds=0, threads=None)


@pytest.mark.skipif(not machine.PINS, reason='a process cannot be restricted to some cores on this system')
def test_a_worker_runs_on_its_cores_with_all_its_threads():
    core = max(os.sched_getaffinity(0))
    with Client(scores.OURS, {}, {core}) as one:
        one.ask('prepare', name='a', what=cases.FORWARD, sizes=list(SMALL))
        threads = os.listdir(f'/proc/{one.process.pid}/task')
        assert len(threads) > 1 and {tuple(os.sched_getaffinity(int(thread))) for thread in threads} == {(core,)}
    assert core in os.sched_getaffinity(0)


def test_a_process_to_be_measured_is_told_nothing_of_ours(monkeypatch):
    """Neither of a cache, nor of devices, nor of threads; but it finds the code from any folder."""
    for name in client.REMOVED_VARIABLES:
        monkeypatch.setenv(name, '1')
    told = client.environment(GLIBC_TUNABLES='x')
    assert told['GLIBC_TUNABLES'] == 'x' and not set(client.REMOVED_VARIABLES) & (told.keys() - {'GLIBC_TUNABLES'})
    assert told['PYTHONPATH'].startswith(str(client.ROOT))


# --- the verdicts ----------------------------------------------------------------------------------

ROW = str(cases.ROWS[0])


def timed(seconds, row=ROW, what=cases.TRAINING):
    """peer -> seconds of each round; as Timings."""
    return [
        Timing(row, what, peer, '', i + 1, x) for peer, all_rounds in seconds.items() for i, x in enumerate(all_rounds)
    ]


def test_a_ratio_is_of_the_same_round_and_the_pilot_is_left_out():
    """A machine that slows down for a round slows both: the ratio stays."""
    times = Timings(timed({scores.OURS: [1, 10, 1], scores.TORCH: [2, 20, 2]}))
    times.records.insert(0, Timing(ROW, cases.TRAINING, scores.TORCH, 'slow', 0, 99.0))
    assert times.ratio(ROW, cases.TRAINING, scores.TORCH) == (0.5, 0.5, 0.5)
    assert times.ratio(ROW, cases.TRAINING, scores.KERAS) is None
    assert times.setting(ROW, cases.TRAINING, scores.TORCH) == ''


@pytest.mark.parametrize(
    ('ours', 'holds'), [([1.1, 1.2, 1.2, 1.3, 1.4], False), ([0.8, 0.9, 1.1, 1.2, 1.3], True), ([0.5] * 5, True)]
)
def test_slower_is_where_three_quarters_of_the_rounds_are(ours, holds):
    gate = scores.not_slower(Timings(timed({scores.OURS: ours, scores.TORCH: [1] * 5})))
    assert gate.holds is holds and len(gate.failing) == (not holds)
    assert str(gate).startswith('holds: ' if holds else 'FAILS: ')
    assert holds or gate.failing == (f'{ROW} training 1.20 (1.20 to 1.30)',)


def test_one_disturbed_round_hides_nothing():
    """Neither one of theirs, which would excuse us, nor one of ours."""
    assert not scores.not_slower(Timings(timed({scores.OURS: [1.2] * 5, scores.TORCH: [1, 1, 88, 1, 1]}))).holds
    assert scores.not_slower(Timings(timed({scores.OURS: [0.8, 88, 0.8, 0.8, 0.8], scores.TORCH: [1] * 5}))).holds


def test_without_peers_nothing_is_judged():
    times = Timings(timed({scores.OURS: [1, 1, 1]}))
    assert [gate.holds for gate in scores.checks(times, {(ROW, scores.OURS): 1})] == [None] * 5
    assert [gate.holds for gate in scores.checks(times, {})] == [None] * 5


@pytest.mark.parametrize('rows', [cases.ROWS, cases.GRU_ROWS], ids=CELLS)
@pytest.mark.parametrize(
    ('peer', 'what', 'goal'),
    [
        (scores.TORCH, cases.FORWARD, 0.75),
        (scores.TORCH, cases.TRAINING, 0.80),
        (scores.FLAX, cases.FORWARD, 0.50),
        (scores.FLAX, cases.TRAINING, 0.40),
    ],
)
def test_the_median_row_is_held_against_its_goal(rows, peer, what, goal):
    for offset, holds in ((0, True), (0.01, False)):
        shares = (goal - 0.1, goal + offset, 2.0)
        times = [
            timed({scores.OURS: [share], peer: [1]}, str(row), what) for share, row in zip(shares, rows, strict=False)
        ]
        gate = scores.faster_than(Timings(sum(times, [])), peer)
        assert gate.holds is holds and len(gate.failing) == (0 if holds else 2)
        assert f'; {rows[0].cell} {what}: {goal + offset:.2f}' in gate.text


def test_many_fast_rows_of_one_cell_hide_no_slow_rows_of_the_other():
    times = [timed({scores.OURS: [0.1], scores.TORCH: [1]}, str(row)) for row in cases.ROWS]
    slow = timed({scores.OURS: [0.9], scores.TORCH: [1]}, str(cases.GRU_ROWS[0]))
    gate = scores.faster_than(Timings(sum(times, slow)), scores.TORCH)
    assert gate.holds is False and gate.failing == ('gru 32x100x64x128 training 0.90',)


def test_a_fast_forward_pass_hides_no_slow_training_step():
    times = timed({scores.OURS: [0.1], scores.FLAX: [1]}, what=cases.FORWARD) + timed(
        {scores.OURS: [0.9], scores.FLAX: [1]}
    )
    gate = scores.faster_than(Timings(times), scores.FLAX)
    assert gate.holds is False and gate.failing == (f'{ROW} training 0.90',)


def test_memory_is_held_against_flax_in_every_row():
    memory = {
        ('1x1x1x1', scores.OURS): 10,
        ('1x1x1x1', scores.FLAX): 10,
        ('2x2x2x2', scores.OURS): 2_000_000,
        ('2x2x2x2', scores.FLAX): 1_000_000,
    }
    assert scores.less_memory(memory).failing == ('2x2x2x2 2 MB instead of 1 MB',)
    assert scores.less_memory({key: 10 for key in memory}).holds is True


def growth(power, what, row, constant=0.0):
    sizes = [2**n for n in range(4, 15)]
    return [timed({scores.OURS: [constant + 1e-6 * size**power]}, row.format(size), what)[0] for size in sizes]


@pytest.mark.parametrize(('power', 'holds'), [(0.9, False), (1.0, True), (1.1, False)])
def test_growth_must_be_linear_over_steps_and_over_replicas(power, holds):
    steps, replicas = growth(power, 'growth over T', 'lstm 4x{}x8x64'), growth(1.0, 'growth over replicas', '{}x20')
    gate = scores.linear(Timings(steps + replicas))
    assert gate.holds is holds and gate.failing == (() if holds else (f'growth over T {power:.3f}',))
    assert scores.linear(Timings(steps)).holds is (None if holds else False)  # the other half was not measured


def test_an_exponent_is_of_the_upper_points():
    """What does not grow, here as long as 100 steps take, is felt below them."""
    times = Timings(growth(1.0, 'growth over T', '4x{}x8x64', constant=1e-4))
    sizes, seconds = times.curve('growth over T')
    assert scores.upper(sizes, seconds)[0].tolist() == [1024, 2048, 4096, 8192, 16384]
    assert times.exponent('growth over T') == pytest.approx(1.0, abs=0.04)
    assert scores.exponent(sizes, seconds) < 0.9


def test_exponents_of_known_powers():
    sizes = np.array([1.0, 10.0, 100.0])
    for power in (0.0, 0.5, 2.0):
        assert scores.exponent(sizes, 3 * sizes**power) == pytest.approx(power)


def test_the_tables_say_what_was_measured_and_where_we_lose():
    rate = Case(*cases.sizes(ROW)).flops(cases.TRAINING) / 0.5  # the products of the row take half a second
    times = Timings(
        [
            Timing('1000', scores.PRODUCT, scores.OURS, '', 1, 2e9 / rate),
            *timed({scores.OURS: [1, 1, 1], scores.TORCH: [0.5, 0.5, 0.8], scores.FLAX: [4, 4, 4]}),
            *timed({scores.OURS: [0.1], scores.FLAX: [0.2]}, '1000x20', scores.REPLICAS),
            *timed({scores.OURS: [1], scores.TORCH: [2], scores.NATIVE_OFF: [4]}, 'gru 3x4x2x5', cases.FORWARD),
            *timed({scores.OURS: [3], scores.TORCH: [2]}, 'gru 3x4x2x5', 'training on one core'),
            *timed({scores.PLAIN: [2, 2], 'rows': [1, 1]}, 'gru 3x4x2x5', 'training by a backend'),
            *growth(1.0, 'growth over T', '4x{}x8x64'),
        ]
    )
    memory = {(ROW, scores.OURS): 1_000_000, (ROW, scores.FLAX): 2_500_000}
    text = table.markdown(times, memory, 'A machine.', 'Seed 5.')
    lines = text.splitlines()
    assert lines[0] == 'A machine. Seed 5.'
    assert f'| {ROW} | training | 1 s | 2.00 (1.62 to 2.00) | 0.25 (0.25 to 0.25) | 2.0 |  |' in lines
    assert f'| {ROW} | 1 | 2.5 |' in lines
    assert '| 1000x20 | replicas | 100 ms | 0.50 (0.50 to 0.50) |' in lines
    assert '| gru | 3x4x2x5 | training | rows | 1 s | 0.50 (0.50 to 0.50) |' in lines
    assert '| gru 3x4x2x5 | training on one core | 3 s | 1.50 (1.50 to 1.50) |  |' in lines
    assert '|  | what | seqjax without native kernels | / seqjax | / PyTorch |' in lines
    assert '| gru 3x4x2x5 | forward | 4 s | 4.00 (4.00 to 4.00) | 2.00 (2.00 to 2.00) |' in lines
    assert any(line.startswith('| growth over T | 16 to 16,384 | 16 µs to 16.4 ms | 1.000 |') for line in lines)
    assert f'{ROW} training 2.00 (1.62 to 2.00)' in text
    assert 'slower than seqjax without' not in text
    assert f'{ROW} 2.00 of 0.85' in text
    assert 'slower than Flax' not in text and 'Keras' not in text


# --- the command -----------------------------------------------------------------------------------


def test_a_small_run_from_end_to_end(tmp_path, capsys, monkeypatch):
    """A row of each cell beside Flax and ourselves without native kernels: files, tables, the same folder again."""
    rows = ['lstm 2x3x1x4', 'gru 2x3x1x4']
    how = {'quick': True, 'rows': [rows[0].removeprefix('lstm '), rows[1]], 'rounds': 2, 'seed': 3}
    how |= {'peers': [scores.FLAX, scores.NATIVE_OFF], 'parts': ['rows', 'one_core']}
    monkeypatch.setattr(bench_config, 'QUICK', bench_config.QUICK._replace(one_core=[SMALL]))
    gates = bench.run(workdir=str(tmp_path / 'w'), **how)
    said = capsys.readouterr().out
    assert [gate.holds is None for gate in gates] == [True, True, False, False, True]
    assert {file.name for file in (tmp_path / 'w').iterdir()} == set(bench.FILES)
    with (tmp_path / 'w' / bench.TIMINGS).open(newline='') as lines:
        timings = list(csv.DictReader(lines))
    counts = {(row['row'], row['what'], row['peer'], row['round']) for row in timings if row['what'] != scores.PRODUCT}
    peers = (scores.OURS, scores.FLAX, scores.NATIVE_OFF)
    workloads = {(row, what, peers) for row in rows for what in scores.LAYER}
    if machine.PINS:
        workloads |= {(str(SMALL), what, (scores.OURS,)) for what in scores.ONE_CORE}
    expected = {(row, what, peer, n) for row, what, peers in workloads for peer in peers for n in '12'}
    assert counts == expected
    assert all(float(row['seconds']) > 0 for row in timings)
    text = (tmp_path / 'w' / bench.TEXT).read_text(encoding='utf-8')
    assert text in said and '--seed=3' in said
    assert bench.run(workdir=str(tmp_path / 'w'), **how) == []
    assert text in capsys.readouterr().out


def test_the_native_kernels_are_off_in_one_process_only(monkeypatch):
    """Nor does a setting of the pilot reach the other libraries."""
    started = []
    monkeypatch.setattr(measure.Bench, 'client', lambda self, peer, changes, one_core: started.append((peer, changes)))
    settings = {'peers': list(bench.PEERS), 'rounds': None}
    with measure.Bench(settings, bench_config.QUICK, None, np.random.default_rng(0)) as measured:
        measured.candidates([scores.OURS, *bench.PEERS], cases.FORWARD)
        assert {peer for peer, changes in started if 'SEQJAX_NATIVE' in changes} == {scores.NATIVE_OFF}
        assert dict(started)[scores.NATIVE_OFF] == {'SEQJAX_NATIVE': 'off', **dict(started)[scores.OURS]}
        threads = {c.threads for c in measured.candidates([scores.TORCH], 'forward on one core')}
        assert threads == {1}


@pytest.mark.slow
def test_backends_are_measured_beside_the_plain_one_and_all_of_a_cpu_are(monkeypatch, tmp_path):
    of_lstm = {name for name, case in bench_config.SELECTED if case.cell == cases.LSTM}
    assert of_lstm | {'plain', 'ahead'} == set(lstm.BACKENDS)  # which is for GPUs
    for name, case in bench_config.SELECTED:
        ops = {cases.LSTM: lstm, cases.GRU: gru}[case.cell]
        assert ops.select_backend(case.steps, case.batch, case.units, native=name == 'native') == name
    small = [('rows', SMALL._replace(cell=cases.GRU)), ('columns', SMALL)]
    monkeypatch.setattr(bench_config, 'QUICK', bench_config.QUICK._replace(backends=small))
    bench.run(quick=True, parts=['backends'], peers=[scores.FLAX], workdir=str(tmp_path / 'w'), plot=False)
    text = (tmp_path / 'w' / bench.TEXT).read_text(encoding='utf-8')
    assert '| gru | 3x4x2x5 | forward | rows |' in text and '| lstm | 3x4x2x5 | training | columns |' in text


def test_a_library_that_is_missing_is_told(monkeypatch, capsys):
    monkeypatch.setattr(machine.importlib.util, 'find_spec', lambda name: scores.FLAX if name == scores.FLAX else None)
    peers = [scores.TORCH, scores.FLAX, scores.NATIVE_OFF]
    assert machine.installed(peers) == [scores.FLAX, scores.NATIVE_OFF]
    assert 'PyTorch' in capsys.readouterr().err


@pytest.mark.parametrize(
    'size', ['5x5x1', '5x5x1x0', '5x5x1x5x5', 'axbxcxd', '05x5x1x5', 5, 'rnn 5x5x1x5', 'gru  5x5x1x5', 'gru5x5x1x5']
)
def test_a_row_that_is_none_is_refused(size):
    with pytest.raises(UserError, match=str(size)):
        bench.run(rows=[size])


def test_both_versions_have_all_parts():
    """Each curve has at least two points to fit its exponent to, and the quick version the same kinds of rows."""
    for extent in (bench_config.FULL, bench_config.QUICK):
        assert list(extent.growth) == list(scores.GROWTH) and extent.random.keys() == cases.GATES.keys()
        assert {row.cell for row in extent.rows} == {row.cell for row in extent.streams} == set(CELLS)
        for what, curve in extent.growth.items():
            sizes = np.array([size[scores.GROWTH[what]] for size in curve], float)
            assert len(scores.upper(sizes, sizes)[0]) >= 2 and (np.diff(sizes) > 0).all(), what
    curves = bench_config.FULL.growth
    assert curves['growth over T'][-1].steps == curves[scores.COMPILING][-1].steps == 16_384
    assert bench_config.FULL.rows == cases.ROWS + cases.GRU_ROWS and len(bench_config.FULL.rows) == 10
    small = [cases.ROWS[0], *cases.ROWS[-2:], cases.GRU_ROWS[0], cases.GRU_ROWS[-1]]
    assert list(bench_config.QUICK.rows) == [cases.quick(row) for row in small]
