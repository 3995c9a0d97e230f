"""Simple forecasts of notes: counted by hand, and what they are known to score on published files."""

import math
from pathlib import Path

import numpy as np
import pytest

from seqjax.datasets.baselines import note_baselines
from seqjax.datasets.readers import piano_rolls

SHARED = Path(__file__).parent.parent.parent.parent / 'shared' / 'data'


def rolls(seed, lengths, notes=5):
    draw = np.random.default_rng(seed)
    return [(draw.random((count, notes)) < 0.3).astype(np.uint8) for count in lengths]


def told(train, pieces, after):
    """The same by loops: `after` says whether a note's frame before is looked at."""
    counts = {}
    for piece in train:
        for before, now in zip(piece[:-1], piece[1:], strict=True):
            for note, sounds in enumerate(now):
                seen = counts.setdefault((note, before[note] if after else 0), [0.5, 0.5])
                seen[sounds] += 1
    totals = []
    for piece in pieces:
        loss = 0.0
        for before, now in zip(piece[:-1], piece[1:], strict=True):
            for note, sounds in enumerate(now):
                seen = counts.get((note, before[note] if after else 0), [0.5, 0.5])
                loss -= math.log(seen[sounds] / sum(seen))
        totals.append(loss)
    return totals


@pytest.mark.parametrize(('forecast', 'after'), [(note_baselines.marginal, False), (note_baselines.markov, True)])
def test_they_are_what_counting_by_hand_gives(forecast, after):
    train, pieces = rolls(0, (2, 9, 5)), rolls(1, (4, 2, 7))
    found = forecast(train, pieces)
    np.testing.assert_allclose(found.totals, told(train, pieces, after), rtol=1e-12)
    assert found.counts.tolist() == [3, 1, 6]


@pytest.mark.parametrize('forecast', [note_baselines.marginal, note_baselines.markov])
def test_nothing_is_impossible(forecast):
    silent, loud = np.zeros((4, 3), np.uint8), np.ones((4, 3), np.uint8)
    assert np.isfinite(forecast([silent], [loud]).totals).all()
    assert np.isfinite(forecast([loud], [silent]).totals).all()


@pytest.mark.parametrize('forecast', [note_baselines.marginal, note_baselines.markov])
def test_many_frames_do_not_overflow_what_counts_them(forecast):
    """Pieces are bytes, and there are more frames than a byte counts."""
    held = np.ones((5_000, 1), np.uint8)
    assert forecast([held], [held]).totals[0] == pytest.approx(4_999 * math.log(5_000 / 4_999.5))


def test_a_chain_knows_what_lasts():
    changes = np.repeat(rolls(2, (50,))[0], 4, axis=0)
    by_itself, chained = (f([changes], [changes]).totals[0] for f in (note_baselines.marginal, note_baselines.markov))
    assert chained < 0.8 * by_itself


@pytest.mark.parametrize(
    ('name', 'forecast', 'value'),
    [
        ('JSB_Chorales', note_baselines.marginal, 11.09),
        ('JSB_Chorales', note_baselines.markov, 10.49),
        ('Nottingham', note_baselines.marginal, 10.26),
        ('Nottingham', note_baselines.markov, 5.15),
    ],
)
def test_their_scores_of_published_files(name, forecast, value):
    path = SHARED / f'{name}.mat'
    if not path.exists():
        pytest.skip(f'{path} is not here')
    pytest.importorskip('scipy.io', reason='.mat files need SciPy')
    parts = piano_rolls.read_rolls(str(path))
    found = forecast(parts['train'], parts['test'])
    assert round(found.totals.sum() / found.counts.sum(), 2) == value
