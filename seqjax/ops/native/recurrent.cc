// Custom calls of XLA for the LSTM and the GRU; `seqjax.ops.native` compiles, registers and calls them.
//
// SEQJAX_REAL is the type of all arrays but the flags: float or double.
#include "recurrent.h"

#include <cstdint>
#include <optional>

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

// Runs `Pass` for each of the mapped problems: the problems, or the work of each one, divided among threads.
template <template <typename, Cell> class Pass, typename R, typename F>
void run_all(ffi::ThreadPool& pool, int cores, int cell, long count, const Sizes& s, double weights, F problem) {
  const double multiplications = weights * s.T * s.B;
  const double patience = 2e-5 + 1e-12 * multiplications * count;  // a few percent of the time of the work
  auto run = [&](auto tag) {
    constexpr Cell C = decltype(tag)::value;
    if (count > 1) {
      const int wanted = static_cast<int>(std::min<double>(cores, std::max(1.0, count * multiplications / kWorkPerThread)));
      run_team(pool, wanted, patience, [&](int index, int size, Barrier&) {
        Barrier alone;
        for (long i = count * index / size; i < count * (index + 1) / size; ++i) {
          const auto p = problem(i);
          Pass<R, C>(p, {false, 1}, 1).run(0, 1, alone);
        }
      });
      return;
    }
    const auto p = problem(0);
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
  } else {
    run(std::integral_constant<Cell, kGru>{});
  }
}

template <typename R>
void forward(ffi::ThreadPool& pool, int cores, int cell, bool reverse, const ffi::AnyBuffer* in, ffi::Result<ffi::AnyBuffer>* out) {
  const Call call(*out[0], in[0].dimensions().back(), reverse);
  const Sizes& s = call.sizes;
  if (call.count == 0 || s.T == 0 || s.B == 0 || s.H == 0) return;
  auto x = call.bind<const R>(in[0]), h0 = call.bind<const R>(in[1]), c0 = call.bind<const R>(in[2]),
       kernel = call.bind<const R>(in[3]), recurrent = call.bind<const R>(in[4]), bias = call.bind<const R>(in[5]),
       recurrent_bias = call.bind<const R>(in[6]), reset_h = call.bind<const R>(in[7]), reset_c = call.bind<const R>(in[8]);
  auto valid = call.bind<const uint8_t>(in[9]), resets = call.bind<const uint8_t>(in[10]);
  auto y = call.bind<R>(*out[0]), last_h = call.bind<R>(*out[1]), last_c = call.bind<R>(*out[2]),
       cells = call.bind<R>(*out[3]), gates = call.bind<R>(*out[4]);
  const double weights = double(s.F + s.H) * s.H * (cell == kLstm ? 4 : 3);
  run_all<ForwardPass, R>(pool, cores, cell, call.count, s, weights, [&](long i) {
    return Forward<R>{{s},      x(i),       h0(i),    c0(i),    kernel(i), recurrent(i), bias(i), recurrent_bias(i),
                      reset_h(i), reset_c(i), valid(i), resets(i), y(i),     last_h(i),    last_c(i), cells(i), gates(i)};
  });
}

template <typename R>
void backward(ffi::ThreadPool& pool, int cores, int cell, bool reverse, const ffi::AnyBuffer* in, ffi::Result<ffi::AnyBuffer>* out) {
  const Call call(in[4], in[0].dimensions().back(), reverse);
  const Sizes& s = call.sizes;
  auto x = call.bind<const R>(in[0]), recurrent = call.bind<const R>(in[1]), h0 = call.bind<const R>(in[2]),
       c0 = call.bind<const R>(in[3]), y = call.bind<const R>(in[4]), cells = call.bind<const R>(in[5]),
       gates = call.bind<const R>(in[6]), reset_h = call.bind<const R>(in[7]), reset_c = call.bind<const R>(in[8]);
  auto valid = call.bind<const uint8_t>(in[9]), resets = call.bind<const uint8_t>(in[10]);
  auto dy = call.bind<const R>(in[11]), dcells = call.bind<const R>(in[12]), dlast_h = call.bind<const R>(in[13]),
       dlast_c = call.bind<const R>(in[14]);
  auto dz = call.bind<R>(*out[0]), dh0 = call.bind<R>(*out[1]), dc0 = call.bind<R>(*out[2]), dreset_h = call.bind<R>(*out[3]),
       dreset_c = call.bind<R>(*out[4]), dkernel = call.bind<R>(*out[5]), drecurrent = call.bind<R>(*out[6]),
       dbias = call.bind<R>(*out[7]), drecurrent_bias = call.bind<R>(*out[8]);
  if (s.T == 0 || s.B == 0 || s.H == 0) {  // the gradients of the weights are 0, and there are no others
    for (int i = 5; i < 9; ++i) std::memset(out[i]->untyped_data(), 0, out[i]->size_bytes());
    return;
  }
  const double weights = double(s.H) * s.H * (cell == kLstm ? 4 : 3);
  run_all<BackwardPass, R>(pool, cores, cell, call.count, s, weights, [&](long i) {
    const Backward<R> p{{s},      x(i),  recurrent(i), h0(i),      c0(i),      y(i),  cells(i), gates(i), reset_h(i),  reset_c(i),  valid(i),
                        resets(i), dy(i), dcells(i),    dlast_h(i), dlast_c(i), dz(i), dh0(i),   dc0(i),   dreset_h(i), dreset_c(i), dkernel(i),
                        drecurrent(i), dbias(i), drecurrent_bias(i)};
    if (p.dreset_h) std::memset(p.dreset_h, 0, s.B * s.H * sizeof(R));
    if (p.dreset_c) std::memset(p.dreset_c, 0, s.B * s.H * sizeof(R));
    return p;
  });
}

int team_limit(ffi::ThreadPool& pool, int32_t shards) {
  return std::max<int>(1, static_cast<int>(pool.num_threads()) / std::max(1, shards));
}

using Array = ffi::AnyBuffer;
using Out = ffi::Result<ffi::AnyBuffer>;

ffi::Error forward_call(ffi::ThreadPool pool, int32_t cell, bool reverse, int32_t shards, Array x, Array h0, Array c0,
                        Array kernel, Array recurrent, Array bias, Array recurrent_bias, Array reset_h, Array reset_c,
                        Array valid, Array resets, Out y, Out last_h, Out last_c, Out cells, Out gates) {
  const Array in[] = {x, h0, c0, kernel, recurrent, bias, recurrent_bias, reset_h, reset_c, valid, resets};
  Out out[] = {y, last_h, last_c, cells, gates};
  forward<SEQJAX_REAL>(pool, team_limit(pool, shards), cell, reverse, in, out);
  return ffi::Error::Success();
}

ffi::Error backward_call(ffi::ThreadPool pool, int32_t cell, bool reverse, int32_t shards, Array x, Array recurrent,
                         Array h0, Array c0, Array y, Array cells, Array gates, Array reset_h, Array reset_c, Array valid,
                         Array resets, Array dy, Array dcells, Array dlast_h, Array dlast_c, Out dz, Out dh0, Out dc0,
                         Out dreset_h, Out dreset_c, Out dkernel, Out drecurrent, Out dbias, Out drecurrent_bias) {
  const Array in[] = {x,     recurrent, h0,     c0, y,      cells,   gates,  reset_h,
                      reset_c, valid,     resets, dy, dcells, dlast_h, dlast_c};
  Out out[] = {dz, dh0, dc0, dreset_h, dreset_c, dkernel, drecurrent, dbias, drecurrent_bias};
  backward<SEQJAX_REAL>(pool, team_limit(pool, shards), cell, reverse, in, out);
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
