// Custom calls of XLA for the LSTM and the GRU; `seqjax.ops.native` compiles, registers and calls them.
//
// SEQJAX_REAL is the type of all arrays but the flags: float or double.
#include "recurrent.h"

#include <cstdint>
#include <optional>

#include "backward.h"
#include "forward.h"

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace seqjax {
namespace {

// An array with leading axes of `jax.vmap`, each of the length of that axis, or 1 if it is not mapped.
template <typename R>
class Mapped {
 public:
  template <typename B>
  Mapped(const B& buffer, size_t axes, const std::vector<int64_t>& lengths) {
    const auto dims = buffer.dimensions();
    data_ = static_cast<R*>(buffer.untyped_data());
    long size = 1;
    for (size_t i = axes; i < dims.size(); ++i) size *= dims[i];
    empty_ = size == 0;
    strides_.resize(axes);
    for (size_t i = axes; i-- > 0; size *= dims[i]) strides_[i] = dims[i] == 1 && lengths[i] != 1 ? 0 : size;
  }

  // Element `index` of the mapped axes; nullptr if it has no numbers.
  R* at(long index, const std::vector<int64_t>& lengths) const {
    if (empty_) return nullptr;
    long offset = 0;
    for (size_t i = strides_.size(); i-- > 0; index /= lengths[i]) offset += index % lengths[i] * strides_[i];
    return data_ + offset;
  }

 private:
  R* data_;
  bool empty_;
  std::vector<long> strides_;
};

struct Call {
  std::vector<int64_t> lengths;  // of the mapped axes
  long count = 1;
  Sizes sizes;

  template <typename B>
  Call(const B& y, long features, bool reverse) {
    const auto dims = y.dimensions();
    lengths.assign(dims.begin(), dims.end() - 3);
    for (auto n : lengths) count *= n;
    const size_t axes = lengths.size();
    sizes = {dims[axes + 1], dims[axes], features, dims[axes + 2], reverse};
  }

  template <typename R, typename B>
  auto bind(const B& buffer) const {
    return [this, mapped = Mapped<R>(buffer, lengths.size(), lengths)](long i) { return mapped.at(i, lengths); };
  }
};

// Runs a forward pass by `SingleStep`, where that is faster, and returns whether it did.
template <Cell C, typename R>
bool run_single_step(ffi::ThreadPool& pool, int threads, const Forward<R>& p, double weights) {
  if (p.T != 1 || p.B > kMaxUnpackedRows) return false;
  SingleStep<R, C>(p, weights).run(pool, threads);
  return true;
}
template <Cell C, typename R>
bool run_single_step(ffi::ThreadPool&, int, const Backward<R>&, double) {
  return false;
}

// Runs `Pass` for each of the mapped problems: the problems, or the work of each one, divided among threads.
template <template <typename, Cell> class Pass, typename R, typename F>
void run_all(ffi::ThreadPool& pool, int cores, int cell, long count, const Sizes& s, double weights, F problem) {
  const double multiplications = weights * s.T * s.B;
  const double patience = 2e-5 + 1e-12 * multiplications;  // a few percent of the time of the work
  const auto run = [&](auto tag) {
    constexpr Cell C = decltype(tag)::value;
    const int wanted = static_cast<int>(std::min<double>(cores, std::max(1.0, count * multiplications / kWorkPerThread)));
    if (count > 1) {
      run_chunks(pool, wanted, count, [&](long i) {
        const auto p = problem(i);
        Barrier alone;
        if (!run_single_step<C>(pool, 1, p, weights)) Pass<R, C>(p, {false, 1}, 1).run(0, 1, alone);
      });
      return;
    }
    const auto p = problem(0);
    if (run_single_step<C>(pool, wanted, p, weights)) return;
    const long vectors = (s.H + Simd<R>::N - 1) / Simd<R>::N;
    const Division division = divide(s.T, s.B, vectors, weights * sizeof(R), multiplications, cores);
    std::optional<Pass<R, C>> pass;
    std::atomic<bool> ready{false};
    run_team(pool, division.threads, patience, [&](int index, int size, Barrier& barrier) {
      if (index == 0) {
        pass.emplace(p, division, size);
        ready.store(true, std::memory_order_release);
      } else {
        spin_until([&] { return ready.load(std::memory_order_acquire); });
      }
      pass->run(index, size, barrier);
    });
  };
  if (cell == kLstm) {
    run(std::integral_constant<Cell, kLstm>{});
  } else if (cell == kGru) {
    run(std::integral_constant<Cell, kGru>{});
  } else {
    run(std::integral_constant<Cell, kGruResetBefore>{});
  }
}

using R = SEQJAX_REAL;
using Array = ffi::AnyBuffer;
using Out = ffi::Result<ffi::AnyBuffer>;

int team_limit(ffi::ThreadPool& pool, int32_t shards) {
  return std::max<int>(1, static_cast<int>(pool.num_threads()) / std::max(1, shards));
}

ffi::Error forward_call(ffi::ThreadPool pool, int32_t cell, bool reverse, int32_t shards, Array x, Array h0, Array c0,
                        Array kernel, Array recurrent, Array bias, Array recurrent_bias, Array reset_h, Array reset_c,
                        Array valid, Array resets, Out y, Out last_h, Out last_c, Out cells, Out gates) {
  const Call call(*y, x.dimensions().back(), reverse);
  const Sizes& s = call.sizes;
  if (call.count == 0 || s.T == 0 || s.B == 0 || s.H == 0) return ffi::Error::Success();
  const auto in = [&](const Array& array) { return call.bind<const R>(array); };
  const auto flags = [&](const Array& array) { return call.bind<const uint8_t>(array); };
  const auto out = [&](Out& array) { return call.bind<R>(*array); };
  const double weights = double(s.F + s.H) * s.H * (cell == kLstm ? 4 : 3);
  run_all<ForwardPass, R>(
      pool, team_limit(pool, shards), cell, call.count, s, weights,
      [&s, x = in(x), h0 = in(h0), c0 = in(c0), kernel = in(kernel), recurrent = in(recurrent), bias = in(bias),
       recurrent_bias = in(recurrent_bias), reset_h = in(reset_h), reset_c = in(reset_c), valid = flags(valid),
       resets = flags(resets), y = out(y), last_h = out(last_h), last_c = out(last_c), cells = out(cells),
       gates = out(gates)](long i) {
        return Forward<R>{{s},        x(i),      h0(i),     c0(i),      kernel(i),      recurrent(i),
                          bias(i),    recurrent_bias(i),    reset_h(i), reset_c(i),     valid(i),
                          resets(i),  y(i),      last_h(i), last_c(i),  cells(i),       gates(i)};
      });
  return ffi::Error::Success();
}

ffi::Error backward_call(ffi::ThreadPool pool, int32_t cell, bool reverse, int32_t shards, Array x, Array recurrent,
                         Array h0, Array c0, Array y, Array cells, Array gates, Array reset_h, Array reset_c, Array valid,
                         Array resets, Array dy, Array dcells, Array dlast_h, Array dlast_c, Out dz, Out dh0, Out dc0,
                         Out dreset_h, Out dreset_c, Out dkernel, Out drecurrent, Out dbias, Out drecurrent_bias) {
  const Call call(y, x.dimensions().back(), reverse);
  const Sizes& s = call.sizes;
  if (s.T == 0 || s.B == 0 || s.H == 0) {  // the gradients of the weights are 0, and there are no others
    for (Out* array : {&dkernel, &drecurrent, &dbias, &drecurrent_bias})
      std::memset((*array)->untyped_data(), 0, (*array)->size_bytes());
    return ffi::Error::Success();
  }
  const auto in = [&](const Array& array) { return call.bind<const R>(array); };
  const auto flags = [&](const Array& array) { return call.bind<const uint8_t>(array); };
  const auto out = [&](Out& array) { return call.bind<R>(*array); };
  const double weights = double(s.H) * s.H * (cell == kLstm ? 4 : 3);
  run_all<BackwardPass, R>(
      pool, team_limit(pool, shards), cell, call.count, s, weights,
      [&s, x = in(x), recurrent = in(recurrent), h0 = in(h0), c0 = in(c0), y = in(y), cells = in(cells),
       gates = in(gates), reset_h = in(reset_h), reset_c = in(reset_c), valid = flags(valid), resets = flags(resets),
       dy = in(dy), dcells = in(dcells), dlast_h = in(dlast_h), dlast_c = in(dlast_c), dz = out(dz), dh0 = out(dh0),
       dc0 = out(dc0), dreset_h = out(dreset_h), dreset_c = out(dreset_c), dkernel = out(dkernel),
       drecurrent = out(drecurrent), dbias = out(dbias), drecurrent_bias = out(drecurrent_bias)](long i) {
        const Backward<R> p{{s},        x(i),        recurrent(i), h0(i),         c0(i),   y(i),
                            cells(i),   gates(i),    reset_h(i),   reset_c(i),    valid(i), resets(i),
                            dy(i),      dcells(i),   dlast_h(i),   dlast_c(i),    dz(i),   dh0(i),
                            dc0(i),     dreset_h(i), dreset_c(i),  dkernel(i),    drecurrent(i),
                            dbias(i),   drecurrent_bias(i)};
        if (p.dreset_h) std::memset(p.dreset_h, 0, s.B * s.H * sizeof(R));
        if (p.dreset_c) std::memset(p.dreset_c, 0, s.B * s.H * sizeof(R));
        return p;
      });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace seqjax

#define SEQJAX_ARG .Arg<ffi::AnyBuffer>()
#define SEQJAX_RET .Ret<ffi::AnyBuffer>()
#define SEQJAX_ARGS_5 SEQJAX_ARG SEQJAX_ARG SEQJAX_ARG SEQJAX_ARG SEQJAX_ARG
#define SEQJAX_RETS_4 SEQJAX_RET SEQJAX_RET SEQJAX_RET SEQJAX_RET
#define SEQJAX_BIND \
  ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<int32_t>("cell").Attr<bool>("reverse").Attr<int32_t>("shards")

XLA_FFI_DEFINE_HANDLER_SYMBOL(seqjax_forward, seqjax::forward_call,
                              SEQJAX_BIND SEQJAX_ARGS_5 SEQJAX_ARGS_5 SEQJAX_ARG SEQJAX_RETS_4 SEQJAX_RET);
XLA_FFI_DEFINE_HANDLER_SYMBOL(seqjax_backward, seqjax::backward_call,
                              SEQJAX_BIND SEQJAX_ARGS_5 SEQJAX_ARGS_5 SEQJAX_ARGS_5 SEQJAX_RETS_4 SEQJAX_RETS_4 SEQJAX_RET);
