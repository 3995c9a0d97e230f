"""The step-through of an LSTM: the numbers that it prints against the reference in NumPy."""

import re

import numpy as np
import pytest

from experiments import lstm_step, td
from seqjax.errors import UserError
from tests.helpers import reference


@pytest.mark.parametrize('activation', ['sigmoid', 'hard_sigmoid', 'keras2_hard_sigmoid'])
def test_every_number_of_every_step_is_the_references(activation, capsys):
    """Weights are read from what is printed; from them alone follow all gates and states, to their four decimals."""
    x = [0.2, -1.5, 0.2]
    steps = lstm_step.run(x=x, hidden=3, recurrent_activation=activation, seed=4)
    lines = capsys.readouterr().out.splitlines()
    rows = [(line.split()[0], [float(n) for n in re.findall(r'-?\d+\.\d{4}', line)]) for line in lines if '.' in line]

    def block(kind):
        return np.concatenate([np.array([row for name, row in rows if name == f'{kind}_{gate}']) for gate in 'ifgo'], 1)

    kernel, recurrent, bias = block('W'), block('U'), block('b')[0]
    assert kernel.shape == (1, 12) and recurrent.shape == (3, 12)
    inputs, zeros = np.array(x)[None, :, None], np.zeros((1, 3))
    outputs, _, tape = reference.lstm(inputs, zeros, zeros, kernel, recurrent, bias, activation)
    act = reference.ACTIVATIONS[activation][0]
    for t, (step, (z, _, _, c)) in enumerate(zip(steps, tape[-1], strict=True)):
        i, f, g, o = np.split(z[0], 4)
        want = {'i': act(i), 'f': act(f), 'g': np.tanh(g), 'o': act(o), 'c': c[0], 'h': outputs[0, t]}
        for name, value in want.items():
            np.testing.assert_allclose(getattr(step, name), value, atol=5e-4, err_msg=name)
        first = next(n for n, line in enumerate(lines) if line.startswith(f'step {t + 1}:'))
        printed = dict(
            (line.split()[0], [float(n) for n in re.findall(r'-?\d+\.\d{4}', line)]) for line in lines[first + 3 :][:10]
        )
        want |= {f'z_{gate}': value for gate, value in zip('ifgo', (i, f, g, o), strict=True)}
        assert printed.keys() == want.keys()
        for name, value in want.items():
            np.testing.assert_allclose(printed[name], value, atol=6e-4, err_msg=name)
        assert lines[first + 13].startswith('unit 1: c = ')
        assert lines[first + 13].endswith(f'= {step.h[0]:.4f}')


@pytest.mark.parametrize(
    ('flag', 'words'),
    [
        ('--x=', '--x='),
        ('--x=0.2,nan', '--x=0.2,nan'),
        ('--x=0.2,,1', '--x=0.2,,1'),
        ('--x=1e39', '--x=1e39'),
        ('--hidden=11', '--hidden=11'),
        ('--recurrent_activation=tanh', '--recurrent_activation=tanh'),
        ('--seed=-1', '--seed=-1'),
        ('--workdir=w', '--workdir'),
    ],
)
def test_a_mistake_ends_in_a_sentence_and_exit_code_2(flag, words, capsys, monkeypatch):
    monkeypatch.setattr('seqjax.cli.compilation_cache.enable_cache', lambda _: None)
    assert lstm_step.main([flag]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count('\n') == 1


def test_the_command_prints_the_notebooks_step(capsys, monkeypatch):
    """An input may come twice; extreme ones print numbers too."""
    monkeypatch.setattr('seqjax.cli.compilation_cache.enable_cache', lambda _: None)
    assert lstm_step.main(['--x=0.2,0.2,-3e38', '--hidden=5']) == 0
    out = capsys.readouterr().out
    assert '4 ((1 + 1) 5 + 5^2) = 140 weights' in out and out.count('\nstep ') == 3 and 'nan' not in out


def test_the_gates_of_a_trained_run_explain_its_predictions(tmp_path, capsys):
    """The states of the trained weights, through the head, are the predictions of the run."""
    run = td.run(setup='many_to_many', epochs=20, workdir=str(tmp_path / 'run'), plot=False)
    steps = lstm_step.run(x=run.targets.tolist(), workdir=str(tmp_path / 'run'))
    head = run.state.params['head']['module']
    np.testing.assert_allclose(
        np.stack([step.h for step in steps]) @ head['kernel'][:, 0] + head['bias'], run.predictions, atol=1e-6
    )
    assert 'trained' in capsys.readouterr().out


def test_a_corrupt_or_other_run_is_refused(tmp_path):
    folder = str(tmp_path / 'run')
    td.run(setup='many_to_many', epochs=2, hidden=11, workdir=folder, plot=False)
    with pytest.raises(UserError, match='--workdir'):
        lstm_step.run(workdir=folder)
    (tmp_path / 'run/checkpoints/2/checksums').write_text('')
    with pytest.raises(UserError, match='corrupt'):
        lstm_step.run(workdir=folder)
