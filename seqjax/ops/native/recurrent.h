// The LSTM and the GRU over time: arrays, gates, and the division among threads. See `seqjax.ops.native` for the arguments.
#pragma once

#include <algorithm>
#include <cstdint>

#include "scratch.h"

namespace seqjax {

enum Cell { kLstm = 0, kGru = 1, kGruResetBefore = 2 };  // kGru: the reset gate follows the product

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
// in the order LSTM i f g o; GRU n (input), z, r, n (recurrent), so that both products write 3 in a row. With the reset
// before the product, n has one sum, and its recurrent part is a second product, of r * h.
template <Cell C>
struct Gates;
template <>
struct Gates<kLstm> {
  static constexpr int kCount = 4, kRecurrentCount = 4;
  static constexpr int kInput[] = {0, 1, 2, 3}, kRecurrent[] = {0, 1, 2, 3};
  static constexpr int kRecurrentFirst = 0;  // first sum of the recurrent product
};
template <>
struct Gates<kGru> {
  static constexpr int kCount = 3, kRecurrentCount = 3;
  static constexpr int kInput[] = {2, 0, 1}, kRecurrent[] = {0, 1, 2};  // columns z r n in the weights
  static constexpr int kRecurrentFirst = 1;
};
template <>
struct Gates<kGruResetBefore> {
  static constexpr int kCount = 3, kRecurrentCount = 2;
  static constexpr int kInput[] = {2, 0, 1}, kRecurrent[] = {0, 1};
  static constexpr int kRecurrentFirst = 1;
};
constexpr int kCandidate = 2;  // column of n in the weights of a GRU
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

}  // namespace seqjax
