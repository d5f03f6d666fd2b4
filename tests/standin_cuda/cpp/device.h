// What a stand-in for a GPU is made of: memory that says it lies on cuda:0, its generators, its guard, its hooks.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/transformers/attention.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <atomic>
#include <map>
#include <mutex>
#include <unordered_set>

namespace standin {

using at::Tensor;
const c10::Device GPU(c10::DeviceType::CUDA, 0);

inline std::atomic<bool> watched{false};  // inside a rollout or an update: nothing may make the host wait
inline std::atomic<int64_t> allocated{0}, peak{0}, allocations{0};
inline std::unordered_set<c10::StorageImpl*> pool;  // memory that the graph now being captured has made
inline bool capturing = false;

// ---- memory ---------------------------------------------------------------------------------------------------------

struct Block {
  c10::DataPtr memory;
  int64_t bytes;
};

inline void release(void* context) {
  auto* block = static_cast<Block*>(context);
  allocated -= block->bytes;
  delete block;
}

/// The same memory under the GPU's name.
inline c10::DataPtr disguised(c10::DataPtr memory, int64_t bytes) {
  void* data = memory.get();
  allocated += bytes;
  allocations += 1;
  if (allocated > peak) peak = allocated.load();
  return {data, new Block{std::move(memory), bytes}, release, GPU};
}

struct DeviceMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto memory = c10::GetCPUAllocator()->allocate(bytes);
    if (memory.get()) memset(memory.get(), 0xff, bytes);  // NaN: what nothing was written to is seen
    return disguised(std::move(memory), bytes);
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t count) const override { memcpy(to, from, count); }
};
inline DeviceMemory device_memory;

struct PinnedMemory final : c10::Allocator {
  static inline std::map<const char*, size_t> blocks;
  static inline std::mutex lock;
  struct Context { c10::DataPtr memory; };
  static void free(void* context) {
    auto* pinned = static_cast<Context*>(context);
    std::lock_guard<std::mutex> guard(lock);
    blocks.erase(static_cast<const char*>(pinned->memory.get()));
    delete pinned;
  }
  c10::DataPtr allocate(size_t bytes) override {
    auto memory = c10::GetCPUAllocator()->allocate(bytes);
    void* data = memory.get();
    std::lock_guard<std::mutex> guard(lock);
    blocks[static_cast<const char*>(data)] = bytes;
    return {data, new Context{std::move(memory)}, free, c10::Device(c10::kCPU)};
  }
  static bool holds(const void* pointer) {
    std::lock_guard<std::mutex> guard(lock);
    auto after = blocks.upper_bound(static_cast<const char*>(pointer));
    if (after == blocks.begin()) return false;
    auto block = std::prev(after);
    return static_cast<const char*>(pointer) < block->first + std::max<size_t>(block->second, 1);
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t count) const override { memcpy(to, from, count); }
};
inline PinnedMemory pinned_memory;

inline std::vector<c10::intrusive_ptr<c10::StorageImpl>> pool_memory;  // the same, alive as long as the capture

inline void note_storage(const Tensor& tensor) {
  if (!capturing) return;
  pool.insert(tensor.storage().unsafeGetStorageImpl());
  pool_memory.push_back(tensor.storage().getWeakStorageImpl().lock());
}

// ---- random numbers -------------------------------------------------------------------------------------------------

/// A generator that says it is the GPU's and draws as the CPU's does.
struct DeviceGenerator final : c10::GeneratorImpl {
  at::Generator cpu;
  explicit DeviceGenerator(at::Generator inner)
      : c10::GeneratorImpl(GPU, c10::DispatchKeySet(c10::DispatchKey::CUDA)), cpu(std::move(inner)) {}
  void set_current_seed(uint64_t seed) override { cpu.set_current_seed(seed); }
  void set_offset(uint64_t) override { TORCH_CHECK(false, "the stand-in's generators have no offset"); }
  uint64_t get_offset() const override { TORCH_CHECK(false, "the stand-in's generators have no offset"); }
  uint64_t current_seed() const override { return cpu.current_seed(); }
  uint64_t seed() override { return cpu.seed(); }
  // A GPU's state has another size than a CPU's: here one byte more.
  void set_state(const c10::TensorImpl& state) override {
    Tensor whole(c10::intrusive_ptr<c10::TensorImpl>::unsafe_reclaim_from_nonowning(const_cast<c10::TensorImpl*>(&state)));
    TORCH_CHECK(whole.numel() == cpu.get_state().numel() + 1, "RNG state is wrong size");
    cpu.set_state(whole.slice(0, 0, whole.numel() - 1).clone());
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    Tensor inner = cpu.get_state(), whole = at::detail::empty_cpu({inner.numel() + 1}, at::kByte);
    whole.zero_().slice(0, 0, inner.numel()).copy_(inner);
    return whole.getIntrusivePtr();
  }
  DeviceGenerator* clone_impl() const override { return new DeviceGenerator(cpu.clone()); }
};

inline bool hand_out_default = false;

inline at::Generator& default_generator() {
  static at::Generator generator = at::make_generator<DeviceGenerator>(at::detail::createCPUGenerator());
  return generator;
}

inline at::Generator new_generator() {
  if (hand_out_default) return hand_out_default = false, default_generator();
  return at::make_generator<DeviceGenerator>(at::detail::createCPUGenerator());
}

// ---- what torch asks of a device ------------------------------------------------------------------------------------

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return GPU.type(); }
  c10::Device exchangeDevice(c10::Device) const override { return GPU; }
  c10::Device getDevice() const override { return GPU; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, GPU); }
  c10::Stream getDefaultStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, GPU); }
  c10::Stream getNewStream(c10::Device, int) const override { return c10::Stream(c10::Stream::DEFAULT, GPU); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  int getNumGPUs() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  void deviceSynchronize(c10::DeviceIndex) const override {}
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return default_generator(); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return new_generator(); }
  c10::Allocator* getCUDADeviceAllocator() const override { return &device_memory; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  bool isPinnedPtr(const void* data) const override { return PinnedMemory::holds(data); }
  c10::Device getDeviceFromPtr(void*) const override { return GPU; }
};

}  // namespace standin
