// Products of a few rows with packed weights, whose sums stay in registers.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include "simd.h"

namespace seqjax {

constexpr int kMaxRows = 6;     // rows of a tile
constexpr int kMaxVectors = 8;  // vectors of a tile's row
constexpr int kMaxUnpackedRows = 2;  // with more rows, products of packed weights are faster
constexpr long kFirstCacheBytes = 24 << 10;

// Adds rows[m][0..K) times weights [K, G vectors] to z[m][0..G vectors), for M rows. `ahead` is weights that are needed
// soon: a cache line of it is fetched for each k.
template <typename R, int M, int G>
void accumulate(R* z, long z_stride, const R* const* rows, long K, const R* weights, const R* ahead) {
  using V = Vec<R>;
  constexpr int N = Simd<R>::N;
  V sums[M][G];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) sums[m][g] = load<R>(z + m * z_stride + g * N, N);
  const R* x[M];
  for (int m = 0; m < M; ++m) x[m] = rows[m];
  for (long k = 0; k < K; ++k, weights += G * N, ahead += 64 / sizeof(R)) {
    __builtin_prefetch(ahead, 0, 2);
    V w[G];
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) w[g] = load<R>(weights + g * N, N);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const V a = broadcast<R>(x[m][k]);
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) sums[m][g] += a * w[g];
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) store<R>(z + m * z_stride + g * N, sums[m][g], N);
}

template <typename R>
using Accumulate = void (*)(R*, long, const R* const*, long, const R*, const R*);

constexpr bool fits(int rows, int vectors) { return rows == 1 || rows * vectors <= kAccumulators; }

template <typename R, int M, int G>
constexpr Accumulate<R> tile() {
  if constexpr (fits(M, G)) return accumulate<R, M, G>;
  return nullptr;
}

// The instance for m rows and g vectors; nullptr if its sums do not fit the registers.
template <typename R>
Accumulate<R> select_tile(int m, int g) {
#define SEQJAX_ROW(G) {tile<R, 1, G>(), tile<R, 2, G>(), tile<R, 3, G>(), tile<R, 4, G>(), tile<R, 5, G>(), tile<R, 6, G>()}
  static constexpr Accumulate<R> kTiles[][kMaxRows] = {SEQJAX_ROW(1), SEQJAX_ROW(2), SEQJAX_ROW(3),
                                                       SEQJAX_ROW(4), SEQJAX_ROW(6), SEQJAX_ROW(8)};
#undef SEQJAX_ROW
  return kTiles[g <= 4 ? g - 1 : g / 2 + 1][m - 1];
}

inline int max_rows(int vectors) { return std::max(1, std::min(kMaxRows, kAccumulators / vectors)); }

// Calls f(first, count) for tiles of at most `most` rows, as equal as possible.
template <typename F>
void for_tiles(long begin, long end, int most, F f) {
  long tiles = (end - begin + most - 1) / most;
  for (long r = begin; r < end; --tiles) {
    const int m = static_cast<int>((end - r + tiles - 1) / tiles);
    f(r, m);
    r += m;
  }
}

// Adds rows times weights [K, width vectors] to z [rows, stride]: row(r) is a row, for r of [begin, end).
//
// A block of the weights stays in the first cache while it is multiplied with all rows. Tiles without a row in `valid`
// are left out; nullptr: all rows are valid.
template <typename R, typename F>
void multiply(long begin, long end, int width, long K, F row, const R* weights, R* z, long stride, const uint8_t* valid) {
  constexpr int N = Simd<R>::N;
  const int most = max_rows(width);
  const long fitting = std::max<long>(8, kFirstCacheBytes / (width * N * sizeof(R)));
  const long block = end - begin <= most || K <= fitting ? K : (K - 1) / ((K - 1) / fitting + 1) + 1;
  for (long k = 0; k < K; k += block) {
    const R* now = weights + k * width * N;
    const R *next = now + block * width * N, *next_end = next + block * width * N;  // each tile fetches a part of it
    for_tiles(begin, end, most, [&](long r, int m) {
      const R* rows[kMaxRows];
      bool any = !valid;
      for (int i = 0; i < m; ++i) {
        rows[i] = row(r + i) + k;
        any = any || valid[r + i];
      }
      R* sums = z + (r - begin) * stride;
      if (any) select_tile<R>(m, width)(sums, stride, rows, std::min(block, K - k), now, next < next_end ? next : now);
      next += block * (64 / sizeof(R));
    });
  }
}

// Adds rows[m][0..K) times weights [K, stride] to z[m][0..columns), for M rows; z has room for whole vectors. The weights
// are not packed: kRows rows of them are read together, so that z is read and written once for each.
template <typename R, int M>
void accumulate_unpacked(R* z, long z_stride, const R* const* rows, long K, const R* weights, long stride, long columns) {
  constexpr int N = Simd<R>::N, kRows = 8;
  const auto add = [&](auto count, long k) {
    constexpr int kCount = decltype(count)::value;
    const R* w = weights + k * stride;
    for (long c = 0; c < columns; c += N) {
      const int n = lanes<R>(columns, c);
      Vec<R> sums[M];
      for (int m = 0; m < M; ++m) sums[m] = load<R>(z + m * z_stride + c, N);
#pragma GCC unroll 8
      for (int i = 0; i < kCount; ++i) {
        const Vec<R> weight = load<R>(w + i * stride + c, n);
#pragma GCC unroll 2
        for (int m = 0; m < M; ++m) sums[m] += rows[m][k + i] * weight;
      }
      for (int m = 0; m < M; ++m) store<R>(z + m * z_stride + c, sums[m], N);
    }
  };
  long k = 0;
  for (; k + kRows <= K; k += kRows) add(std::integral_constant<int, kRows>{}, k);
  for (; k < K; ++k) add(std::integral_constant<int, 1>{}, k);
}

// Adds rows times columns of weights [K, stride] that are not packed to z [rows, z_stride].
template <typename R, typename F>
void multiply_unpacked(long begin, long end, long columns, long K, F row, const R* weights, long stride, R* z, long z_stride) {
  using Function = void (*)(R*, long, const R* const*, long, const R*, long, long);
  constexpr Function kFunctions[kMaxUnpackedRows] = {accumulate_unpacked<R, 1>, accumulate_unpacked<R, 2>};
  for_tiles(begin, end, kMaxUnpackedRows, [&](long r, int m) {
    const R* rows[kMaxUnpackedRows];
    for (int i = 0; i < m; ++i) rows[i] = row(r + i);
    kFunctions[m - 1](z + (r - begin) * z_stride, z_stride, rows, K, weights, stride, columns);
  });
}

// Consecutive vectors of units whose weights are packed side by side: [K, gates, count, N].
struct Panel {
  long first;  // index of the first vector
  int count;
};

// Splits `vectors` into `parts` ranges, and each range into panels of the sizes that a row may have.
struct Panels {
  std::vector<Panel> panels;
  std::vector<long> begin;  // [parts + 1]: the panels of each range

  Panels(long vectors, int parts, int most) {
    for (int part = 0; part < parts; ++part) {
      begin.push_back(panels.size());
      long v = vectors * part / parts;
      const long end = vectors * (part + 1) / parts;
      while (v < end) {
        const int rest = static_cast<int>(std::min<long>(end - v, most));
        const int count = rest >= 8 ? 8 : rest >= 6 ? 6 : std::min(rest, 4);
        panels.push_back({v, count});
        v += count;
      }
    }
    begin.push_back(panels.size());
  }

  // The panels [first, last) of one of `size` threads: of its range, or an equal share if there is one range for all.
  std::pair<size_t, size_t> share(size_t index, size_t size) const {
    if (begin.size() == size + 1) return {begin[index], begin[index + 1]};
    return {panels.size() * index / size, panels.size() * (index + 1) / size};
  }
};

// Packs columns of weights [K, stride] for a panel: [K, gates, count, N], gate j starting at column offsets[j].
template <typename R>
void pack(const R* weights, long K, long stride, long units, const long* offsets, int gates, Panel panel, R* out) {
  constexpr int N = Simd<R>::N;
  for (long k = 0; k < K; ++k, weights += stride)
    for (int j = 0; j < gates; ++j)
      for (int p = 0; p < panel.count; ++p, out += N) {
        const long unit = (panel.first + p) * N;
        store<R>(out, load<R>(weights + offsets[j] + unit, lanes<R>(units, unit)), N);
      }
}

// Packs K columns of rows of weights [units, stride] for a panel, transposed: [K, count, N].
template <typename R>
void pack_transposed(const R* weights, long K, long stride, long units, Panel panel, R* out) {
  constexpr int N = Simd<R>::N;
  constexpr long kBlock = 16;
  const long width = panel.count * N;
  for (long begin = 0; begin < K; begin += kBlock)
    for (long n = 0; n < width; ++n) {
      const long unit = panel.first * N + n, end = std::min(K, begin + kBlock);
      for (long k = begin; k < end; ++k) out[k * width + n] = unit < units ? weights[unit * stride + k] : R(0);
    }
}

}  // namespace seqjax
