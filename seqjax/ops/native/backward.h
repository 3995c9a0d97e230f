// The backward pass of the LSTM and the GRU, and the gradients of the weights.
#pragma once

#include <initializer_list>

#include "product.h"
#include "recurrent.h"
#include "team.h"

namespace seqjax {

// Adds a^T dz of some rows to the gradients of the weights of a range of units.
//
// Columns of a are inputs, old h or r * h, and a last one of 1 for the bias. They are packed [columns, rows], and dz
// [rows, units], so that a tile of the gradients stays in registers over all rows.
template <typename R, Cell C>
class WeightGradients {
  using G = Gates<C>;
  static constexpr int N = Simd<R>::N;
  static constexpr int kWidth = 4;  // vectors of a tile

 public:
  WeightGradients(const Backward<R>& problem, long rows)
      : p(problem), packed((std::max(p.F, p.H) + 1) * rows), packed_dz(rows * kWidth * N) {}

  // Adds the rows [row, row_end) of the steps [begin, end) for the vectors [first, last) of units. `is_first` overwrites.
  void add(long begin, long end, long row, long row_end, long first, long last, bool is_first) {
    const long rows = (end - begin) * (row_end - row);
    const auto product = [&](Source source, std::initializer_list<int> gates, R* gradients, R* bias) {
      const long width = source == kInputs ? p.F : p.H;
      pack_columns(begin, end, row, row_end, source, width);
      for (int gate : gates)
        for (long v = first; v < last;) {
          const int count = static_cast<int>(std::min<long>(kWidth, last - v));
          pack_dz(begin, end, row, row_end, block(gate, source), v, count);
          for_tiles(0, width + (bias != nullptr), max_rows(count), [&](long c, int m) {
            tile(gradients, bias, width, gate, c, m, v, count, rows, is_first);
          });
          v += count;
        }
    };
    if constexpr (C == kLstm) {
      product(kInputs, {0, 1, 2, 3}, p.dkernel, p.dbias);
      product(kHidden, {0, 1, 2, 3}, p.drecurrent, nullptr);
    } else {
      product(kInputs, {0, 1, 2}, p.dkernel, p.dbias);
      if (C == kGru) return product(kHidden, {0, 1, 2}, p.drecurrent, p.drecurrent_bias);
      product(kHidden, {0, 1}, p.drecurrent, nullptr);
      product(kGated, {kCandidate}, p.drecurrent, nullptr);
    }
  }

 private:
  enum Source { kInputs, kHidden, kGated };

  // Place of a gate's gradients in dz, which has LSTM i f g o; GRU n, z, r, n (recurrent); with the reset before the
  // product n, z, r, and r * h instead of gradients. The weights of a GRU have z r n.
  static int block(int gate, Source source) {
    return C == kLstm ? gate : C == kGru && source == kHidden ? gate + 1 : (gate + 1) % 3;
  }

  void pack_columns(long begin, long end, long row, long row_end, Source source, long width) {
    const long rows = (end - begin) * (row_end - row);
    sources.clear();
    for (long step = begin; step < end; ++step) {
      const long t = p.place(step), before = step ? p.place(step - 1) : 0;
      for (long b = row; b < row_end; ++b) {
        const long flag = p.kept(t, b);
        const bool masked = p.valid && !p.valid[flag];  // its input may be NaN, which times 0 is NaN
        const R* h = p.resets && p.resets[flag] ? p.reset_h + b * p.H
                     : step                     ? p.y + p.at(before, b) * p.H
                                                : p.h0 + b * p.H;
        const R* gated = p.dz + (flag * 4 + 3) * p.H;
        sources.push_back(masked ? nullptr : source == kInputs ? p.x + p.at(t, b) * p.F : source == kHidden ? h : gated);
      }
    }
    constexpr long kBlock = 16;  // rows and columns that are transposed together, in the first cache
    for (long c = 0; c < width; c += kBlock)
      for (long r = 0; r < rows; r += kBlock)
        for (long k = r; k < std::min(rows, r + kBlock); ++k)
          for (long j = c; j < std::min(width, c + kBlock); ++j) packed.data[j * rows + k] = sources[k] ? sources[k][j] : R(0);
    std::fill_n(packed.data + width * rows, rows, R(1));
  }

  void pack_dz(long begin, long end, long row, long row_end, int block, long v, int count) {
    R* out = packed_dz.data;
    for (long step = begin; step < end; ++step)
      for (long b = row; b < row_end; ++b)
        for (int i = 0; i < count; ++i, out += N) {
          const long unit = (v + i) * N;
          const R* from = p.dz + (p.kept(p.place(step), b) * 4 + block) * p.H + unit;
          store<R>(out, load<R>(from, lanes<R>(p.H, unit)), N);
        }
  }

  void tile(R* gradients, R* bias, long width, int gate, long c, int m, long v, int count, long rows, bool is_first) {
    alignas(64) R sums[kMaxRows * kWidth * N] = {};
    const R* columns_of_tile[kMaxRows];
    for (int i = 0; i < m; ++i) columns_of_tile[i] = packed.data + (c + i) * rows;
    select_tile<R>(m, count)(sums, count * N, columns_of_tile, rows, packed_dz.data, packed_dz.data);
    for (int i = 0; i < m; ++i) {
      R* out = (c + i < width ? gradients + (c + i) * G::kCount * p.H : bias) + gate * p.H;
      for (int j = 0; j < count; ++j) {
        const long unit = (v + j) * N;
        const int n = lanes<R>(p.H, unit);
        const Vec<R> sum = load<R>(sums + (i * count + j) * N, N);
        store<R>(out + unit, is_first ? sum : load<R>(out + unit, n) + sum, n);
      }
    }
  }

  const Backward<R>& p;
  Buffer<R> packed, packed_dz;
  std::vector<const R*> sources;  // rows of inputs, old h or r * h; nullptr for masked steps
};

template <typename R, Cell C>
class BackwardPass {
  using G = Gates<C>;
  static constexpr int N = Simd<R>::N;
  static constexpr bool kTwoProducts = C == kGruResetBefore;

 public:
  BackwardPass(const Backward<R>& problem, Division division, int team_size)
      : p(problem),
        parts(division.by_rows ? division.threads : 1),
        vectors((p.H + N - 1) / N),
        K(G::kCount * p.H),
        weights((p.F + p.H + 2) * K),
        panels(vectors, parts > 1 ? 1 : team_size, panel_width((p.B + parts - 1) / parts)),
        recurrent(vectors * N * columns()),
        candidate(kTwoProducts ? vectors * N * p.H : 0),
        partial(parts > 1 ? parts * weights : 0) {}

  void run(int index, int size, Barrier& barrier) {
    const auto [first, last] = panels.share(index, size);
    for (size_t i = first; i < last; ++i) {
      const Panel panel = panels.panels[i];
      pack_transposed(p.recurrent, columns(), K, p.H, panel, recurrent.data + panel.first * N * columns());
      if (kTwoProducts)
        pack_transposed(p.recurrent + kCandidate * p.H, p.H, K, p.H, panel, candidate.data + panel.first * N * p.H);
    }
    if (parts == 1) {
      run_rows(p, 0, p.B, first, last, [&] { barrier.wait(size); });
      return;
    }
    // The number of parts does not depend on the number of threads that have come, so results do not either.
    barrier.wait(size);
    for (int part = index; part < parts; part += size) {
      Backward<R> own = p;
      own.dkernel = partial.data + part * weights;
      own.drecurrent = own.dkernel + p.F * K;
      own.dbias = own.drecurrent + p.H * K;
      own.drecurrent_bias = own.dbias + K;
      run_rows(own, p.B * part / parts, p.B * (part + 1) / parts, 0, panels.panels.size(), [] {});
    }
    barrier.wait(size);
    add_parts(0, p.F * K, p.dkernel, index, size);
    add_parts(p.F * K, p.H * K, p.drecurrent, index, size);
    add_parts((p.F + p.H) * K, K, p.dbias, index, size);
    if (C == kGru) add_parts((p.F + p.H + 1) * K, K, p.drecurrent_bias, index, size);
  }

 private:
  static constexpr long kGradientRows = 512;  // rows of a product for the gradients of the weights

  long columns() const { return G::kRecurrentCount * p.H; }  // of the first recurrent product

  static int panel_width(long rows) { return fits(static_cast<int>(std::min<long>(rows, 6)), 8) ? 8 : 4; }

  template <typename Wait>
  void run_rows(const Backward<R>& out, long row, long row_end, size_t first, size_t last, Wait wait) {
    const long steps = std::max<long>(1, kGradientRows / std::max<long>(1, row_end - row));
    WeightGradients<R, C> gradients(out, steps * (row_end - row));
    Buffer<R> dh((row_end - row) * kMaxVectors * N);
    const long v = first < last ? panels.panels[first].first : 0;
    const long v_end = first < last ? panels.panels[last - 1].first + panels.panels[last - 1].count : 0;
    long done = p.T;  // the steps from here on are in the gradients of the weights
    for (long step = p.T - 1; step >= -1; --step) {
      for (size_t i = first; i < last; ++i) panel_step(step, row, row_end, panels.panels[i], dh.data);
      wait();
      if (kTwoProducts && step >= 0) {
        for (size_t i = first; i < last; ++i) reset_step(step, row, row_end, panels.panels[i], dh.data);
        wait();
      }
      if (step >= 0 && (done - step == steps || step == 0)) {
        gradients.add(step, done, row, row_end, v, v_end, done == p.T);
        done = step;
      }
    }
  }

  // Adds the parts of gradients that start at `from`, in their order.
  void add_parts(long from, long count, R* out, int index, int size) {
    for (long i = count * index / size; i < count * (index + 1) / size; ++i) {
      R sum = 0;
      for (int part = 0; part < parts; ++part) sum += partial.data[part * weights + from + i];
      out[i] = sum;
    }
  }

  // Calls f(row, first unit, number of units, sums) for each vector of units of some rows. `dh` is scratch memory.
  template <typename F>
  void for_units(long row, long row_end, Panel panel, R* dh, F f) {
    for (long r = row; r < row_end; ++r)
      for (int v = 0; v < panel.count; ++v) {
        const long unit = (panel.first + v) * N;
        f(r, unit, lanes<R>(p.H, unit), dh + ((r - row) * panel.count + v) * N);
      }
  }

  // Computes the gradients of h after `step` from those of the pre-activations of the next step, then the gradients of
  // the pre-activations of this step. Step -1 is the initial carry.
  void panel_step(long step, long row, long row_end, Panel panel, R* dh) {
    const long t = step < 0 ? 0 : p.place(step), next = step < p.T - 1 ? p.place(step + 1) : 0;
    const bool is_last = step == p.T - 1, skips = is_last || C != kLstm || p.valid;
    const uint8_t* next_resets = p.resets && !is_last ? p.resets + next * p.B : nullptr;
    for_units(row, row_end, panel, dh, [&](long r, long unit, int n, R* sum) {
      store<R>(sum, skips ? load<R>((is_last ? p.dlast_h : p.dh0) + r * p.H + unit, n) : Vec<R>{}, N);
    });
    const auto dz = [&](long r) { return p.dz + (p.kept(next, r) * 4 + G::kRecurrentFirst) * p.H; };
    if (!is_last)
      multiply<R>(row, row_end, panel.count, columns(), dz, recurrent.data + panel.first * N * columns(), dh,
                  panel.count * N, nullptr);
    for_units(row, row_end, panel, dh, [&](long r, long unit, int n, const R* sum) {
      unit_step(step, t, r, unit, n, is_last, next_resets && next_resets[r], load<R>(sum, N));
    });
  }

  // Computes the gradients of r and of h through r * h, from those of n.
  void reset_step(long step, long row, long row_end, Panel panel, R* dh) {
    const long t = p.place(step);
    std::fill_n(dh, (row_end - row) * panel.count * N, R(0));
    const auto dn = [&](long r) { return p.dz + p.kept(t, r) * 4 * p.H; };
    multiply<R>(row, row_end, panel.count, p.H, dn, candidate.data + panel.first * N * p.H, dh, panel.count * N,
                p.valid ? p.valid + t * p.B : nullptr);
    for_units(row, row_end, panel, dh, [&](long r, long unit, int n, const R* sum) {
      const long kept = p.kept(t, r), place = r * p.H + unit;
      if (p.valid && !p.valid[kept]) return;
      R* const gate = p.dz + (kept * 4 + 2) * p.H + unit;  // r until now
      const Vec<R> d = load<R>(sum, N), reset = load<R>(gate, n);
      store<R>(gate, d * old_h(step, r, unit, n) * reset * (R(1) - reset), n);
      store<R>(p.dh0 + place, load<R>(p.dh0 + place, n) + d * reset, n);
    });
  }

  // h before a step, after its reset.
  Vec<R> old_h(long step, long row, long unit, int n) const {
    const long place = row * p.H + unit;
    if (p.resets && p.resets[p.kept(p.place(step), row)]) return load<R>(p.reset_h + place, n);
    return load<R>(step ? p.y + p.at(p.place(step - 1), row) * p.H + unit : p.h0 + place, n);
  }

  void unit_step(long step, long t, long row, long unit, int n, bool is_last, bool next_resets, Vec<R> dh) {
    using V = Vec<R>;
    const long place = row * p.H + unit, kept = p.kept(t, row);
    V dc{};
    if (C == kLstm) dc = load<R>((is_last ? p.dlast_c : p.dc0) + place, n);
    if (next_resets) {
      store<R>(p.dreset_h + place, load<R>(p.dreset_h + place, n) + dh, n);
      dh = V{};
      if (C == kLstm) {
        store<R>(p.dreset_c + place, load<R>(p.dreset_c + place, n) + dc, n);
        dc = V{};
      }
    }
    if (step < 0) {
      store<R>(p.dh0 + place, dh, n);
      if (C == kLstm) store<R>(p.dc0 + place, dc, n);
      return;
    }
    dh += load<R>(p.dy + p.at(t, row) * p.H + unit, n);
    if (C == kLstm && p.dcells) dc += load<R>(p.dcells + kept * p.H + unit, n);
    R* out = p.dz + kept * 4 * p.H + unit;
    const auto put = [&](int gate, V value) { store<R>(out + gate * p.H, value, n); };
    if (p.valid && !p.valid[kept]) {
      for (int j = 0; j < 4; ++j) put(j, V{});
      store<R>(p.dh0 + place, dh, n);
      if (C == kLstm) store<R>(p.dc0 + place, dc, n);
      return;
    }
    const R* saved = p.gates + kept * 4 * p.H + unit;
    const V a = load<R>(saved, n), b = load<R>(saved + p.H, n), d = load<R>(saved + 2 * p.H, n),
            e = load<R>(saved + 3 * p.H, n);
    if constexpr (C == kLstm) {
      const bool reset = p.resets && p.resets[kept];
      const long before = step ? p.place(step - 1) : 0;
      const V &i = a, &f = b, &g = d, &o = e;
      const V old_c = load<R>(reset ? p.reset_c + place : step ? p.cells + p.kept(before, row) * p.H + unit : p.c0 + place, n);
      const V squashed = tanh<R>(load<R>(p.cells + kept * p.H + unit, n));
      dc += dh * o * (R(1) - squashed * squashed);
      put(0, dc * g * i * (R(1) - i));
      put(1, dc * old_c * f * (R(1) - f));
      put(2, dc * i * (R(1) - g * g));
      put(3, dh * squashed * o * (R(1) - o));
      store<R>(p.dc0 + place, dc * f, n);
      if (p.valid) store<R>(p.dh0 + place, V{}, n);
    } else {
      const V &update = a, &gate = b, &candidate = d, &inner = e;
      const V dn = dh * (R(1) - update) * (R(1) - candidate * candidate);
      put(0, dn);
      put(1, dh * (old_h(step, row, unit, n) - candidate) * update * (R(1) - update));
      put(2, kTwoProducts ? gate : dn * inner * gate * (R(1) - gate));  // `reset_step` reads r
      put(3, kTwoProducts ? inner : dn * gate);
      store<R>(p.dh0 + place, dh * update, n);
    }
  }

  const Backward<R>& p;
  const int parts;  // ranges of rows that are computed on their own; 1 if units are divided among threads
  const long vectors, K, weights;  // K: columns of the weights
  const Panels panels;
  Buffer<R> recurrent, candidate, partial;
};

}  // namespace seqjax
