// Every operator on the stand-in's tensors: checked as a GPU would need it, then computed by the CPU's kernel.
#include <ATen/TensorUtils.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

#include "cells.h"
#include "graph.h"
#include "tensors.h"

namespace standin {

// Operators whose result, or its size, the host must wait for.
const std::unordered_set<std::string> READS = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::_unique",
    "aten::unique_dim", "aten::unique_consecutive", "aten::equal", "aten::bincount", "aten::is_nonzero",
    "aten::nonzero_static", "aten::unique_dim_consecutive"};
const std::unordered_set<std::string> COPIES = {"aten::copy_", "aten::_copy_from", "aten::_copy_from_and_resize"};

void check_copy(const std::string& name, const c10::Stack& stack, size_t first) {
  const auto &to = stack[first].toTensor(), &from = stack[first + 1].toTensor();
  if (on_gpu(to) && on_gpu(from)) return;
  bool free = stack.size() > first + 2 && stack[first + 2].isBool() && stack[first + 2].toBool();
  const Tensor& host = on_gpu(to) ? from : to;
  bool waits = !free || (!on_gpu(to) && !PinnedMemory::holds(host.const_data_ptr()));
  if (!waits && capturing) waits = !PinnedMemory::holds(host.const_data_ptr());
  TORCH_CHECK(!(waits && (watched || capturing)), name, on_gpu(to) ? " to" : " from", " the GPU waits for the device");
}

void check(const c10::OperatorHandle& op, const c10::Stack& stack, size_t first) {
  const auto& name = op.operator_name().name;
  if (COPIES.count(name)) return check_copy(name, stack, first);
  bool reads = READS.count(name);
  if (name == "aten::repeat_interleave") reads = stack.size() <= first + 1 || stack.back().isNone();
  if (name == "aten::_index_put_impl_" || name == "aten::index" || name == "aten::index_put_") {
    const Tensor& value = name == "aten::index" ? stack[first].toTensor() : stack[first + 2].toTensor();
    bool filled = name != "aten::index" && value.numel() == 1 && !on_gpu(value);
    each_tensor(stack[first + 1], [&](const Tensor& at) {
      reads |= !filled && (at.scalar_type() == at::kBool || at.scalar_type() == at::kByte);
      reads |= !on_gpu(at);  // is brought there first
    });
  }
  TORCH_CHECK(!(reads && (watched || capturing)), name, " waits for the device");
  for (size_t at = first; at < stack.size(); ++at)
    each_tensor(stack[at], [&](const Tensor& tensor) {
      bool index = name.find("index") != std::string::npos && at == first + 1;
      TORCH_CHECK(on_gpu(tensor) || tensor.dim() == 0 || index, name,
                  ": Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!");
    });
}

at::Generator inner(const at::Generator& generator) {
  TORCH_CHECK(generator.device().is_cuda(), "Expected a 'cuda' device type for generator but found 'cpu'");
  return static_cast<DeviceGenerator*>(generator.unsafeGetGeneratorImpl())->cpu;
}

/// Draws of operators that name no generator are the GPU's while this lives.
struct Draws {
  at::Generator host = at::detail::getDefaultCPUGenerator(), device = inner(default_generator());
  bool swapped;
  explicit Draws(const c10::OperatorHandle& op) : swapped(op.hasTag(at::Tag::nondeterministic_seeded)) { swap(); }
  ~Draws() { swap(); }
  void swap() {
    if (!swapped) return;
    auto ours = device.get_state(), theirs = host.get_state();
    host.set_state(ours), device.set_state(theirs);
  }
};

/// Runs an operator of which no argument is on the GPU any more.
void run_on_cpu(const c10::OperatorHandle& op, c10::Stack* stack) {
  Draws draws(op);
  at::AutoDispatchBelowADInplaceOrView below;
  c10::impl::ExcludeDispatchKeyGuard no_modes(
      c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot}));
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
}

struct Call {
  std::vector<std::pair<Tensor, Tensor>> pairs;  // (the GPU's, the CPU's over the same memory)

  Tensor operand(const Tensor& tensor) {
    if (!on_gpu(tensor)) return tensor;
    for (const auto& [device, cpu] : pairs)
      if (device.is_same(tensor)) return cpu;
    pairs.emplace_back(tensor, to_cpu(tensor));
    return pairs.back().second;
  }

  c10::IValue argument(const c10::IValue& value) {
    if (value.isTensor()) return operand(value.toTensor());
    if (value.isDevice()) return value.toDevice().is_cuda() ? c10::IValue(c10::Device(c10::kCPU)) : value;
    if (value.isGenerator()) return inner(value.toGenerator());
    if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& tensor : value.toTensorVector()) list.push_back(operand(tensor));
      return list;
    }
    if (value.isList() && value.toList().elementType()->kind() == c10::TypeKind::OptionalType) {
      c10::List<std::optional<Tensor>> list;
      for (const c10::IValue& item : value.toListRef())
        list.push_back(item.isNone() ? std::optional<Tensor>() : operand(item.toTensor()));
      return list;
    }
    return value;
  }

  /// What an operator resized or moved, it resized and moved on the GPU.
  void take_over_shapes() {
    for (auto& [device, cpu] : pairs) {
      auto* target = device.unsafeGetTensorImpl();
      if (cpu.storage().data() != device.storage().data()) {
        target->set_storage_keep_dtype(disguised(cpu));
        note_storage(device);
      }
      if (cpu.sizes() != device.sizes() || cpu.strides() != device.strides())
        target->set_sizes_and_strides(cpu.sizes(), cpu.strides(), cpu.storage_offset());
    }
  }

  Tensor result(const Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    for (const auto& [device, cpu] : pairs)
      if (cpu.is_same(tensor)) return device;
    for (const auto& [device, cpu] : pairs)
      if (cpu.storage().is_alias_of(tensor.storage())) return shaped(device.storage(), tensor);
    auto made = shaped(disguised(tensor), tensor);
    note_storage(made);
    return made;
  }

  c10::IValue returned(const c10::IValue& value) {
    if (value.isTensor()) return result(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<Tensor> list;
    for (const Tensor& tensor : value.toTensorVector()) list.push_back(result(tensor));
    return list;
  }
};

void compute(const c10::OperatorHandle& op, c10::Stack* stack) {
  size_t count = op.schema().arguments().size(), first = stack->size() - count;
  try {
    check(op, *stack, first);
  } catch (...) {
    if (capturing) current->spoilt = true;
    throw;
  }
  Call call;
  c10::Stack arguments;
  for (size_t at = 0; at < count; ++at) arguments.push_back(call.argument((*stack)[first + at]));
  Step step(op, *stack, first, arguments);
  stack->resize(first);
  run_on_cpu(op, &arguments);
  call.take_over_shapes();
  for (const c10::IValue& value : arguments) stack->push_back(call.returned(value));
  step.finish(*stack, first);
}

// ---- what torch registers for a device of its own ---------------------------------------------------------------

Tensor empty(c10::SymIntArrayRef sizes, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool> pinned, std::optional<at::MemoryFormat> format) {
  TORCH_CHECK(!pinned.value_or(false), "only CPU tensors can be pinned");
  Tensor tensor = at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(sizes), &device_memory,
                                          c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(dtype), format);
  note_storage(tensor);
  return tensor;
}

Tensor empty_strided(c10::SymIntArrayRef sizes, c10::SymIntArrayRef strides, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  Tensor tensor = at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(sizes), C10_AS_INTARRAYREF_SLOW(strides),
                                                  &device_memory, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                                  c10::dtype_or_default(dtype));
  note_storage(tensor);
  return tensor;
}

Tensor as_strided(const Tensor& self, c10::SymIntArrayRef sizes, c10::SymIntArrayRef strides, std::optional<c10::SymInt> offset) {
  std::optional<int64_t> start;
  if (offset) start = offset->expect_int();
  return at::native::as_strided_tensorimpl(self, C10_AS_INTARRAYREF_SLOW(sizes), C10_AS_INTARRAYREF_SLOW(strides), start);
}

Tensor view(const Tensor& self, c10::SymIntArrayRef sizes) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(sizes));
}

Tensor reshape_alias(const Tensor& self, c10::SymIntArrayRef sizes, c10::SymIntArrayRef strides) {
  return as_strided(self, sizes, strides, c10::SymInt(self.storage_offset()));
}

Tensor& set_source(Tensor& self, at::Storage source, c10::SymInt offset, c10::SymIntArrayRef sizes, c10::SymIntArrayRef strides) {
  auto* target = self.unsafeGetTensorImpl();
  target->set_storage_keep_dtype(std::move(source));
  auto shape = C10_AS_INTARRAYREF_SLOW(sizes);
  auto steps = strides.empty() && !sizes.empty() ? at::detail::defaultStrides(shape) : C10_AS_INTARRAYREF_SLOW(strides).vec();
  target->set_sizes_and_strides(shape, steps, offset.expect_int());
  return self;
}

Tensor& set_whole(Tensor& self, at::Storage source) {
  auto count = static_cast<int64_t>(source.nbytes() / self.dtype().itemsize());
  return set_source(self, std::move(source), 0, c10::SymInt(count), {});
}

int64_t math_attention(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool,
                       std::optional<double>, bool) {
  return static_cast<int64_t>(sdp::SDPBackend::math);
}

c10::impl::DeviceGuardImplRegistrar guard(c10::DeviceType::CUDA, new Guard());

TORCH_LIBRARY_IMPL(_, CUDA, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&compute>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("as_strided", as_strided);
  library.impl("view", view);
  library.impl("_reshape_alias", reshape_alias);
  library.impl("set_.source_Storage", set_whole);
  library.impl("set_.source_Storage_storage_offset", set_source);
  // torch has kernels of these for every device, which ask for a part of it that only CUDA's library has.
  library.impl("_thnn_fused_gru_cell", gru_cell);
  library.impl("_thnn_fused_gru_cell_backward", gru_cell_backward);
  library.impl("_thnn_fused_lstm_cell", lstm_cell);
  library.impl("_thnn_fused_lstm_cell_backward_impl", lstm_cell_backward);
  for (const char* name : {"copy_", "index_put_", "mse_loss", "smooth_l1_loss"})
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&compute>());
}

}  // namespace standin

namespace at {
using CUDAHooks = standin::Hooks;
REGISTER_CUDA_HOOKS(CUDAHooks);
}  // namespace at

#include "interface.h"
