"""Scores as Markdown and as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.peers import cases, scores
from benchmarks.peers.scores import Ratio, Timings
from seqjax.reporting import plots

LIBRARIES = (scores.TORCH, scores.FLAX, scores.KERAS)
Memory = Mapping[tuple[str, str], int]


def markdown(timings: Timings, memory: Memory, machine: str, origin: str) -> str:
    """Returns all tables, the checks, and the rows in which we are slower."""
    parts = [
        f'{machine} {origin}',
        _seconds(timings, (*scores.LAYER, cases.STREAMING), 'Time of one layer, B x T x F x H'),
        _seconds(timings, tuple(scores.ONE_CORE), 'Time of one layer in processes on one core, B x T x F x H'),
        _seconds(
            timings,
            scores.LAYER,
            'Time of one layer without the native kernels (SEQJAX_NATIVE=off), B x T x F x H',
            scores.NATIVE_OFF,
        ),
        _memory(memory),
        _seconds(timings, (scores.REPLICAS,), "Replicas: seeds x epochs of the notebook's many-to-many run"),
        _seconds(timings, (scores.WARM, scores.COLD), "The notebook's many-to-one run, a whole process"),
        _backends(timings),
        _growth(timings),
        _verdict(timings, memory),
    ]
    return '\n\n'.join(part for part in parts if part)


def _lines(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table, or '' if it has no rows."""
    if not rows:
        return ''
    lines = [' | '.join(row) for row in (head, ['---'] * len(head), *rows)]
    return '\n'.join([f'{title}:', '', *(f'| {line} |' for line in lines)])


def _seconds(timings: Timings, whats: Sequence[str], title: str, ours: str = scores.OURS) -> str:
    """Returns a table with the time of `ours`, and its ratios to others and to the matrix products, for each row."""
    rows, rate = [row for row in timings.rows(*whats) if ours in timings.peers(*row)], timings.rate()
    others = [peer for peer in (scores.OURS, *LIBRARIES) if peer != ours]
    peers = [peer for peer in others if any(timings.ratio(*row, peer, ours) for row in rows)]
    limits = rate is not None and whats[0] in scores.LAYER and ours == scores.OURS
    settings = scores.TORCH in peers and ours == scores.OURS
    head = ['', 'what', scores.NAMES[ours], *(f'/ {scores.NAMES[peer]}' for peer in peers)]
    head += ['/ matrix products alone'] * limits + ["PyTorch's best"] * settings
    lines = []
    for row, what in rows:
        seconds = timings.median(row, what, ours)
        line = [row, what, span(seconds), *(_ratio(timings.ratio(row, what, peer, ours)) for peer in peers)]
        line += [f'{seconds / scores.least_seconds(row, what, rate):,.1f}'] if limits else []
        lines.append(line + [timings.setting(row, what, scores.TORCH)] * settings)
    text = _lines(title, head, lines)
    if limits and text:
        text += f'\n\nA matrix product alone reaches {rate / 1e9:,.0f} GFLOP/s.'
    return text


def _ratio(ratio: Ratio | None) -> str:
    return '' if ratio is None else f'{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})'


def _memory(memory: Memory) -> str:
    rows = list(dict.fromkeys(row for row, _ in memory))
    peers = [peer for peer in (scores.OURS, scores.FLAX, scores.KERAS) if any((row, peer) in memory for row in rows)]
    lines = [
        [row, *(f'{memory[row, peer] / 1e6:,.3g}' if (row, peer) in memory else '' for peer in peers)] for row in rows
    ]
    return _lines('Temporaries of the training step, MB', ['', *(scores.NAMES[peer] for peer in peers)], lines)


def _backends(timings: Timings) -> str:
    lines = []
    for row, what in timings.rows(*scores.BACKENDS):
        for name in timings.peers(row, what):
            if name != scores.PLAIN:
                ratio = _ratio(timings.ratio(row, what, scores.PLAIN, name))
                lines.append([*row.split(), scores.BACKENDS[what], name, span(timings.median(row, what, name)), ratio])
    head = ['', 'B x T x F x H', 'what', 'backend', 'time', '/ plain']
    return _lines('Our backends on one device, relative to the plain recurrence', head, lines)


def _growth(timings: Timings) -> str:
    lines = []
    for what in scores.GROWTH:
        sizes, seconds = timings.curve(what)
        exponent = timings.exponent(what)
        if exponent is not None:
            fitted = scores.upper(sizes, seconds)[0]
            line = [what, f'{sizes[0]:,.0f} to {sizes[-1]:,.0f}', f'{span(seconds[0])} to {span(seconds[-1])}']
            lines.append([*line, f'{exponent:.3f}', ' '.join(f'{size:,.0f}' for size in fitted)])
    return _lines('Growth', ['', 'sizes', 'time', 'exponent', 'fitted to'], lines)


def _verdict(timings: Timings, memory: Memory) -> str:
    """Returns the checks, the aims, and the rows in which we are slower."""
    lines = [f'- {check}' for check in scores.checks(timings, memory)]
    aims = scores.aims(timings)
    if aims:
        lines.append(f"- aims for the training step, relative to PyTorch's time: {'; '.join(aims)}")
    for peer in (*LIBRARIES, scores.NATIVE_OFF):
        slower = scores.losses(timings, peer)
        if slower:
            lines.append(f'- slower than {scores.NAMES[peer]}: {"; ".join(slower)}')
    return '\n'.join(lines)


def span(seconds: float) -> str:
    """Returns a duration with a suitable unit.

    >>> span(2.345), span(0.01234), span(1.5e-05)
    ('2.35 s', '12.3 ms', '15 µs')
    """
    for unit, size in (('s', 1.0), ('ms', 1e-3), ('µs', 1e-6)):
        if seconds >= size:
            break
    return f'{seconds / size:,.3g} {unit}'


# --- figure ----------------------------------------------------------------------------------------


def draw(timings: Timings) -> Any:
    """Returns a figure: ratios of the forward pass and of the training step, and growth of times.

    Raises:
      ImportError: matplotlib is not installed.
    """
    figure, (left, middle, right) = plots.new_figure(3, "Time of seqjax relative to others', and its growth")
    figure.set_figheight(max(figure.get_figheight(), 0.3 * len(timings.rows(cases.FORWARD))))
    figure.subplots_adjust(left=0.085, top=1 - 0.6 / figure.get_figheight(), wspace=0.34)
    _draw_ratios(left, timings, cases.FORWARD)
    _draw_ratios(middle, timings, cases.TRAINING)
    _draw_growth(right, timings)
    return figure


def _draw_ratios(axis: Any, timings: Timings, what: str) -> None:
    """Draws the ratio to each peer with its quartiles, for every row; left of 1 we are faster."""
    from matplotlib import ticker

    rows = [row for row, _ in timings.rows(what)]
    colors = {scores.TORCH: plots.ORANGE, scores.FLAX: plots.BLUE, scores.KERAS: plots.GREY}
    for n, (peer, color) in enumerate(colors.items()):
        points = [(i + 0.2 * (n - 1), timings.ratio(row, what, peer)) for i, row in enumerate(rows)]
        points = [(y, ratio) for y, ratio in points if ratio is not None]
        if points:
            ys, (lows, medians, highs) = [y for y, _ in points], np.array([ratio for _, ratio in points]).T
            axis.hlines(ys, lows, highs, color=color, lw=2, alpha=0.5)
            axis.plot(medians, ys, 'o', color=color, markersize=4, label=scores.NAMES[peer])
    axis.axvline(1, color=plots.GREY, lw=1, ls=':')
    cells = [cases.parse(row).cell for row in rows]
    for i in range(1, len(rows)):
        if cells[i] != cells[i - 1]:
            axis.axhline(i - 0.5, color=plots.GREY, lw=0.5)
    axis.set(xlabel=f'{what}: our time / theirs', ylim=(len(rows) - 0.4, -0.6))
    axis.set_xscale('log', base=2)
    axis.xaxis.set_major_locator(ticker.LogLocator(base=2, numticks=8))
    axis.xaxis.set_major_formatter(lambda x, _: f'{x:g}' if x >= 1 else f'1/{1 / x:g}')
    axis.set_yticks(range(len(rows)), rows, fontsize=7)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=9)


def _draw_growth(axis: Any, timings: Timings) -> None:
    """Draws times against sizes."""
    shown = [what for what in scores.GROWTH if timings.exponent(what) is not None]
    for i, what in enumerate(shown):
        sizes, seconds = timings.curve(what)
        label = f'{what}: {round(timings.exponent(what), 2) + 0.0:.2f}'
        axis.plot(sizes, seconds, 'o-', color=plots.curve_color(i / max(len(shown) - 1, 1)), markersize=3, label=label)
    scale = 'log' if shown else 'linear'
    axis.set(xscale=scale, yscale=scale, xlabel='T, B, H or replicas', ylabel='seconds')
    if shown:
        axis.legend(title='exponent', frameon=False, fontsize=8)
