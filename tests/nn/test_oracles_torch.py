"""Stacks of layers and all their gradients against PyTorch."""

import functools

import numpy as np
import pytest

from tests.helpers.oracles import (
    F32,
    F64,
    LENGTHS,
    RTOL,
    F,
    H,
    T,
    assert_all_reached,
    assert_same,
    cotangents,
    our_stack,
    stack_args,
    stack_cells,
)


@pytest.fixture(scope='session')
def torch():
    """PyTorch, imported by the first test that needs it."""
    return pytest.importorskip('torch', reason='PyTorch is a reference here, where it is installed')


def torch_layout(kind, cell):
    """One cell's weights, or their gradients, in PyTorch's shapes and order of gates: the GRU's r before z."""

    def gates(x):
        if kind == 'gru':
            z, r, n = np.split(np.asarray(x), 3, axis=-1)
            x = np.concatenate([r, z, n], axis=-1)
        return np.ascontiguousarray(np.asarray(x).T)

    weights = {'weight_ih': cell['kernel'], 'weight_hh': cell['recurrent_kernel'], 'bias_ih': cell['bias']}
    return {name: gates(x) for name, x in (weights | {'bias_hh': cell.get('recurrent_bias', cell['bias'])}).items()}


def torch_named(kind, weights, count, directions):
    """The same for a stack, by the names of PyTorch's parameters."""
    suffixes = [f'_l{i}{way}' for i in range(count) for way in ('', '_reverse')[:directions]]
    parts = zip(suffixes, stack_cells(weights, directions), strict=True)
    return {name + suffix: x for suffix, cell in parts for name, x in torch_layout(kind, cell).items()}


def torch_run(torch, kind, count, directions, args, lengths):
    """What `our_stack` gives, by PyTorch; its gradients of the weights by name."""
    make = {
        'lstm': torch.nn.LSTM,
        'gru': torch.nn.GRU,
        'tanh': torch.nn.RNN,
        'relu': functools.partial(torch.nn.RNN, nonlinearity='relu'),
    }
    dtype = getattr(torch, args['inputs'].dtype.name)
    module = make[kind](F, H, count, batch_first=True, bidirectional=directions == 2, dtype=dtype)
    with torch.no_grad():
        for name, x in torch_named(kind, args['weights'], count, directions).items():
            # Ours has the sum of both biases, but in the GRU.
            share = 1 if kind == 'gru' else {'bias_ih': 0.25, 'bias_hh': 0.75}.get(name[:7], 1)
            getattr(module, name).copy_(share * torch.from_numpy(x))
    leaves = {name: torch.tensor(args[name], requires_grad=True) for name in ('inputs', 'h', 'c') if name in args}
    x, h, c = (leaves.get(name) for name in ('inputs', 'h', 'c'))
    if lengths is not None:
        x = torch.nn.utils.rnn.pack_padded_sequence(
            x, torch.from_numpy(lengths), batch_first=True, enforce_sorted=False
        )
    outputs, state = module(x, h if c is None else (h, c))
    if lengths is not None:
        outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True, total_length=T)
    results = {'outputs': outputs} | ({'h': state} if c is None else {'h': state[0], 'c': state[1]})
    weighting = cotangents({name: x.detach().numpy() for name, x in results.items()})
    sum((x * torch.tensor(weighting[name], dtype=dtype)).sum() for name, x in results.items()).backward()
    gradients = {name: x.grad.numpy() for name, x in [*leaves.items(), *module.named_parameters()]}
    return {'results': {name: x.detach().numpy() for name, x in results.items()}, 'gradients': gradients}


def compare_torch(torch, kind, count, directions, lengths, dtype):
    args = stack_args(kind, count, directions, dtype)
    got = our_stack(kind, count, directions, dtype)(args, lengths=lengths)
    assert_all_reached(got['gradients'])
    weights = got['gradients'].pop('weights')
    got['gradients'] |= torch_named(kind, weights, count, directions)
    want = torch_run(torch, kind, count, directions, args, lengths)
    assert_same(got, want, RTOL[dtype])


PAIRS = [(1, 1), (1, 2), (2, 1), (2, 2)]


@pytest.mark.representative(by=lambda kind, count, directions, packed: [kind, (count, directions), packed])
@pytest.mark.parametrize(
    ('kind', 'count', 'directions', 'packed'),
    [(kind, *pair, pair[0] == pair[1]) for kind in ('lstm', 'gru') for pair in PAIRS]
    + [('lstm', 1, 2, True), ('lstm', 2, 1, True), ('lstm', 2, 2, False)]
    + [('tanh', 1, 1, False), ('tanh', 2, 2, True), ('relu', 1, 2, True), ('relu', 2, 1, False)],
)
def test_stacks_and_all_gradients_equal_pytorch(torch, x64, kind, count, directions, packed):
    """Outputs, final states, and gradients of inputs, weights and initial states, with packed sequences and without."""
    compare_torch(torch, kind, count, directions, LENGTHS if packed else None, F64)


@pytest.mark.parametrize('kind', ['lstm', 'gru', 'tanh', 'relu'])
def test_stacks_and_all_gradients_equal_pytorch_in_float32(torch, kind):
    """Relative 1e-5, with packed sequences."""
    compare_torch(torch, kind, 1, 1, LENGTHS, F32)
