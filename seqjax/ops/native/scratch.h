// Scratch memory that is kept from call to call: the pages of fresh memory cost more than packing weights into it.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <mutex>
#include <vector>

namespace seqjax {

class ScratchPool {
 public:
  struct Block {
    void* data;
    size_t bytes;
  };

  static ScratchPool& get() {
    static ScratchPool* pool = new ScratchPool;  // never deleted: threads may outlive static objects
    return *pool;
  }

  Block take(size_t bytes) {
    bytes = (bytes + 127) / 64 * 64;
    // After a fork the lock may never be free, so nothing waits for it.
    if (const std::unique_lock<std::mutex> lock(mutex, std::try_to_lock); lock && bytes >= kMinBytes) {
      size_t best = blocks.size();
      for (size_t i = 0; i < blocks.size(); ++i) {
        const size_t size = blocks[i].bytes;
        if (size >= bytes && size <= 2 * bytes && (best == blocks.size() || size < blocks[best].bytes)) best = i;
      }
      if (best < blocks.size()) {
        const Block block = blocks[best];
        blocks.erase(blocks.begin() + best);
        kept -= block.bytes;
        return block;
      }
    }
    if (bytes < kHugePage) return {std::aligned_alloc(64, bytes), bytes};
    bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    void* data = std::aligned_alloc(kHugePage, bytes);
#if defined(MADV_HUGEPAGE)
    madvise(data, bytes, MADV_HUGEPAGE);
#endif
    return {data, bytes};
  }

  void give_back(Block block) {
    if (const std::unique_lock<std::mutex> lock(mutex, std::try_to_lock);
        lock && block.bytes >= kMinBytes && kept + block.bytes <= kMaxKept) {
      kept += block.bytes;
      blocks.push_back(block);
      return;
    }
    std::free(block.data);
  }

 private:
  static constexpr size_t kMinBytes = 32 << 10, kHugePage = 2 << 20, kMaxKept = 64 << 20;
  std::mutex mutex;
  std::vector<Block> blocks;
  size_t kept = 0;
};

// An array of scratch memory, which is not initialized.
template <typename R>
struct Buffer {
  explicit Buffer(long count)
      : block(count ? ScratchPool::get().take(count * sizeof(R)) : ScratchPool::Block{nullptr, 0}), data(static_cast<R*>(block.data)) {}
  ~Buffer() {
    if (data) ScratchPool::get().give_back(block);
  }
  Buffer(const Buffer&) = delete;
  const ScratchPool::Block block;
  R* const data;
};

}  // namespace seqjax
