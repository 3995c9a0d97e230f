// Threads that work on one call together, taken from XLA's thread pool.
#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>

namespace seqjax {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

template <typename F>
void spin_until(F done) {
  for (int i = 0; !done(); ++i) i < 2000 ? pause() : (void)sched_yield();
}

// A barrier of all threads of a team. Threads spin: a step takes microseconds.
class Barrier {
 public:
  void wait(int size) {
    if (size == 1) return;
    const unsigned phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
    } else {
      spin_until([&] { return phase_.load(std::memory_order_acquire) != phase; });
    }
  }

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> phase_{0};
};

// Threads of all teams of this process: together at most one per core, so that barriers do not wait for the scheduler.
inline std::atomic<int>& busy_threads() {
  static std::atomic<int> count{0};
  return count;
}

// Counts this thread and up to `wanted` - 1 helpers from the pool as busy, as long as it lives.
struct Helpers {
  template <typename Pool>
  Helpers(Pool& pool, long wanted) {
    const long free = static_cast<long>(pool.num_threads()) - busy_threads().fetch_add(1);
    count = static_cast<int>(std::max(0L, std::min(wanted, free) - 1));
    busy_threads().fetch_add(count);
  }
  ~Helpers() { busy_threads().fetch_sub(1 + count); }
  Helpers(const Helpers&) = delete;
  int count;
};

// Runs f(index, size, barrier) in up to `wanted` threads, this one included.
//
// Tasks of a pool may start late, for example if all its threads are busy: the team is closed after `patience` seconds, and
// tasks that start later return at once. So no thread ever waits for one that has not started.
template <typename Pool, typename F>
void run_team(Pool& pool, int wanted, double patience, F f) {
  const Helpers helpers(pool, wanted);
  struct Shared {
    std::atomic<int> members{1}, size{0}, finished{0};
    Barrier barrier;
  };
  auto shared = std::make_shared<Shared>();
  constexpr int kClosed = 1 << 20;
  for (int i = 0; i < helpers.count; ++i)
    pool.Schedule([shared, &f] {
      const int index = shared->members.fetch_add(1);
      if (index >= kClosed) return;
      spin_until([&] { return shared->size.load(std::memory_order_acquire) != 0; });
      f(index, shared->size.load(), shared->barrier);
      shared->finished.fetch_add(1, std::memory_order_release);
    });
  const auto start = std::chrono::steady_clock::now();
  while (shared->members.load() <= helpers.count &&
         std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < patience)
    pause();
  const int size = shared->members.fetch_add(kClosed);
  shared->size.store(size, std::memory_order_release);
  f(0, size, shared->barrier);
  spin_until([&] { return shared->finished.load(std::memory_order_acquire) == size - 1; });
}

// Calls f(i) for i of [0, count), in any order, in up to `wanted` threads, this one included, which waits for none to start.
template <typename Pool, typename F>
void run_chunks(Pool& pool, int wanted, long count, F f) {
  const Helpers helpers(pool, std::min<long>(wanted, count));
  struct Shared {
    std::atomic<long> next{0}, finished{0};
  };
  auto shared = std::make_shared<Shared>();
  const auto work = [&f, count](Shared& s) {  // f is there as long as a number is left
    for (long i; (i = s.next.fetch_add(1)) < count; s.finished.fetch_add(1, std::memory_order_release)) f(i);
  };
  for (int i = 0; i < helpers.count; ++i) pool.Schedule([shared, work] { work(*shared); });
  work(*shared);
  spin_until([&] { return shared->finished.load(std::memory_order_acquire) == count; });
}

}  // namespace seqjax
