// Vectors of the machine's width in the vector extensions of GCC and Clang, and the functions of the gates.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define SEQJAX_VECTOR_BYTES 64
#elif defined(__AVX2__) && defined(__FMA__)
#define SEQJAX_VECTOR_BYTES 32
#else
#define SEQJAX_VECTOR_BYTES 16
#endif

namespace seqjax {

// Accumulators of a tile that fit the registers, beside one row of weights and one input.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kAccumulators = 24;
#else
constexpr int kAccumulators = 12;
#endif

// A vector of N numbers of type R; `Loose` is the same without alignment, for loads and stores.
template <typename R>
struct Simd;

template <>
struct Simd<float> {
  typedef float V __attribute__((vector_size(SEQJAX_VECTOR_BYTES)));
  typedef float Loose __attribute__((vector_size(SEQJAX_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t I __attribute__((vector_size(SEQJAX_VECTOR_BYTES)));
  static constexpr int N = SEQJAX_VECTOR_BYTES / 4;
  static constexpr int kMantissa = 23, kDegree = 7;
  static constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kMaxExponent = 87.0f;
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440054690583e-4f;
};

template <>
struct Simd<double> {
  typedef double V __attribute__((vector_size(SEQJAX_VECTOR_BYTES)));
  typedef double Loose __attribute__((vector_size(SEQJAX_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t I __attribute__((vector_size(SEQJAX_VECTOR_BYTES)));
  static constexpr int N = SEQJAX_VECTOR_BYTES / 8;
  static constexpr int kMantissa = 52, kDegree = 13;
  static constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kMaxExponent = 708.0;
  static constexpr double kLn2High = 0.693147180369123816490, kLn2Low = 1.90821492927058770002e-10;
};

template <typename R>
using Vec = typename Simd<R>::V;

template <typename R>
inline Vec<R> broadcast(R x) {
  return x - Vec<R>{};  // x + 0 would not be x for -0, and would be computed
}

// Number of units in the vector that starts at `unit`.
template <typename R>
inline int lanes(long units, long unit) {
  return static_cast<int>(units - unit < Simd<R>::N ? units - unit : Simd<R>::N);
}

// Loads the first n numbers at p; the others are 0.
template <typename R>
inline Vec<R> load(const R* p, int n) {
  if (n >= Simd<R>::N) return *reinterpret_cast<const typename Simd<R>::Loose*>(p);
  Vec<R> v{};
  std::memcpy(&v, p, n * sizeof(R));
  return v;
}

template <typename R>
inline void store(R* p, Vec<R> v, int n) {
  if (n >= Simd<R>::N) {
    *reinterpret_cast<typename Simd<R>::Loose*>(p) = v;
  } else {
    std::memcpy(p, &v, n * sizeof(R));
  }
}

#if defined(__AVX512F__)
template <>
inline Vec<float> load<float>(const float* p, int n) {
  if (n >= 16) return (Vec<float>)_mm512_loadu_ps(p);
  return (Vec<float>)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
template <>
inline void store<float>(float* p, Vec<float> v, int n) {
  if (n >= 16) return _mm512_storeu_ps(p, (__m512)v);
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
}
template <>
inline Vec<double> load<double>(const double* p, int n) {
  if (n >= 8) return (Vec<double>)_mm512_loadu_pd(p);
  return (Vec<double>)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
}
template <>
inline void store<double>(double* p, Vec<double> v, int n) {
  if (n >= 8) return _mm512_storeu_pd(p, (__m512d)v);
  _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v);
}
#endif

template <typename R>
inline Vec<R> reciprocal(Vec<R> x) {
  return R(1) / x;
}
#if defined(__AVX512F__)
// An approximation of 14 bits and a step of Newton's method, which is faster than a division.
template <>
inline Vec<float> reciprocal<float>(Vec<float> x) {
  Vec<float> y = (Vec<float>)_mm512_rcp14_ps((__m512)x);
  return y + y * (1.0f - x * y);
}
#endif

// Limits x to [-limit, limit]; NaN stays NaN.
template <typename R>
inline Vec<R> clamp(Vec<R> x, R limit) {
  const Vec<R> high = broadcast<R>(limit);
  x = x > high ? high : x;
  return x < -high ? -high : x;
}
#if defined(__AVX512F__)
template <>
inline Vec<float> clamp<float>(Vec<float> x, float limit) {  // of a NaN and a number, these return the second operand
  return (Vec<float>)_mm512_max_ps(_mm512_set1_ps(-limit), _mm512_min_ps(_mm512_set1_ps(limit), (__m512)x));
}
#endif

template <typename R>
struct Factorials {
  R inverse[Simd<R>::kDegree + 1]{};
  constexpr Factorials() {
    R factorial = 1;
    for (int i = 1; i <= Simd<R>::kDegree; ++i) inverse[i] = R(1) / (factorial *= R(i));
  }
};

// Computes e^x = scale (1 + minus_one) with |log(1 + minus_one)| <= log(2) / 2, accurately for small x. x is clamped.
template <typename R>
inline void exponential(Vec<R> x, Vec<R>& scale, Vec<R>& minus_one) {
  using S = Simd<R>;
  x = clamp<R>(x, S::kMaxExponent);
  const Vec<R> shifted = x * R(1.44269504088896340736) + S::kMagic;
  const Vec<R> n = shifted - S::kMagic;
  const Vec<R> r = x - n * S::kLn2High - n * S::kLn2Low;
  constexpr Factorials<R> factorials;
  Vec<R> p = broadcast<R>(factorials.inverse[S::kDegree]);
#pragma GCC unroll 16
  for (int i = S::kDegree - 1; i >= 2; --i) p = p * r + factorials.inverse[i];
  minus_one = r + r * r * p;
  typename S::I bits, one;
  const Vec<R> unit = broadcast<R>(1);
  std::memcpy(&bits, &shifted, sizeof bits);
  std::memcpy(&one, &unit, sizeof one);
  bits = (bits << S::kMantissa) + one;  // the low bits of `shifted` are n
  std::memcpy(&scale, &bits, sizeof bits);
}

template <typename R>
inline Vec<R> sigmoid(Vec<R> x) {
  Vec<R> scale, minus_one;
  exponential<R>(-x, scale, minus_one);
  return reciprocal<R>(R(1) + scale + scale * minus_one);
}

// tanh(x) = (e^2x - 1) / (e^2x - 1 + 2); e^2x - 1 has no cancellation near 0.
template <typename R>
inline Vec<R> tanh(Vec<R> x) {
  Vec<R> scale, minus_one;
  exponential<R>(x + x, scale, minus_one);
  const Vec<R> e = scale * minus_one + (scale - R(1));
  return e * reciprocal<R>(e + R(2));
}

}  // namespace seqjax
