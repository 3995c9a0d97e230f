"""Data on the host: the batches and the numbers of the same task with its data on the device."""

import json

import jax
import numpy as np
import pytest

from experiments import echo as experiments_echo
from seqjax.tasks import echo
from seqjax.training import host_streaming
from seqjax.training.host_streaming import Feed
from tests.helpers import reference
from tests.runs.test_multihost import RUN, losses

pytest.importorskip('grain', reason='pip install "seqjax[stream]"')


@pytest.mark.parametrize('feed', ['stream', 'shuffle'])
def test_a_chunk_has_the_batches_of_its_steps(feed):
    """From any step on; one that is not full is filled up with its last."""
    task = echo.echo(feed, delay=2, window=5, batch_size=2, length=60)
    source = Feed(task, steps=20, steps_per_call=4)
    on_device = host_streaming.streamed(task, 4)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), on_device.data)
    key, step = jax.random.key(0), 0
    for count in (4, 4, 2, 1):
        chunk = source.take(step, count)
        assert jax.tree.map(lambda x: (np.shape(x), x.dtype), chunk) == shapes
        for i in range(count):
            want = jax.device_get(task.batch(task.data, key, step + i))
            reference.assert_trees_equal(jax.device_get(on_device.batch(chunk, key, step + i)), want)
        reference.assert_trees_equal(jax.tree.map(lambda x: x[-1], chunk.batches), want)
        step += count
    left = json.loads(json.dumps(source.state))
    again = Feed(task, steps=20, steps_per_call=4, step=11, state=left).take(11, 3)
    reference.assert_trees_equal(again, source.take(11, 3))


@pytest.mark.representative(every=2)
@pytest.mark.parametrize('options', [{'feed': 'stream'}, {'feed': 'shuffle', 'num_seeds': 3}])
def test_a_run_from_the_host_is_the_run_from_the_device(options, tmp_path):
    """Stopped and gone on with, with another chunk, to and from the device: bit for bit."""
    run = {**RUN, **options, 'batch_size': 3}
    experiments_echo.run(**run, steps=12, workdir=str(tmp_path / 'device'))
    for steps, steps_per_call, stream_from_host in ((5, 3, True), (8, 8, False), (12, 2, True)):
        experiments_echo.run(
            **run,
            steps=steps,
            steps_per_call=steps_per_call,
            stream_from_host=stream_from_host,
            workdir=str(tmp_path / 'host'),
            checkpoint_every=4,
        )
    assert (tmp_path / 'host/metrics.csv').read_bytes() == (tmp_path / 'device/metrics.csv').read_bytes()
    np.testing.assert_array_equal(losses(tmp_path / 'host'), losses(tmp_path / 'device'))
    place = 'checkpoints/12' if options['feed'] == 'stream' else 'checkpoints/seeds_0_to_2/12'
    assert json.loads((tmp_path / 'host' / place / 'about.json').read_text())['feed'] == {'next_index': 12}


def test_without_grain_the_extra_is_named(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ValueError, match='--stream_from_host'):
        experiments_echo.run(stream_from_host=True)
