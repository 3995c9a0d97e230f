"""How far a run is: what is said of stopped seeds, resumed runs and long runs is true."""

import contextlib
import os
import re
import sys
import time
from pathlib import Path

import pytest

from seqjax.training import progress


@pytest.fixture
def clock(monkeypatch):
    """A list whose only number is the time."""
    now = [100.0]
    monkeypatch.setattr(progress.time, 'perf_counter', lambda: now[0])
    return now


def test_plain_progress_is_sparse_and_ends_at_the_total(capsys):
    with progress.progress(12_345, 'epoch') as shown:
        for done in [*range(7, 12_345, 7), 12_345]:
            shown.show(done, 7, f'loss {done}')
        shown.end(12_345, 12_345)
    lines = capsys.readouterr().out.splitlines()
    assert 5 <= len(lines) <= 10 and lines[-1].startswith('epoch 12,345/12,345  loss 12345  ')
    assert len({line.index('/') for line in lines}) == 1  # one column


def test_the_rate_is_of_this_session(clock, capsys):
    """Another process took the first 800 steps, and restoring them took 7 seconds."""
    with progress.progress(1000, 'step') as shown:
        clock[0] += 7
        shown.begin('', 800, False, Path('runs/x'))
        for done in (900, 1000):
            clock[0] += 2
            shown.show(done, 100, 'x')
    first, *lines = capsys.readouterr().out.splitlines()
    assert 'step 800' in first and 'runs/x' in first
    assert [line.split('  ')[-1] for line in lines] == ['50 step/s', '50 step/s']


def test_groups_that_stop_early_take_their_steps_from_the_total(capsys):
    """Three groups of 2, 2 and 1 seeds, 100 steps each at most, stopped at 30, 100 and 10."""
    with progress.progress(500, 'seed-step') as shown:
        for count, stop in ((2, 30), (2, 100), (1, 10)):
            for step in range(10, stop + 1, 10):
                shown.show(step * count, 10 * count, 'x')
            shown.end(stop * count, 100 * count)
    counts = [tuple(map(int, re.findall(r'\d+', line)[:2])) for line in capsys.readouterr().out.splitlines()]
    assert counts[-1] == (270, 270)  # 2 * 30 + 2 * 100 + 10
    assert all(done <= total for done, total in counts) and counts == sorted(counts, key=lambda x: x[0])


@pytest.mark.parametrize(
    ('groups', 'words'),
    [
        ([('', 0, False)], None),
        ([('', 300, False)], '300'),
        ([('', 1000, True)], '1,000'),
        ([('seeds 0 to 1', 1000, True), ('seeds 2 to 3', 300, False)], '300.*seeds 2 to 3'),
        ([('seeds 0 to 1', 1000, True), ('seeds 2 to 3', 0, False)], '0.*seeds 2 to 3'),
        ([('seeds 0 to 1', 300, False), ('seeds 2 to 3', 0, False)], '300.*seeds 0 to 1'),
        ([('seeds 0 to 1', 0, False), ('seeds 2 to 3', 0, False)], None),
    ],
)
def test_a_run_says_once_from_where_it_resumes(groups, words, capsys):
    with progress.progress(2000, 'step') as shown:
        for place, taken, over in groups:
            shown.begin(place, taken, over, Path('w'))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (words is not None)
    assert all(re.search(rf'step {words}\b', line) for line in lines)


def test_without_a_run_directory_nothing_is_resumed(capsys):
    with progress.progress(10, 'step') as shown:
        shown.begin('', 5, False, None)
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize(
    ('total', 'resumed', 'pace', 'days'),
    [
        (10_000_000, 0, 10, '11.6'),  # 10 steps a second
        (10_000_000, 9_900_000, 10, None),  # the steps of other sessions are not to come
        (10_000_000, 5_000_000, 10, '5.8'),
        (860_000, 0, 10, None),
        (20_000_000, 0, 200, '1.2'),
        (10_000_000, 0, 200, None),
    ],
)
def test_a_run_of_more_than_a_day_says_so_once_in_its_first_minute(total, resumed, pace, days, clock, capsys):
    """The first chunk takes 20 seconds longer: something was compiled."""
    with progress.progress(total, 'seed-step') as shown:
        shown.begin('', resumed, False, Path('w'))
        clock[0] += 20
        for i in range(1, 60):
            clock[0] += 1
            shown.show(resumed + i * pace, pace, '')
    err = capsys.readouterr().err
    assert err.count('\n') == (days is not None)
    if days is not None:
        assert err.startswith('warning: ') and f'{days} days' in err and '--steps' in err


def test_a_slow_moment_later_on_is_no_reason_to_warn(clock, capsys):
    with progress.progress(100_000, 'step') as shown:
        for i in range(1, 200):
            clock[0] += 1
            shown.show(i * 10, 10)
        clock[0] += 10**6
        shown.show(2000, 10)
    assert capsys.readouterr().err == ''


def test_one_long_chunk_is_enough_to_measure(clock, capsys):
    with progress.progress(100_000, 'epoch') as shown:
        clock[0] += 100
        shown.show(100, 100)
    err = capsys.readouterr().err
    assert '1.2 days' in err and '--epochs' in err


@pytest.mark.parametrize(('steps_per_call', 'warned'), [(10, True), (1000, False)])
def test_a_first_chunk_of_over_a_minute_is_measured_while_it_runs(steps_per_call, warned, monkeypatch, capsys):
    """10,000 chunks of a minute are a week, 100 are not a day."""
    monkeypatch.setattr(progress, 'WARNING_PERIOD', 0.02)
    monkeypatch.setattr(progress, 'DAY', 0.02 * 1440)
    with progress.progress(100_000, 'seed-step') as shown:
        shown.begin('', 0, False, None, steps_per_call)
        time.sleep(0.1)
        shown.show(steps_per_call, steps_per_call)
    assert ('6.9 days' in capsys.readouterr().err) == warned


@pytest.mark.parametrize(('steps_taken', 'warning'), [(0, '6.9 days'), (5000, '3.5 days'), (9000, '')])
def test_the_first_chunk_of_a_resumed_group_is_measured_for_the_steps_to_come(
    steps_taken, warning, monkeypatch, capsys
):
    """10 seeds, 10,000 steps of each, one step a minute."""
    monkeypatch.setattr(progress, 'WARNING_PERIOD', 0.02)
    monkeypatch.setattr(progress, 'DAY', 0.02 * 1440)
    with progress.progress(100_000, 'seed-step') as shown:
        shown.begin('', steps_taken, False, None, 1, 10)
        time.sleep(0.1)
        shown.show((steps_taken + 1) * 10, 10)
    err = capsys.readouterr().err
    assert warning in err and bool(err) == bool(warning)


def test_a_run_that_ends_before_its_first_chunk_does_not_warn_later(monkeypatch, capsys):
    monkeypatch.setattr(progress, 'WARNING_PERIOD', 0.02)
    monkeypatch.setattr(progress, 'DAY', 0.02)
    with progress.progress(100_000, 'seed-step') as shown:
        shown.begin('', 0, False, None, 1)
    time.sleep(0.1)
    assert capsys.readouterr().err == ''


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    pty = pytest.importorskip('pty', reason='a terminal needs POSIX')
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setenv('COLUMNS', '100')
    master, slave = pty.openpty()
    with open(slave, 'w', encoding='utf-8') as terminal:
        monkeypatch.setattr(sys, 'stdout', terminal)
        with progress.progress(60, 'epoch') as shown:
            shown.show(20, 20, 'loss 0.5')
            shown.show(40, 20, 'loss 0.25')
            shown.end(40, 60)
    text = b''
    with contextlib.suppress(OSError):  # the end, on Linux
        while part := os.read(master, 4096):
            text += part
    os.close(master)
    text = text.decode()
    assert '━' in text and '40/40' in text and 'loss 0.25' in text and '\r' in text
