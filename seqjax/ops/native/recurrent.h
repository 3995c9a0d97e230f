// The LSTM and the GRU over time, forward and backward. See `seqjax.ops.native` for the arguments.
#pragma once

#include <cstdlib>
#include <utility>

#include "product.h"
#include "team.h"

namespace seqjax {

enum Cell { kLstm = 0, kGru = 1 };

template <typename R>
struct Buffer {  // aligned scratch memory
  explicit Buffer(long count) : data(static_cast<R*>(std::aligned_alloc(64, (count * sizeof(R) + 127) / 64 * 64))) {}
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  R* data;
};

struct Sizes {
  long T, B, F, H;
  bool reverse;
  long place(long step) const { return reverse ? T - 1 - step : step; }  // of a step, in the order of processing
  long at(long t, long row) const { return row * T + t; }                  // index into arrays [B, T, ...]
  long kept(long t, long row) const { return t * B + row; }                // index into arrays [T, B, ...]
};

// Inputs, outputs and gradients of outputs are [B, T, ...], so that a layer whose batch is the first axis copies nothing.
// All that only the passes read is [T, B, ...]: rows that are T H numbers apart can share the lines of a cache. For the
// same reason h of the step before is read from a small array of its own.

template <typename R>
struct Forward : Sizes {
  const R *x, *h0, *c0, *kernel, *recurrent, *bias, *recurrent_bias, *reset_h, *reset_c;
  const uint8_t *valid, *resets;  // nullptr: all steps are valid, no resets
  R *y, *last_h, *last_c, *cells, *gates;  // cells and gates may be nullptr
};

template <typename R>
struct Backward : Sizes {
  const R *x, *recurrent, *h0, *c0, *y, *cells, *gates, *reset_h, *reset_c;
  const uint8_t *valid, *resets;
  const R *dy, *dcells, *dlast_h, *dlast_c;  // dcells may be nullptr
  R *dz, *dh0, *dc0, *dreset_h, *dreset_c;   // dz may be gates
  R *dkernel, *drecurrent, *dbias, *drecurrent_bias;
};

// Gates of the input product and of the recurrent product, and their columns in the weights. The sums of a unit stand
// in the order of `kSums`: LSTM i f g o; GRU n (input), z, r, n (recurrent), so that both products write 3 in a row.
template <Cell C>
struct Gates;
template <>
struct Gates<kLstm> {
  static constexpr int kCount = 4;
  static constexpr int kInput[] = {0, 1, 2, 3}, kRecurrent[] = {0, 1, 2, 3};
  static constexpr int kRecurrentFirst = 0;  // first sum of the recurrent product
};
template <>
struct Gates<kGru> {
  static constexpr int kCount = 3;
  static constexpr int kInput[] = {2, 0, 1}, kRecurrent[] = {0, 1, 2};  // columns z r n in the weights
  static constexpr int kRecurrentFirst = 1;
};
constexpr int kSums = 4;

// How a call is divided among threads: by units, with a barrier after each step, or by rows, without.
struct Division {
  bool by_rows;
  int threads;
};

constexpr long kCacheBytes = 1 << 20;       // weights of a core's own cache
constexpr double kWorkPerThread = 400'000;  // multiplications, below which a thread costs more than it computes

inline Division divide(long T, long B, long vectors, long weight_bytes, double multiplications, int cores) {
  int threads = static_cast<int>(std::min<double>(cores, std::max(1.0, multiplications / kWorkPerThread)));
  const bool by_rows = weight_bytes <= kCacheBytes && B >= 4 * threads;
  threads = static_cast<int>(std::min<long>(threads, by_rows ? B : vectors));
  // A barrier takes about a microsecond, which must be little beside the work of a step.
  if (!by_rows && T > 0 && multiplications / T < 30'000 * threads) threads = 1;
  return {by_rows && threads > 1, std::max(1, threads)};
}

template <typename R, Cell C>
class ForwardPass {
  using G = Gates<C>;
  static constexpr int N = Simd<R>::N;

 public:
  ForwardPass(const Forward<R>& problem, Division division, int team_size)
      : p(problem),
        by_rows(division.by_rows && team_size > 1),
        vectors((p.H + N - 1) / N),
        panels(vectors, by_rows ? 1 : team_size, panel_width(by_rows ? (p.B + team_size - 1) / team_size : p.B)),
        kernel(vectors * G::kCount * N * p.F),
        recurrent(vectors * G::kCount * N * p.H),
        bias(vectors * kSums * N),
        state(2 * p.B * p.H) {}

  void run(int index, int size, Barrier& barrier) {
    auto [first, last] = panels.share(index, size);
    for (size_t i = first; i < last; ++i) pack_panel(panels.panels[i]);
    if (by_rows) {
      barrier.wait(size);
      first = 0, last = panels.panels.size();
    }
    const long row = by_rows ? p.B * index / size : 0, row_end = by_rows ? p.B * (index + 1) / size : p.B;
    const bool project = row_end - row < kFewRows && p.F >= 8 && p.T >= 4;
    const long block = project ? std::max<long>(1, kProjectedRows / std::max<long>(1, row_end - row)) : p.T;
    long width = 0;
    for (size_t i = first; i < last; ++i) width += panels.panels[i].count * kSums * N;
    const long rows = row_end - row;
    Buffer<R> projected(project ? block * rows * width : 0), local(rows * kMaxVectors * N), x(project ? 0 : rows * p.F);
    for (long begin = 0; begin < p.T; begin += block) {
      const long end = std::min(p.T, begin + block);
      if (project) project_inputs(begin, end, row, row_end, first, last, width, projected.data);
      for (long step = begin; step < end; ++step) {
        R* z = projected.data + (step - begin) * rows * width;
        for (long r = 0; r < (project ? 0 : rows); ++r)
          std::copy_n(p.x + p.at(p.place(step), row + r) * p.F, p.F, x.data + r * p.F);
        for (size_t i = first; i < last; ++i) {
          const Panel panel = panels.panels[i];
          if (project) {
            panel_step(step, row, row_end, panel, nullptr, z, width);
            z += panel.count * kSums * N;
          } else {
            panel_step(step, row, row_end, panel, x.data, local.data, panel.count * kSums * N);
          }
        }
        if (!by_rows) barrier.wait(size);
      }
    }
    if (by_rows || index == 0)
      std::copy_n(state.data + ((p.T & 1) * p.B + row) * p.H, rows * p.H, p.last_h + row * p.H);
  }

 private:
  static constexpr long kFewRows = 7, kProjectedRows = 48;

  // Vectors of units in a panel: two if there are so few rows that one would leave registers unused.
  static int panel_width(long rows) { return fits(static_cast<int>(std::min<long>(rows, 6)), 2 * G::kCount) ? 2 : 1; }

  void pack_panel(Panel panel) {
    long input[4], of_h[4];
    for (int j = 0; j < G::kCount; ++j) input[j] = G::kInput[j] * p.H, of_h[j] = G::kRecurrent[j] * p.H;
    const long place = panel.first * G::kCount * N;
    pack(p.kernel, p.F, G::kCount * p.H, p.H, input, G::kCount, panel, kernel.data + place * p.F);
    pack(p.recurrent, p.H, G::kCount * p.H, p.H, of_h, G::kCount, panel, recurrent.data + place * p.H);
    R* b = bias.data + panel.first * kSums * N;
    for (int j = 0; j < kSums; ++j)
      for (int v = 0; v < panel.count; ++v, b += N) {
        const long unit = (panel.first + v) * N;
        const int n = lanes<R>(p.H, unit);
        const R *in = p.bias + unit, *of = p.recurrent_bias + unit;
        Vec<R> sum;
        if constexpr (C == kLstm) {
          sum = load<R>(in + j * p.H, n);
        } else {
          sum = j == 0   ? load<R>(in + 2 * p.H, n)
                : j == 3 ? load<R>(of + 2 * p.H, n)
                         : load<R>(in + (j - 1) * p.H, n) + load<R>(of + (j - 1) * p.H, n);
        }
        store<R>(b, sum, N);
      }
  }

  void fill_bias(Panel panel, long rows, R* z, long stride) {
    const R* b = bias.data + panel.first * kSums * N;
    for (long i = 0; i < rows; ++i) std::memcpy(z + i * stride, b, panel.count * kSums * N * sizeof(R));
  }

  // Adds x W of the rows [begin, end) to z.
  template <typename X>
  void add_inputs(long begin, long end, Panel panel, X x, R* z, long stride, const uint8_t* valid) {
    const R* weights = kernel.data + panel.first * G::kCount * N * p.F;
    multiply<R>(begin, end, panel.count * G::kCount, p.F, x, weights, z, stride, valid);
  }

  // Computes x W + b of the steps [begin, end) for a few rows, whose steps then fill the tiles.
  void project_inputs(long begin, long end, long row, long row_end, size_t first, size_t last, long width, R* z) {
    const long rows = row_end - row;
    const auto x = [&](long r) { return p.x + p.at(p.place(begin + r / rows), row + r % rows) * p.F; };
    for (size_t i = first; i < last; ++i) {
      const Panel panel = panels.panels[i];
      fill_bias(panel, (end - begin) * rows, z, width);
      add_inputs(0, (end - begin) * rows, panel, x, z, width, nullptr);
      z += panel.count * kSums * N;
    }
  }

  // Computes one step of some rows and units. z [rows, stride] has the part of the inputs if x [rows, F] is nullptr.
  void panel_step(long step, long row, long row_end, Panel panel, const R* x, R* z, long stride) {
    const long t = p.place(step);
    const R *old_h = step ? state.data + (step & 1) * p.B * p.H : p.h0, *old_c = step ? p.last_c : p.c0;
    R* new_h = state.data + (~step & 1) * p.B * p.H;
    const uint8_t* valid = p.valid ? p.valid + t * p.B : nullptr;
    const uint8_t* resets = p.resets ? p.resets + t * p.B : nullptr;
    const auto h = [&](long r) { return (resets && resets[r] ? p.reset_h : old_h) + r * p.H; };
    if (x) {
      fill_bias(panel, row_end - row, z, stride);
      add_inputs(row, row_end, panel, [&](long r) { return x + (r - row) * p.F; }, z, stride, valid);
    }
    const R* weights = recurrent.data + panel.first * G::kCount * N * p.H;
    R* of_h = z + G::kRecurrentFirst * panel.count * N;
    multiply<R>(row, row_end, panel.count * G::kCount, p.H, h, weights, of_h, stride, valid);
    for (long r = row; r < row_end; ++r, z += stride)
      for (int v = 0; v < panel.count; ++v) {
        const long unit = (panel.first + v) * N, here = r * p.H + unit, kept = p.kept(t, r);
        const int n = lanes<R>(p.H, unit);
        R* gates = p.gates ? p.gates + kept * 4 * p.H + unit : nullptr;
        const R* c = C == kGru ? nullptr : (resets && resets[r] ? p.reset_c : old_c) + here;
        const auto [h_value, c_value] =
            unit_step(z + v * N, panel.count * N, h(r) + unit, c, valid && !valid[r], gates, n);
        store<R>(new_h + here, h_value, n);
        store<R>(p.y + p.at(t, r) * p.H + unit, h_value, n);
        if (C == kLstm) store<R>(p.last_c + here, c_value, n);
        if (C == kLstm && p.cells) store<R>(p.cells + kept * p.H + unit, c_value, n);
      }
  }

  // Returns h and c of one vector of units of one row. z has the sums, `next` numbers apart.
  std::pair<Vec<R>, Vec<R>> unit_step(const R* z, long next, const R* h, const R* c, bool masked, R* gates, int n) {
    using V = Vec<R>;
    const V old_h = load<R>(h, n), old_c = C == kLstm ? load<R>(c, n) : V{};
    if (masked) {
      if (gates)
        for (int j = 0; j < 4; ++j) store<R>(gates + j * p.H, V{}, n);
      return {old_h, old_c};
    }
    const V a = load<R>(z, N), b = load<R>(z + next, N), d = load<R>(z + 2 * next, N), e = load<R>(z + 3 * next, N);
    V saved[4], new_h, new_c{};
    if constexpr (C == kLstm) {
      const V i = sigmoid<R>(a), f = sigmoid<R>(b), g = tanh<R>(d), o = sigmoid<R>(e);
      new_c = f * old_c + i * g;
      new_h = o * tanh<R>(new_c);
      saved[0] = i, saved[1] = f, saved[2] = g, saved[3] = o;
    } else {
      const V update = sigmoid<R>(b), reset = sigmoid<R>(d), candidate = tanh<R>(a + reset * e);
      new_h = update * old_h + (R(1) - update) * candidate;
      saved[0] = update, saved[1] = reset, saved[2] = candidate, saved[3] = e;
    }
    if (gates)
      for (int j = 0; j < 4; ++j) store<R>(gates + j * p.H, saved[j], n);
    return {new_h, new_c};
  }

  const Forward<R>& p;
  const bool by_rows;
  const long vectors;
  const Panels panels;
  Buffer<R> kernel, recurrent, bias, state;  // state: h of two steps
};

// Adds a^T dz of some rows to the gradients of the weights of a range of units.
//
// Columns of a are inputs or old h, and a last one of 1 for the bias. They are packed [columns, rows], and dz [rows, units],
// so that a tile of the gradients stays in registers over all rows.
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
    for (const bool recurrent : {false, true}) {
      const long width = recurrent ? p.H : p.F;
      const bool has_bias = !recurrent || C == kGru;
      R* bias = recurrent ? p.drecurrent_bias : p.dbias;
      pack_columns(begin, end, row, row_end, recurrent, width);
      for (int gate = 0; gate < G::kCount; ++gate)
        for (long v = first; v < last;) {
          const int count = static_cast<int>(std::min<long>(kWidth, last - v));
          pack_dz(begin, end, row, row_end, block(gate, recurrent), v, count);
          for_tiles(0, width + has_bias, max_rows(count), [&](long c, int m) {
            tile(recurrent ? p.drecurrent : p.dkernel, bias, width, gate, c, m, v, count, rows, is_first);
          });
          v += count;
        }
    }
  }

 private:
  // Place of a gate's gradients in dz: LSTM i f g o; GRU n, z, r, n (recurrent), where the weights have z r n.
  static int block(int gate, bool recurrent) { return C == kLstm ? gate : recurrent ? gate + 1 : (gate + 1) % 3; }

  void pack_columns(long begin, long end, long row, long row_end, bool recurrent, long width) {
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
        sources.push_back(masked ? nullptr : recurrent ? h : p.x + p.at(t, b) * p.F);
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
  std::vector<const R*> sources;  // rows of inputs or old h; nullptr for masked steps
};

template <typename R, Cell C>
class BackwardPass {
  using G = Gates<C>;
  static constexpr int N = Simd<R>::N;

 public:
  BackwardPass(const Backward<R>& problem, Division division, int team_size)
      : p(problem),
        parts(division.by_rows ? division.threads : 1),
        vectors((p.H + N - 1) / N),
        K(G::kCount * p.H),
        weights((p.F + p.H + 2) * K),
        panels(vectors, parts > 1 ? 1 : team_size, panel_width((p.B + parts - 1) / parts)),
        recurrent(vectors * N * K),
        partial(parts > 1 ? parts * weights : 0) {}

  void run(int index, int size, Barrier& barrier) {
    const auto [first, last] = panels.share(index, size);
    for (size_t i = first; i < last; ++i) {
      const Panel panel = panels.panels[i];
      pack_transposed(p.recurrent, K, p.H, panel, recurrent.data + panel.first * N * K);
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

  // Computes the gradients of h after `step` from those of the pre-activations of the next step, then the gradients of
  // the pre-activations of this step. Step -1 is the initial carry. `dh` is scratch memory.
  void panel_step(long step, long row, long row_end, Panel panel, R* dh) {
    const long t = step < 0 ? 0 : p.place(step), next = step < p.T - 1 ? p.place(step + 1) : 0;
    const bool is_last = step == p.T - 1, skips = is_last || C == kGru || p.valid;
    const uint8_t* next_resets = p.resets && !is_last ? p.resets + next * p.B : nullptr;
    const int width = panel.count * N;
    const auto units = [&](auto f) {
      for (long r = row; r < row_end; ++r)
        for (int v = 0; v < panel.count; ++v) {
          const long unit = (panel.first + v) * N;
          f(r, unit, lanes<R>(p.H, unit), dh + (r - row) * width + v * N);
        }
    };
    units([&](long r, long unit, int n, R* sum) {
      store<R>(sum, skips ? load<R>((is_last ? p.dlast_h : p.dh0) + r * p.H + unit, n) : Vec<R>{}, N);
    });
    const auto dz = [&](long r) { return p.dz + (p.kept(next, r) * 4 + G::kRecurrentFirst) * p.H; };
    if (!is_last)
      multiply<R>(row, row_end, panel.count, K, dz, recurrent.data + panel.first * N * K, dh, width, nullptr);
    units([&](long r, long unit, int n, const R* sum) {
      unit_step(step, t, r, unit, n, is_last, next_resets && next_resets[r], load<R>(sum, N));
    });
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
    const bool reset = p.resets && p.resets[kept];
    const long before = step ? p.place(step - 1) : 0;
    if constexpr (C == kLstm) {
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
      const V old_h = load<R>(reset ? p.reset_h + place : step ? p.y + p.at(before, row) * p.H + unit : p.h0 + place, n);
      const V dn = dh * (R(1) - update) * (R(1) - candidate * candidate);
      put(0, dn);
      put(1, dh * (old_h - candidate) * update * (R(1) - update));
      put(2, dn * inner * gate * (R(1) - gate));
      put(3, dn * gate);
      store<R>(p.dh0 + place, dh * update, n);
    }
  }

  const Backward<R>& p;
  const int parts;  // ranges of rows that are computed on their own; 1 if units are divided among threads
  const long vectors, K, weights;
  const Panels panels;
  Buffer<R> recurrent, partial;
};

}  // namespace seqjax
