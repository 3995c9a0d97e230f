"""Files of a finished run that were altered: a prediction ends in one sentence, or is the same as before.

python -m tests.test_altered_runs COUNT [KIND ...]     alters COUNT copies of each kind, and predicts with all of them
"""

import io
import json
import math
import random
import shutil
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from seqjax import files
from seqjax.cli import classify, digits, forecast, music, predict, task_setup, text
from seqjax.errors import UserError
from seqjax.nn import build
from seqjax.runs import directory
from seqjax.runs.directory import Workdir
from seqjax.training import fit_results, run_summary
from seqjax.training.fit_results import FitResult
from seqjax.types import BestParameters
from tests.helpers import kinds
from tests.helpers.oddities import ODD, odd, ordinary_user

SMALL = {'hidden': 3, 'num_seeds': 2, 'batch_size': 4, 'steps': 4}


def images(path):
    rng = np.random.RandomState(0)
    for name, values in (
        ('images-idx3', rng.randint(0, 256, (40, 3, 4))),
        ('labels-idx1', np.arange(40) % 3),
    ):
        head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, '>u4').tobytes()
        (path.parent / f'{name}-ubyte').write_bytes(head + values.astype(np.uint8).tobytes())


KINDS = {  # the kind, its file and who writes it, and its flags
    'forecast': (forecast.EXPERIMENT, 'x.csv', kinds.table, {'target': 'wave', 'covariates': 'day', 'window': 8}),
    'recursive': (
        *(forecast.EXPERIMENT, 'x.csv', kinds.table),
        {'target': 'wave,day', 'window': 8, 'strategy': 'recursive', 'horizon': 3, 'likelihood': 'gaussian'},
    ),
    'classify': (classify.EXPERIMENT, 'x.ts', kinds.archive, {}),
    'text': (
        text.EXPERIMENT,
        'x.txt',
        kinds.text,
        {'window': 8, 'hidden': 4, 'ngram_order': 2, 'max_eval_tokens': 200},
    ),
    'words': (
        text.EXPERIMENT,
        'x.txt',
        kinds.text,
        {'window': 8, 'tokenizer': 'words', 'ngram_order': 2, 'max_eval_tokens': 200},
    ),
    'music': (music.EXPERIMENT, 'x.mat', kinds.rolls, {'window': 8}),
    'digits': (digits.EXPERIMENT, 'images-idx3-ubyte', images, {'test_size': 10, 'permute': True}),
}


def make(name, folder):
    """Leaves what a finished run leaves, with models that were not trained; returns the file of its data."""
    kind, file, write, flags = KINDS[name]
    write(folder / file)
    settings = kind.check({**SMALL, **flags, 'data': str(folder / file)})
    dataset = kind.dataset(settings)
    model = task_setup.make_model(dataset.spec, settings.model)
    variables = [dict(model.init(jax.random.key(i), build.one_step(dataset.spec))) for i in range(2)]
    params = jax.tree.map(lambda *x: np.stack(x), *[one['params'] for one in variables])
    best = BestParameters(np.array([0.5, 0.25], np.float32), np.array([4, 4], np.int32), params, {})
    found = FitResult(np.arange(2), ['loss'], np.zeros((2, 1, 1)), best)
    workdir = Workdir(folder / 'run', kind.name)
    workdir.path.mkdir()
    fit_results.write_models(workdir, found)
    ended = {'finished': True, 'result': {'chosen': 1}, 'models': files.sha256(workdir.file(fit_results.MODELS))}
    workdir.write_summary(
        run_summary.new_summary(kind.name, settings.flags, []) | {'preprocessing': dataset.preprocessing} | ended
    )
    return folder / file


VALUES = (
    *(None, 0, -1, 1, 2, 10**6, 10**9, 10**30, 0.5, -1e300, math.nan, math.inf, 'x', '', 'ä' * 9, '\ud800', True),
    *([], {}, [[1]], [None], [1, 2], ['a'], {'a': 1}),
)


def alter_summary(draw, summary):
    """One value somewhere in it is gone, another one, or there twice."""
    place = (
        summary
        if draw.random() < 0.2
        else summary[draw.choice(['flags', 'flags', 'preprocessing', 'preprocessing', 'result'])]
    )
    while True:
        key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
        inner = place[key]
        if not (isinstance(inner, dict | list) and inner) or draw.random() < 0.4:
            break
        place = inner
    how = draw.randrange(6)
    if how == 0:
        del place[key]
    elif how == 1 and isinstance(place, list):
        place.append(inner)
    elif how == 2 and type(inner) in (int, float):
        place[key] = draw.choice([-inner, inner * 10**6, str(inner), inner + 1, [inner]])
    else:
        place[key] = draw.choice(VALUES)


def alter_arrays(draw, path):
    """One array is gone, has another name, type, shape or header; or bytes of the file are others."""
    with np.load(path) as held:
        arrays = dict(held)
    name, how = draw.choice(list(arrays)), draw.randrange(12)
    x, raw = arrays[name], None
    if how < 4:
        dtypes = (np.float64, np.int8, '>f4', '>i8', complex, object, 'U9', bool, np.float16)
        arrays[name] = x.astype(draw.choice(dtypes))
    elif how == 4:
        shapes = (x[:1], x[:0], x[None], np.concatenate([x, x]), x.reshape(-1), x.ravel()[0], np.asfortranarray(x))
        arrays[name] = draw.choice(shapes)
    elif how == 5:
        arrays[name] = np.full_like(x, draw.choice([np.nan, np.inf, -1, 0]) if x.dtype.kind == 'f' else -1)
    elif how == 6:
        arrays.pop(name)
    elif how == 7:
        arrays[draw.choice(['other', name + 'x', '../' + name])] = arrays.pop(name) if draw.random() < 0.5 else x
    elif how == 8:
        header = {'descr': draw.choice(['<f4', '|O', x.dtype.str]), 'fortran_order': False, 'shape': x.shape}
        header['shape'] = draw.choice([(10**12,), (2, 10**6, 10**6), (-1,), (0, 2**62), x.shape])
        raw = b'\x93NUMPY\x01\x00' + (118).to_bytes(2, 'little') + f'{header}'.encode().ljust(117) + b'\n' + x.tobytes()
        arrays.pop(name)
    np.savez(path, **arrays)
    if raw is not None:
        with zipfile.ZipFile(path, 'a', draw.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
            archive.writestr(f'{name}.npy', raw)
    if how >= 9:
        alter_bytes(draw, path)


def alter_bytes(draw, path):
    content = bytearray(path.read_bytes())
    if draw.random() < 0.3:
        content = content[: draw.randrange(len(content))]
    else:
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def alter(seed, run):
    """Alters a run; every other time so that its checksums are right again."""
    draw, forged = random.Random(seed), seed % 2 == 1
    path, models = run / directory.SUMMARY, run / fit_results.MODELS
    summary = json.loads(path.read_text())
    what = draw.choice(['summary', 'summary', 'arrays', 'bytes'])
    if what == 'summary':
        alter_summary(draw, summary)
    elif what == 'arrays':
        alter_arrays(draw, models)
        if forged:
            summary['models'] = files.sha256(models)
    else:
        alter_bytes(draw, draw.choice([path, models]))
        return False
    if forged:
        summary.pop(directory.CHECKSUM, None)
        summary[directory.CHECKSUM] = directory.checksum(summary)
    path.write_text(json.dumps(summary))
    return forged


def number(word):
    try:
        return float(word)
    except ValueError:
        return word


def numbers(path):
    return [list(map(number, line.split(','))) for line in path.read_text().splitlines()]


def close(one, other):
    return len(one) == len(other) and all(
        len(a) == len(b)
        and all(abs(x - y) <= 1e-5 + 1e-4 * abs(y) if isinstance(x, float) and isinstance(y, float) else x == y
                for x, y in zip(a, b, strict=True))
        for a, b in zip(one, other, strict=True)
    )  # fmt: skip


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    held = {}

    def get(name):
        if name not in held:
            folder = tmp_path_factory.mktemp(name)
            held[name] = make(name, folder), folder / 'run'
        return held[name]

    return get


@pytest.mark.representative(every=3)
@pytest.mark.parametrize('name', KINDS)
def test_altered_files_are_refused_or_load_as_the_same_model(runs, tmp_path, name):
    """Without right checksums nothing but the same model is loaded; with them a model, or a sentence."""
    _, run = runs(name)
    want, refused = predict.load(str(run)), 0
    for seed in range(12):
        folder = tmp_path / str(seed)
        shutil.copytree(run, folder)
        forged = alter(seed, folder)
        try:
            model = predict.load(str(folder))
        except UserError as error:
            assert '\n' not in str(error) and str(folder) in str(error), error
            refused += 1
            continue
        if not forged:
            kinds.same(model.best, want.best)
            assert json.dumps(model.preprocessing) == json.dumps(want.preprocessing) and model.settings == want.settings
    assert refused >= 4


def change(path, **changes):
    """Changes settings of a summary, with the right checksum."""
    summary = json.loads((path / directory.SUMMARY).read_text())
    for place, values in changes.items():
        summary[place] = summary[place] | values if isinstance(values, dict) else values
    Workdir(path).write_summary(summary)


@pytest.mark.parametrize(
    'name, changes, words',
    [
        ('forecast', {'flags': {'batch_size': 0}}, '--batch_size=0'),
        ('forecast', {'flags': {'horizon': 0}, 'preprocessing': {'horizon': 0}}, '--horizon=0'),
        ('forecast', {'preprocessing': {'horizon': 3}}, 'horizon=3'),
        ('forecast', {'preprocessing': {'scales': {'': [[0.0, 1.0]]}}}, 'scales'),
        ('forecast', {'preprocessing': {'scales': {'': [[0.0, 0.0], [0.0, 1.0]]}}}, 'scales'),
        ('recursive', {'flags': {'hidden': 10**9}}, '--hidden'),
        ('classify', {'preprocessing': {'factor': [1.0, 2.0]}}, 'factor'),
        ('classify', {'preprocessing': {'classes': ['up', 'up']}}, 'classes'),
        ('classify', {'preprocessing': {'steps': 10**12}}, 'steps'),
        ('digits', {'preprocessing': {'maximum': 0}}, 'maximum=0'),
        ('digits', {'preprocessing': {'permutation': [0] * 12}}, 'permutation'),
        ('digits', {'preprocessing': {'classes': ['2', '1', '0']}}, 'classes'),
        ('text', {'preprocessing': {'known': 'aab'}}, 'known'),
        ('text', {'preprocessing': {'known': 'abc'}}, 'models.npz'),
        ('words', {'preprocessing': {'known': ['a', 1]}}, 'known'),
        ('music', {'preprocessing': {'steps': 0}}, 'steps=0'),
        ('music', {'preprocessing': []}, 'preprocessing'),
        ('music', {'result': {'chosen': True}}, 'chosen=True'),
        ('music', {'result': {'chosen': 2}}, 'chosen=2'),
        ('music', {'flags': {'num_seeds': 3}}, 'seeds'),
        ('music', {'flags': {'seed': 1}}, 'seed'),
        ('music', {'flags': {'nonsense': 1}}, 'nonsense'),
    ],
)
def test_what_is_invalid_is_named_although_the_checksum_is_right(runs, tmp_path, name, changes, words):
    shutil.copytree(runs(name)[1], tmp_path / 'run')
    change(tmp_path / 'run', **changes)
    with pytest.raises(UserError, match=words):
        predict.load(str(tmp_path / 'run'))


def test_a_file_that_claims_more_than_it_holds_is_refused_before_it_is_read(runs, tmp_path):
    run = tmp_path / 'run'
    shutil.copytree(runs('music')[1], run)
    with np.load(run / fit_results.MODELS) as held:
        arrays = dict(held)
    arrays.pop('value')
    np.savez(run / fit_results.MODELS, **arrays)
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {'descr': '<f4', 'fortran_order': False, 'shape': (7 * 2**40,)})
    with zipfile.ZipFile(run / fit_results.MODELS, 'a') as archive:
        archive.writestr('value.npy', content.getvalue())
    change(run, models=files.sha256(run / fit_results.MODELS))
    with pytest.raises(UserError, match='models.npz.*value'):
        predict.load(str(run))


def test_a_run_of_before_the_checksums_is_read(runs, tmp_path):
    run = tmp_path / 'run'
    shutil.copytree(runs('classify')[1], run)
    summary = json.loads((run / directory.SUMMARY).read_text())
    for name in ('models', directory.CHECKSUM):
        del summary[name]
    for name in ('max_columns', 'max_bytes'):
        del summary['flags'][name]
    del summary['preprocessing']['declared']
    (run / directory.SUMMARY).write_text(json.dumps(summary))
    kinds.same(predict.load(str(run)).best, predict.load(str(runs('classify')[1])).best)


PLACES = ('.', directory.SUMMARY, fit_results.MODELS)


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('kind', ODD)
def test_what_is_not_a_file_in_a_runs_place_is_refused_at_once(runs, tmp_path, place, kind):
    run = tmp_path / 'run'
    shutil.copytree(runs('music')[1], run)
    path = run / place
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if kind == 'inside a file':
        path.write_text('x')
    else:
        odd(path.parent, kind, path.name)
    if (place, kind) == ('.', 'folder'):
        path.rmdir()
    with pytest.raises(UserError, match='run'):
        predict.load(str(run))


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('mode', [0o000, 0o300])
def test_what_may_not_be_read_is_named(runs, tmp_path, place, mode):
    run = tmp_path / 'run'
    shutil.copytree(runs('music')[1], run)
    (run / place).chmod(mode)
    try:
        with ordinary_user():
            if (place, mode) == ('.', 0o300):  # its files may be opened by name
                predict.load(str(run))
                return
            with pytest.raises(UserError, match='run.*Permission denied'):
                predict.load(str(run))
    finally:
        (run / place).chmod(0o700)


def test_output_in_a_place_that_may_not_be_read_is_refused(runs, tmp_path, capsys):
    data, run = runs('music')
    (tmp_path / 'closed').mkdir(mode=0o000)
    try:
        with ordinary_user():
            assert predict.main([f'--workdir={run}', f'--data={data}', f'--out={tmp_path}/closed/out.csv']) == 2
            assert predict.main([f'--workdir={run}', f'--data={tmp_path}/closed/x.mat']) == 2
    finally:
        (tmp_path / 'closed').chmod(0o700)
    told = capsys.readouterr().err.splitlines()
    assert 'closed/out.csv' in told[0]
    assert 'closed/x.mat' in told[-1]


def main(count, *names):
    """By hand: all kinds or those named, `count` alterations each, and whole predictions."""
    for name in names or KINDS:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            data = make(name, folder)
            out = folder / 'out.csv'
            predict.run(workdir=str(folder / 'run'), data=str(data), out=str(out))
            want, told = numbers(out), {'refused': 0, 'same': 0, 'other': 0}
            for seed in range(count):
                copy, begin = folder / f'copy{seed}', time.perf_counter()
                shutil.copytree(folder / 'run', copy)
                forged = alter(seed, copy)
                try:
                    predict.run(workdir=str(copy), data=str(data), out=str(out), overwrite=True)
                    same = close(numbers(out), want)
                    assert same or forged, f'{name} {seed}: other predictions'
                    told['same' if same else 'other'] += 1
                except UserError:
                    told['refused'] += 1
                except BaseException:
                    print(f'{name}, seed {seed}, forged {forged}', flush=True)
                    raise
                if time.perf_counter() - begin > 30:
                    print(f'{name}, seed {seed}: {time.perf_counter() - begin:.0f} s')
                shutil.rmtree(copy)
            print(name, told, flush=True)


if __name__ == '__main__':
    main(int(sys.argv[1]), *sys.argv[2:])
