// Compares the native kernels with loops over single numbers, for random sizes, masks, resets and divisions among
// threads. tests/ops/test_native.py compiles it with sanitizers and for several instruction sets.
#include <cmath>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "backward.h"
#include "forward.h"

using namespace seqjax;

std::mt19937 generator(0);

long below(long n) { return generator() % n; }

template <typename R>
std::vector<R> numbers(long n) {
  std::uniform_real_distribution<double> uniform(-1, 1);
  std::vector<R> out(n);  // exactly as large as needed, so that the address sanitizer sees every access beyond
  for (R& x : out) x = static_cast<R>(uniform(generator));
  return out;
}

double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }

// h after each step.
template <typename R, Cell C>
std::vector<double> reference(const Forward<R>& p) {
  const long T = p.T, B = p.B, F = p.F, H = p.H, G = C == kLstm ? 4 : 3;
  std::vector<double> y(T * B * H);
  for (long b = 0; b < B; ++b) {
    std::vector<double> h(p.h0 + b * H, p.h0 + (b + 1) * H), c(H);
    if (C == kLstm) c.assign(p.c0 + b * H, p.c0 + (b + 1) * H);
    for (long step = 0; step < T; ++step) {
      const long t = p.place(step);
      if (p.resets && p.resets[t * B + b]) {
        h.assign(p.reset_h + b * H, p.reset_h + (b + 1) * H);
        if (C == kLstm) c.assign(p.reset_c + b * H, p.reset_c + (b + 1) * H);
      }
      std::vector<double> of_x(G * H), of_h(G * H), next(H);
      for (long j = 0; j < G * H; ++j) {
        of_x[j] = p.bias[j];
        of_h[j] = C == kGru ? p.recurrent_bias[j] : 0;
        for (long k = 0; k < F; ++k) of_x[j] += double(p.x[p.at(t, b) * F + k]) * p.kernel[k * G * H + j];
        for (long k = 0; k < H; ++k) of_h[j] += h[k] * p.recurrent[k * G * H + j];
      }
      for (long u = 0; u < (C == kGruResetBefore ? H : 0); ++u) {
        of_h[2 * H + u] = 0;
        for (long k = 0; k < H; ++k)
          of_h[2 * H + u] += sigmoid_of(of_x[H + k] + of_h[H + k]) * h[k] * p.recurrent[k * G * H + 2 * H + u];
      }
      if (!p.valid || p.valid[t * B + b]) {
        for (long u = 0; u < H; ++u) {
          const auto z = [&](long gate) { return of_x[gate * H + u] + of_h[gate * H + u]; };
          if (C == kLstm) {
            c[u] = sigmoid_of(z(1)) * c[u] + sigmoid_of(z(0)) * std::tanh(z(2));
            next[u] = sigmoid_of(z(3)) * std::tanh(c[u]);
          } else {
            const double update = sigmoid_of(z(0));
            const double reset = C == kGru ? sigmoid_of(z(1)) : 1;
            next[u] = update * h[u] + (1 - update) * std::tanh(of_x[2 * H + u] + reset * of_h[2 * H + u]);
          }
        }
        h = next;
      }
      for (long u = 0; u < H; ++u) y[p.at(t, b) * H + u] = h[u];
    }
  }
  return y;
}

template <typename Pass, typename Problem>
void run(const Problem& p, Division division, int size) {
  Pass pass(p, division, size);
  Barrier barrier;
  std::vector<std::thread> threads;
  for (int i = 1; i < size; ++i) threads.emplace_back([&, i] { pass.run(i, size, barrier); });
  pass.run(0, size, barrier);
  for (auto& thread : threads) thread.join();
}

struct TwoThreads {  // a pool
  int num_threads() const { return 2; }
  template <typename F>
  void Schedule(F f) { threads.emplace_back(f); }
  ~TwoThreads() {
    for (auto& thread : threads) thread.join();
  }
  std::vector<std::thread> threads;
};

// h after one step with weights that are not packed, by two threads.
template <typename R, Cell C>
std::vector<R> single_step(Forward<R> p) {
  std::vector<R> y(p.B * p.H), last_h(p.B * p.H), last_c(p.B * p.H), gates(p.B * 4 * p.H);
  p.T = 1, p.y = y.data(), p.last_h = last_h.data(), p.last_c = last_c.data(), p.cells = nullptr, p.gates = gates.data();
  TwoThreads pool;
  SingleStep<R, C>(p, 500'000).run(pool, 2);
  if (last_h != y) y.clear();
  return y;
}

template <typename R, Cell C>
bool check(double tolerance) {
  const long T = 1 + below(9), B = 1 + below(20), F = below(20), H = 1 + below(70), G = C == kLstm ? 4 : 3;
  const bool masked = below(2), reset = below(2), reverse = below(2);
  auto x = numbers<R>(T * B * F), h0 = numbers<R>(B * H), c0 = numbers<R>(B * H), kernel = numbers<R>(F * G * H),
       recurrent = numbers<R>(H * G * H), bias = numbers<R>(G * H), recurrent_bias = numbers<R>(G * H),
       reset_h = numbers<R>(B * H), reset_c = numbers<R>(B * H), dy = numbers<R>(T * B * H), dh = numbers<R>(B * H),
       dc = numbers<R>(B * H);
  for (R& w : recurrent) w /= std::sqrt(double(H));
  std::vector<uint8_t> valid(T * B), resets(T * B);
  for (auto& flag : valid) flag = below(4) > 0;
  for (auto& flag : resets) flag = below(4) == 0;
  std::vector<R> results[4];
  bool good = true;
  for (int way = 0; way < 4; ++way) {  // one thread, units divided, rows divided, rows divided and one thread missing
    std::vector<R> y(T * B * H), last_h(B * H), last_c(B * H), cells(T * B * H), gates(T * B * 4 * H);
    const Sizes sizes{T, B, F, H, reverse};
    const bool lstm = C == kLstm;
    const Forward<R> p{sizes, x.data(), h0.data(), lstm ? c0.data() : nullptr, kernel.data(), recurrent.data(), bias.data(),
                       C == kGru ? recurrent_bias.data() : nullptr, reset_h.data(), reset_c.data(), masked ? valid.data() : nullptr,
                       reset ? resets.data() : nullptr, y.data(), last_h.data(), last_c.data(), lstm ? cells.data() : nullptr, gates.data()};
    const int threads = way ? 2 : 1, size = way == 3 ? 1 : threads;
    const Division division{way >= 2 && B >= 2, threads};
    run<ForwardPass<R, C>>(p, division, size);
    const auto want = reference<R, C>(p);
    for (size_t i = 0; i < y.size(); ++i) good = good && std::abs(y[i] - want[i]) <= tolerance;
    Forward<R> first = p;
    first.T = 1;
    const auto single = single_step<R, C>(p), same = single_step<R, C>(p);
    const auto one = reference<R, C>(first);
    good = good && single == same && single.size() == one.size();
    for (size_t i = 0; good && i < one.size(); ++i) good = std::abs(single[i] - one[i]) <= tolerance;
    std::vector<R> dh0(B * H), dc0(B * H), dreset_h(B * H), dreset_c(B * H), dkernel(F * G * H), drecurrent(H * G * H),
        dbias(G * H), drecurrent_bias(G * H);
    const Backward<R> q{sizes, x.data(), recurrent.data(), h0.data(), c0.data(), y.data(), cells.data(), gates.data(), reset_h.data(),
                        reset_c.data(), p.valid, p.resets, dy.data(), nullptr, dh.data(), dc.data(), gates.data(), dh0.data(),
                        dc0.data(), dreset_h.data(), dreset_c.data(), dkernel.data(), drecurrent.data(), dbias.data(), drecurrent_bias.data()};
    run<BackwardPass<R, C>>(q, division, size);
    for (auto* part : {&gates, &dh0, &dc0, &dreset_h, &dreset_c, &dkernel, &drecurrent, &dbias, &drecurrent_bias})
      results[way].insert(results[way].end(), part->begin(), part->end());
  }
  for (size_t i = 0; i < results[0].size(); ++i)
    for (int way = 1; way < 4; ++way) good = good && std::abs(results[way][i] - results[0][i]) <= 10 * tolerance * std::sqrt(double(T * B));
  good = good && results[2] == results[3];  // the number of threads that come does not change a bit
  if (!good) std::printf("cell %d: T %ld B %ld F %ld H %ld masked %d reset %d\n", C, T, B, F, H, masked, reset);
  return good;
}

int main(int count, char** arguments) {
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 20;
  bool good = true;
  for (int i = 0; i < rounds; ++i) {
    good = check<float, kLstm>(1e-5) && check<double, kLstm>(1e-13) && good;
    good = check<float, kGru>(1e-5) && check<double, kGru>(1e-13) && good;
    good = check<float, kGruResetBefore>(1e-5) && check<double, kGruResetBefore>(1e-13) && good;
  }
  std::printf("%s with vectors of %d bytes\n", good ? "equal" : "different", SEQJAX_VECTOR_BYTES);
  return good ? 0 : 1;
}
