// The forward pass of the LSTM and the GRU.
#pragma once

#include <cstring>
#include <utility>

#include "product.h"
#include "recurrent.h"
#include "team.h"

namespace seqjax {

// The parts of a time step that follow the products.
template <typename R, Cell C>
class ForwardSteps {
 protected:
  using G = Gates<C>;
  static constexpr int N = Simd<R>::N;
  static constexpr bool kTwoProducts = C == kGruResetBefore;

  explicit ForwardSteps(const Forward<R>& problem)
      : p(problem),
        vectors((p.H + N - 1) / N),
        bias(vectors * kSums * N),
        state(p.T > 1 ? 2 * p.B * p.H : 0),
        gated(kTwoProducts ? p.B * p.H : 0) {}

  // The flags and states of one step.
  struct Step {
    Step(const ForwardSteps& pass, long step)
        : p(pass.p),
          t(p.place(step)),
          old_h(step ? pass.state.data + (step & 1) * p.B * p.H : p.h0),
          old_c(step ? p.last_c : p.c0),
          new_h(step == p.T - 1 ? p.last_h : pass.state.data + (~step & 1) * p.B * p.H),
          valid(p.valid ? p.valid + t * p.B : nullptr),
          resets(p.resets ? p.resets + t * p.B : nullptr) {}
    const R* h(long r) const { return (resets && resets[r] ? p.reset_h : old_h) + r * p.H; }
    const R* c(long r) const { return (resets && resets[r] ? p.reset_c : old_c) + r * p.H; }
    bool masked(long r) const { return valid && !valid[r]; }
    const Forward<R>& p;
    const long t;
    const R *old_h, *old_c;
    R* new_h;
    const uint8_t *valid, *resets;
  };

  // Writes the bias of each sum of a panel to `bias`.
  void pack_bias(Panel panel) {
    R* b = bias.data + panel.first * kSums * N;
    for (int j = 0; j < kSums; ++j)
      for (int v = 0; v < panel.count; ++v, b += N) store<R>(b, bias_of(j, (panel.first + v) * N), N);
  }

  // The bias of sum j of a vector of units.
  Vec<R> bias_of(int j, long unit) {
    const int n = lanes<R>(p.H, unit);
    if (C == kLstm) return load<R>(p.bias + j * p.H + unit, n);
    Vec<R> sum{};
    if (j < 3) sum = load<R>(p.bias + G::kInput[j] * p.H + unit, n);
    if (C == kGru && j > 0) sum += load<R>(p.recurrent_bias + (j - 1) * p.H + unit, n);
    return sum;
  }

  // Replaces the sums of z and r by their gates, and computes r * h.
  void apply_reset(const Step& now, long row, long row_end, Panel panel, R* z, long stride) {
    for (long r = row; r < row_end; ++r, z += stride)
      for (int v = 0; v < panel.count; ++v) {
        R* const update = z + (panel.count + v) * N;
        R* const reset = update + panel.count * N;
        const long unit = (panel.first + v) * N;
        const int n = lanes<R>(p.H, unit);
        store<R>(update, sigmoid<R>(load<R>(update, N)), N);
        store<R>(reset, sigmoid<R>(load<R>(reset, N)), N);
        store<R>(gated.data + r * p.H + unit, now.masked(r) ? Vec<R>{} : load<R>(reset, N) * load<R>(now.h(r) + unit, n), n);
      }
  }

  // Computes the gates and the states of some rows and units from z [rows, stride].
  void finish(const Step& now, long row, long row_end, Panel panel, R* z, long stride) {
    for (long r = row; r < row_end; ++r, z += stride)
      for (int v = 0; v < panel.count; ++v) {
        const long unit = (panel.first + v) * N, here = r * p.H + unit, kept = p.kept(now.t, r);
        const int n = lanes<R>(p.H, unit);
        R* gates = p.gates ? p.gates + kept * 4 * p.H + unit : nullptr;
        const R* c = C == kLstm ? now.c(r) + unit : nullptr;
        const auto [h_value, c_value] =
            unit_step(z + v * N, panel.count * N, now.h(r) + unit, c, kTwoProducts ? gated.data + here : nullptr,
                      now.masked(r), gates, n);
        store<R>(now.new_h + here, h_value, n);
        store<R>(p.y + p.at(now.t, r) * p.H + unit, h_value, n);
        if (C == kLstm) store<R>(p.last_c + here, c_value, n);
        if (C == kLstm && p.cells) store<R>(p.cells + kept * p.H + unit, c_value, n);
      }
  }

  // Returns h and c of one vector of units of one row. z has the sums, `next` numbers apart.
  std::pair<Vec<R>, Vec<R>> unit_step(const R* z, long next, const R* h, const R* c, const R* gated_h, bool masked,
                                      R* gates, int n) {
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
      const V update = kTwoProducts ? b : sigmoid<R>(b), reset = kTwoProducts ? d : sigmoid<R>(d);
      const V candidate_h = tanh<R>(kTwoProducts ? a : a + reset * e);
      new_h = update * old_h + (R(1) - update) * candidate_h;
      saved[0] = update, saved[1] = reset, saved[2] = candidate_h, saved[3] = kTwoProducts ? load<R>(gated_h, n) : e;
    }
    if (gates)
      for (int j = 0; j < 4; ++j) store<R>(gates + j * p.H, saved[j], n);
    return {new_h, new_c};
  }

  const Forward<R>& p;
  const long vectors;
  Buffer<R> bias, state, gated;  // state: h of two steps; gated: r * h
};

// A sequence with packed weights.
template <typename R, Cell C>
class ForwardPass : ForwardSteps<R, C> {
  using Base = ForwardSteps<R, C>;
  using typename Base::G;
  using typename Base::Step;
  using Base::bias, Base::gated, Base::kTwoProducts, Base::N, Base::p, Base::vectors;

 public:
  ForwardPass(const Forward<R>& problem, Division division, int team_size)
      : Base(problem),
        by_rows(division.by_rows && team_size > 1),
        panels(vectors, by_rows ? 1 : team_size, panel_width(by_rows ? (p.B + team_size - 1) / team_size : p.B)),
        kernel(vectors * G::kCount * N * p.F),
        recurrent(vectors * G::kRecurrentCount * N * p.H),
        candidate(kTwoProducts ? vectors * N * p.H : 0) {}

  void run(int index, int size, Barrier& barrier) {
    const auto share = panels.share(index, size);
    size_t first = share.first, last = share.second;
    for (size_t i = first; i < last; ++i) pack_panel(panels.panels[i]);
    if (by_rows) {
      barrier.wait(size);
      first = 0, last = panels.panels.size();
    }
    const auto wait = [&] { if (!by_rows) barrier.wait(size); };
    const long row = by_rows ? p.B * index / size : 0, row_end = by_rows ? p.B * (index + 1) / size : p.B;
    const long rows = row_end - row;
    const bool project = rows < kFewRows && p.F >= 8 && p.T >= 4;
    const bool keep = project || kTwoProducts;  // the sums of all panels at once
    const long block = project ? std::max<long>(1, kProjectedRows / std::max<long>(1, rows)) : p.T;
    long width = keep ? 0 : kMaxVectors * N;
    for (size_t i = first; keep && i < last; ++i) width += panels.panels[i].count * kSums * N;
    Buffer<R> sums((project ? block : 1) * rows * width), x(project ? 0 : rows * p.F);
    for (long begin = 0; begin < p.T; begin += block) {
      const long end = std::min(p.T, begin + block);
      if (project) project_inputs(begin, end, row, row_end, first, last, width, sums.data);
      for (long step = begin; step < end; ++step) {
        R* const z = sums.data + (project ? (step - begin) * rows * width : 0);
        for (long r = 0; r < (project ? 0 : rows); ++r)
          std::copy_n(p.x + p.at(p.place(step), row + r) * p.F, p.F, x.data + r * p.F);
        const auto for_panels = [&](auto f) {
          R* place = z;
          for (size_t i = first; i < last; ++i) {
            const Panel panel = panels.panels[i];
            f(panel, place, keep ? width : panel.count * kSums * N);
            if (keep) place += panel.count * kSums * N;
          }
        };
        const Step now(*this, step);
        for_panels([&](Panel panel, R* place, long stride) {
          if (!project) add_inputs(row, row_end, panel, x.data, place, stride, now.valid);
          multiply_h(now, row, row_end, panel, place, stride);
          if (!kTwoProducts) this->finish(now, row, row_end, panel, place, stride);
        });
        wait();
        if (!kTwoProducts) continue;
        for_panels([&](Panel panel, R* place, long stride) {
          multiply_gated(now, row, row_end, panel, place, stride);
          this->finish(now, row, row_end, panel, place, stride);
        });
        wait();
      }
    }
  }

 private:
  static constexpr long kFewRows = 7, kProjectedRows = 48;

  // Vectors of units in a panel: two if there are so few rows that one would leave registers unused.
  static int panel_width(long rows) { return fits(static_cast<int>(std::min<long>(rows, 6)), 2 * G::kCount) ? 2 : 1; }

  void pack_panel(Panel panel) {
    long input[4], of_h[4];
    const long of_n = kCandidate * p.H, columns = G::kCount * p.H, place = panel.first * N;
    for (int j = 0; j < G::kCount; ++j) input[j] = G::kInput[j] * p.H;
    for (int j = 0; j < G::kRecurrentCount; ++j) of_h[j] = G::kRecurrent[j] * p.H;
    pack(p.kernel, p.F, columns, p.H, input, G::kCount, panel, kernel.data + place * G::kCount * p.F);
    pack(p.recurrent, p.H, columns, p.H, of_h, G::kRecurrentCount, panel,
         recurrent.data + place * G::kRecurrentCount * p.H);
    if (kTwoProducts) pack(p.recurrent, p.H, columns, p.H, &of_n, 1, panel, candidate.data + place * p.H);
    this->pack_bias(panel);
  }

  void fill_bias(Panel panel, long rows, R* z, long stride) {
    const R* b = bias.data + panel.first * kSums * N;
    for (long i = 0; i < rows; ++i) std::memcpy(z + i * stride, b, panel.count * kSums * N * sizeof(R));
  }

  // Adds the rows [begin, end) times packed weights [K, count panels] to z.
  template <typename Row>
  void add_product(long begin, long end, Panel panel, long K, Row row, const R* weights, int count, R* z, long stride,
                   const uint8_t* valid) {
    multiply<R>(begin, end, panel.count * count, K, row, weights + panel.first * count * N * K, z, stride, valid);
  }

  // Computes x W + b of the steps [begin, end) for a few rows, whose steps then fill the tiles.
  void project_inputs(long begin, long end, long row, long row_end, size_t first, size_t last, long width, R* z) {
    const long rows = row_end - row;
    const auto x = [&](long r) { return p.x + p.at(p.place(begin + r / rows), row + r % rows) * p.F; };
    for (size_t i = first; i < last; ++i) {
      const Panel panel = panels.panels[i];
      fill_bias(panel, (end - begin) * rows, z, width);
      add_product(0, (end - begin) * rows, panel, p.F, x, kernel.data, G::kCount, z, width, nullptr);
      z += panel.count * kSums * N;
    }
  }

  // Computes x W + b of one step, from x [rows, F].
  void add_inputs(long row, long row_end, Panel panel, const R* x, R* z, long stride, const uint8_t* valid) {
    fill_bias(panel, row_end - row, z, stride);
    const auto of_row = [&](long r) { return x + (r - row) * p.F; };
    add_product(row, row_end, panel, p.F, of_row, kernel.data, G::kCount, z, stride, valid);
  }

  // Adds h U. With two products, also applies the reset gate.
  void multiply_h(const Step& now, long row, long row_end, Panel panel, R* z, long stride) {
    const auto h = [&](long r) { return now.h(r); };
    add_product(row, row_end, panel, p.H, h, recurrent.data, G::kRecurrentCount,
                z + G::kRecurrentFirst * panel.count * N, stride, now.valid);
    if (kTwoProducts) this->apply_reset(now, row, row_end, panel, z, stride);
  }

  // Adds (r * h) U of the candidate.
  void multiply_gated(const Step& now, long row, long row_end, Panel panel, R* z, long stride) {
    const auto of_row = [&](long r) { return gated.data + r * p.H; };
    add_product(row, row_end, panel, p.H, of_row, candidate.data, 1, z, stride, now.valid);
  }

  const bool by_rows;
  const Panels panels;
  Buffer<R> kernel, recurrent, candidate;
};

// One step, which reads each weight once and does not pack them. Threads take parts of the inputs and of h from a queue, so
// that a thread that starts late delays nothing. The sums do not depend on which thread computes a part.
template <typename R, Cell C>
class SingleStep : ForwardSteps<R, C> {
  using Base = ForwardSteps<R, C>;
  using typename Base::G;
  using Base::bias, Base::gated, Base::kTwoProducts, Base::N, Base::p, Base::vectors;

 public:
  SingleStep(const Forward<R>& problem, double weights)
      : Base(problem),
        stride(vectors * kSums * N),
        parts(std::min(kMaxParts, 1 + static_cast<long>(weights * sizeof(R) / kPartBytes))),
        sums(parts * p.B * stride) {}

  template <typename Pool>
  void run(Pool& pool, int threads) {
    const typename Base::Step now(*this, 0);
    const Panel all{0, static_cast<int>(vectors)};
    this->pack_bias(all);
    run_chunks(pool, threads, parts, [&](long part) {
      for (long r = 0; r < p.B; ++r)
        part == 0 ? std::copy_n(bias.data, stride, of(part, r)) : std::fill_n(of(part, r), stride, R(0));
      add_products(part, p.F, [&](long r) { return p.x + r * p.F; }, p.kernel, G::kInput, G::kCount, 0);
      add_products(part, p.H, [&](long r) { return now.h(r); }, p.recurrent, G::kRecurrent, G::kRecurrentCount,
                   G::kRecurrentFirst);
    });
    add_parts(kSums);
    if (kTwoProducts) {
      this->apply_reset(now, 0, p.B, all, sums.data, stride);
      run_chunks(pool, threads, parts, [&](long part) {
        for (long r = 0; part > 0 && r < p.B; ++r) std::fill_n(of(part, r), vectors * N, R(0));
        add_products(part, p.H, [&](long r) { return gated.data + r * p.H; }, p.recurrent, &kCandidate, 1, 0);
      });
      add_parts(1);
    }
    this->finish(now, 0, p.B, all, sums.data, stride);
  }

 private:
  static constexpr long kMaxParts = 16, kPartBytes = 512 << 10;

  R* of(long part, long row) const { return sums.data + (part * p.B + row) * stride; }

  // Adds the share of a part of K numbers of each row, times the columns `gates` of the weights, to its sums from `first` on.
  template <typename Row>
  void add_products(long part, long K, Row row, const R* weights, const int* gates, int count, int first) {
    const long begin = K * part / parts, size = K * (part + 1) / parts - begin, columns = G::kCount * p.H;
    for (int j = 0; j < count;) {
      int side = 1;  // gates that are side by side in the weights and in the sums
      while (p.H % N == 0 && j + side < count && gates[j + side] == gates[j] + side) ++side;
      multiply_unpacked<R>(0, p.B, side * p.H, size, [&](long r) { return row(r) + begin; },
                           weights + begin * columns + gates[j] * p.H, columns, of(part, 0) + (first + j) * vectors * N, stride);
      j += side;
    }
  }

  // Adds the first `count` sums of all parts to those of part 0.
  void add_parts(int count) {
    for (long r = 0; r < p.B; ++r)
      for (long part = 1; part < parts; ++part)
        for (long i = 0; i < count * vectors * N; i += N)
          store<R>(of(0, r) + i, load<R>(of(0, r) + i, N) + load<R>(of(part, r) + i, N), N);
  }

  const long stride, parts;
  Buffer<R> sums;  // [parts, B, kSums, H]
};

}  // namespace seqjax
