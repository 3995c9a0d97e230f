"""The papers' equations, one time step each, transcribed by hand in NumPy: the references of test_variants.py.

    step(p, carry, x, drawn) -> (carry, y)

p has the parameters by the names of `seqjax`, carry and y are [B, H], x is [B, F]; drawn has the random masks of a
training step. All functions are analytic, so that a complex step gives exact derivatives (Squire and Trapp 1998).
"""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gates(x, count):
    return np.split(x, count, axis=-1)


def normalised(x, scale, shift=0):
    """Ba et al. 2016, equation 4, as the supplement's LN (equations 15 and 16): over the last axis."""
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return scale * (x - mean) / np.sqrt(variance + 1e-5) + shift


# --- the LSTM --------------------------------------------------------------------------------------


def gers_2000(p, carry, x, drawn, squash=np.tanh, act=sigmoid):
    """Gers, Schmidhuber and Cummins 2000: with a forget gate."""
    c, h = carry
    i, f, g, o = gates(x @ p['kernel'] + h @ p['recurrent_kernel'] + p['bias'], 4)
    c = act(f) * c + act(i) * squash(g)
    h = act(o) * squash(c)
    return (c, h), h


def arctan(p, carry, x, drawn):
    """The LSTM with other activations of the cell and of the gates."""
    return gers_2000(p, carry, x, drawn, np.arctan, lambda z: np.exp(-z * z))


def hochreiter_1997(p, carry, x, drawn):
    """Hochreiter and Schmidhuber 1997, section 4: without a forget gate, the cell accumulates."""
    c, h = carry
    i, g, o = gates(x @ p['kernel'] + h @ p['recurrent_kernel'] + p['bias'], 3)
    c = c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return (c, h), h


def greff_2017(p, carry, x, drawn):
    """Greff et al. 2017, the variant CIFG: f = 1 - i."""
    c, h = carry
    i, g, o = gates(x @ p['kernel'] + h @ p['recurrent_kernel'] + p['bias'], 3)
    c = (1 - sigmoid(i)) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return (c, h), h


def gers_2002(p, carry, x, drawn):
    """Gers, Schraudolph and Schmidhuber 2002, peepholes: i and f see the old cell, o the new one."""
    c, h = carry
    look_i, look_f, look_o = gates(p['peephole'], 3)
    i, f, g, o = gates(x @ p['kernel'] + h @ p['recurrent_kernel'] + p['bias'], 4)
    c = sigmoid(f + look_f * c) * c + sigmoid(i + look_i * c) * np.tanh(g)
    h = sigmoid(o + look_o * c) * np.tanh(c)
    return (c, h), h


def gers_2002_without_forget_gate(p, carry, x, drawn):
    c, h = carry
    look_i, look_o = gates(p['peephole'], 2)
    i, g, o = gates(x @ p['kernel'] + h @ p['recurrent_kernel'] + p['bias'], 3)
    c = c + sigmoid(i + look_i * c) * np.tanh(g)
    h = sigmoid(o + look_o * c) * np.tanh(c)
    return (c, h), h


def greff_2017_peepholes(p, carry, x, drawn):
    c, h = carry
    look_i, look_o = gates(p['peephole'], 2)
    i, g, o = gates(x @ p['kernel'] + h @ p['recurrent_kernel'] + p['bias'], 3)
    i = sigmoid(i + look_i * c)
    c = (1 - i) * c + i * np.tanh(g)
    h = sigmoid(o + look_o * c) * np.tanh(c)
    return (c, h), h


def sak_2014(p, carry, x, drawn):
    """Sak et al. 2014, LSTMP with its peepholes: the recurrent output is projected."""
    c, r = carry
    look_i, look_f, look_o = gates(p['peephole'], 3)
    i, f, g, o = gates(x @ p['kernel'] + r @ p['recurrent_kernel'] + p['bias'], 4)
    c = sigmoid(f + look_f * c) * c + sigmoid(i + look_i * c) * np.tanh(g)
    m = sigmoid(o + look_o * c) * np.tanh(c)
    r = m @ p['projection_kernel']
    return (c, r), r


def ba_2016_lstm(p, carry, x, drawn):
    """Equations 20 to 22: both products are normalized over all gates, and the cell before the last activation."""
    c, h = carry
    z = normalised(h @ p['recurrent_kernel'], p['recurrent_norm']['scale'])
    z = z + normalised(x @ p['kernel'], p['input_norm']['scale']) + p['bias']
    i, f, g, o = gates(z, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(normalised(c, **{'scale': p['cell_norm']['scale'], 'shift': p['cell_norm']['bias']}))
    return (c, h), h


def gal_2016_lstm(p, carry, x, drawn):
    """Equation 7: one mask on h for the whole sequence, shared by all four products."""
    c, h = carry
    return gers_2000(p, (c, h * drawn['hidden']), x, drawn)


def semeniuta_2016_lstm(p, carry, x, drawn):
    """Equation 9: one mask per step on the candidate, so that the cell is never dropped."""
    c, h = carry
    i, f, g, o = gates(x @ p['kernel'] + h @ p['recurrent_kernel'] + p['bias'], 4)
    c = sigmoid(f) * c + sigmoid(i) * (drawn['candidate'] * np.tanh(g))
    h = sigmoid(o) * np.tanh(c)
    return (c, h), h


def merity_2018_lstm(p, carry, x, drawn):
    """Weight-dropped LSTM: DropConnect on the recurrent kernel, the same for all rows and steps."""
    return gers_2000({**p, 'recurrent_kernel': p['recurrent_kernel'] * drawn['kernel']}, carry, x, drawn)


def krueger_2017_lstm(p, carry, x, drawn):
    """Section 3.2: units of cell and hidden state keep their values; in evaluation the expectation.

    h is computed from the cell before zoneout.
    """
    (c, h), _ = gers_2000(p, carry, x, drawn)
    c = drawn['keep_c'] * carry[0] + (1 - drawn['keep_c']) * c
    h = drawn['keep_h'] * carry[1] + (1 - drawn['keep_h']) * h
    return (c, h), h


# --- the GRU ---------------------------------------------------------------------------------------


def gru_candidate_after(p, h, x, r):
    d_n = gates(p['recurrent_bias'], 3)[2]
    w_n, u_n, b_n = (gates(p[name], 3)[2] for name in ('kernel', 'recurrent_kernel', 'bias'))
    return np.tanh(x @ w_n + b_n + r * (h @ u_n + d_n))


def gru_candidate_before(p, h, x, r):
    w_n, u_n, b_n = (gates(p[name], 3)[2] for name in ('kernel', 'recurrent_kernel', 'bias'))
    return np.tanh(x @ w_n + b_n + (r * h) @ u_n)


def cho_2014(p, carry, x, drawn, candidate=gru_candidate_before, dropped=None):
    """Equations 5 to 8: z h + (1 - z) n; dropout of h applies to the products, not to z h."""
    (h,) = carry
    masked_h = h if dropped is None else dropped
    bias = p['bias'] + p.get('recurrent_bias', 0)
    z, r, _ = gates(x @ p['kernel'] + masked_h @ p['recurrent_kernel'] + bias, 3)
    z, r = sigmoid(z), sigmoid(r)
    n = candidate(p, masked_h, x, r) * drawn.get('candidate', 1)
    h = z * h + (1 - z) * n
    return (h,), h


def keras_gru(p, carry, x, drawn):
    return cho_2014(p, carry, x, drawn, gru_candidate_after)


def gal_2016_gru(p, carry, x, drawn):
    return cho_2014(p, carry, x, drawn, dropped=carry[0] * drawn['hidden'])


def gal_2016_gru_after(p, carry, x, drawn):
    return cho_2014(p, carry, x, drawn, gru_candidate_after, carry[0] * drawn['hidden'])


def merity_2018_gru(p, carry, x, drawn):
    return cho_2014({**p, 'recurrent_kernel': p['recurrent_kernel'] * drawn['kernel']}, carry, x, drawn)


def krueger_2017_gru(p, carry, x, drawn):
    (h,), _ = keras_gru(p, carry, x, drawn)
    h = drawn['keep_h'] * carry[0] + (1 - drawn['keep_h']) * h
    return (h,), h


def ba_2016_gru(p, carry, x, drawn):
    """Equations 26 to 28, with biases: gates together, candidate by itself, its recurrent product inside r."""
    (h,) = carry
    w, w_n = np.split(p['kernel'], [2 * h.shape[1]], axis=1)
    u, u_n = np.split(p['recurrent_kernel'], [2 * h.shape[1]], axis=1)
    b_z, b_r, b_n = gates(p['bias'], 3)
    d_z, d_r, d_n = gates(p['recurrent_bias'], 3)
    a = normalised(h @ u, p['recurrent_norm']['scale']) + normalised(x @ w, p['input_norm']['scale'])
    z, r = gates(a, 2)
    z, r = sigmoid(z + b_z + d_z), sigmoid(r + b_r + d_r)
    inner = normalised(h @ u_n, p['recurrent_norm_n']['scale']) + d_n
    n = np.tanh(normalised(x @ w_n, p['input_norm_n']['scale']) + b_n + r * inner)
    h = z * h + (1 - z) * n
    return (h,), h


def ba_2016_gru_before(p, carry, x, drawn):
    (h,) = carry
    w, w_n = np.split(p['kernel'], [2 * h.shape[1]], axis=1)
    u, u_n = np.split(p['recurrent_kernel'], [2 * h.shape[1]], axis=1)
    b_z, b_r, b_n = gates(p['bias'], 3)
    a = normalised(h @ u, p['recurrent_norm']['scale']) + normalised(x @ w, p['input_norm']['scale'])
    z, r = gates(a, 2)
    z, r = sigmoid(z + b_z), sigmoid(r + b_r)
    inner = normalised((r * h) @ u_n, p['recurrent_norm_n']['scale'])
    n = np.tanh(normalised(x @ w_n, p['input_norm_n']['scale']) + b_n + inner)
    h = z * h + (1 - z) * n
    return (h,), h


# --- the simple network ----------------------------------------------------------------------------


def elman_1990(p, carry, x, drawn):
    (h,) = carry
    h = np.tanh(x @ p['kernel'] + h @ p['recurrent_kernel'] + p['bias'])
    return (h,), h


def ba_2016_simple(p, carry, x, drawn):
    """Equation 4: the sum of both products is normalized."""
    (h,) = carry
    h = np.tanh(normalised(x @ p['kernel'] + h @ p['recurrent_kernel'], p['norm']['scale']) + p['bias'])
    return (h,), h


def gal_2016_simple(p, carry, x, drawn):
    return elman_1990(p, (carry[0] * drawn['hidden'],), x, drawn)


def semeniuta_2016_simple(p, carry, x, drawn):
    """The mask applies to h, as a simple network has no candidate."""
    return elman_1990(p, (carry[0] * drawn['candidate'],), x, drawn)


def merity_2018_simple(p, carry, x, drawn):
    return elman_1990({**p, 'recurrent_kernel': p['recurrent_kernel'] * drawn['kernel']}, carry, x, drawn)


def krueger_2017_simple(p, carry, x, drawn):
    (h,), _ = elman_1990(p, carry, x, drawn)
    h = drawn['keep_h'] * carry[0] + (1 - drawn['keep_h']) * h
    return (h,), h


# --- recurrences that are linear in the state ------------------------------------------------------


def feng_2024_mingru(p, carry, x, drawn, candidate=lambda n: n):
    """Section 3, minGRU."""
    (h,) = carry
    z, n = gates(x @ p['kernel'] + p['bias'], 2)
    h = (1 - sigmoid(z)) * h + sigmoid(z) * candidate(n)
    return (h,), h


def feng_2024_minlstm(p, carry, x, drawn, candidate=lambda n: n):
    """Section 3, minLSTM."""
    (h,) = carry
    f, i, n = gates(x @ p['kernel'] + p['bias'], 3)
    f, i = sigmoid(f), sigmoid(i)
    h = f / (f + i) * h + i / (f + i) * candidate(n)
    return (h,), h


def positive(n):
    """The function g of appendix B."""
    return np.where(n.real >= 0, n + 0.5, sigmoid(n))


def feng_2024_mingru_positive(p, carry, x, drawn):
    return feng_2024_mingru(p, carry, x, drawn, positive)


def feng_2024_minlstm_positive(p, carry, x, drawn):
    return feng_2024_minlstm(p, carry, x, drawn, positive)


def orvieto_2023(p, carry, x, drawn):
    """The LRU, sections 3.3 and 3.4; the complex state as two parts, so that each can take a complex step."""
    re, im = carry
    size, phase = np.exp(-np.exp(p['nu_log'])), np.exp(p['theta_log'])
    gamma = np.exp(p['gamma_log'])
    b_re, b_im = gates(x @ p['kernel'], 2)
    re, im = (
        size * (np.cos(phase) * re - np.sin(phase) * im) + gamma * b_re,
        size * (np.sin(phase) * re + np.cos(phase) * im) + gamma * b_im,
    )
    c_re, c_im = np.split(p['output_kernel'], 2, axis=0)
    return (re, im), re @ c_re - im @ c_im + x @ p['skip']


def de_2024(p, carry, x, drawn):
    """Equations 1 to 4, the RG-LRU, after a linear layer."""
    (h,) = carry
    u = x @ p['kernel'] + p['bias']
    r, i = gates(sigmoid(u @ p['gate_kernel'] + p['gate_bias']), 2)
    a = sigmoid(p['decay']) ** (8 * r)
    h = a * h + np.sqrt(1 - a**2) * (i * u)
    return (h,), h
