// A tensor of the stand-in as one of the CPU over the same memory, and back.
#pragma once

#include "device.h"

namespace standin {

inline bool on_gpu(const Tensor& tensor) { return tensor.defined() && tensor.device().is_cuda(); }

template <typename Function>
void each_tensor(const c10::IValue& value, Function&& see) {
  if (value.isTensor()) {
    if (value.toTensor().defined()) see(value.toTensor());
  } else if (value.isTensorList()) {
    for (const Tensor& tensor : value.toTensorVector()) see(tensor);
  } else if (value.isList()) {
    for (const c10::IValue& item : value.toListRef())
      if (item.isTensor() && item.toTensor().defined()) see(item.toTensor());
  }
}

/// Where a tensor lies: enough to make a CPU tensor of it again, with or without keeping its memory alive.
struct Place {
  c10::weak_intrusive_ptr<c10::StorageImpl> weak;
  c10::intrusive_ptr<c10::StorageImpl> strong;
  std::vector<int64_t> sizes, strides;
  int64_t offset;
  caffe2::TypeMeta dtype;

  explicit Place(const Tensor& tensor, bool keep)
      : weak(tensor.storage().getWeakStorageImpl()),
        sizes(tensor.sizes().vec()),
        strides(tensor.strides().vec()),
        offset(tensor.storage_offset()),
        dtype(tensor.dtype()) {
    if (keep) strong = weak.lock();
  }
};

/// A CPU tensor over the memory of `storage`, which stays alive as long as it does.
inline Tensor view_on_cpu(c10::intrusive_ptr<c10::StorageImpl> storage, at::IntArrayRef sizes, at::IntArrayRef strides,
                          int64_t offset, caffe2::TypeMeta dtype) {
  auto bytes = storage->nbytes();
  auto* data = storage->mutable_data();
  auto* owner = new c10::intrusive_ptr<c10::StorageImpl>(std::move(storage));
  auto drop = [](void* context) { delete static_cast<c10::intrusive_ptr<c10::StorageImpl>*>(context); };
  c10::DataPtr pointer(data, owner, drop, c10::Device(c10::kCPU));
  auto memory = c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), bytes, std::move(pointer), c10::GetCPUAllocator(), true);
  auto keys = c10::DispatchKeySet(c10::DispatchKey::CPU);
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(memory), keys, dtype);
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides, offset);
  return tensor;
}

inline Tensor to_cpu(const Tensor& t) {
  c10::intrusive_ptr<c10::StorageImpl> storage = t.storage().getWeakStorageImpl().lock();
  return view_on_cpu(storage, t.sizes(), t.strides(), t.storage_offset(), t.dtype());
}

inline Tensor to_cpu(const Place& place) {
  auto storage = place.strong ? place.strong : place.weak.lock();
  TORCH_CHECK(storage, "the graph reads or writes memory that was freed since it was captured");
  return view_on_cpu(storage, place.sizes, place.strides, place.offset, place.dtype);
}

inline Tensor shaped(c10::Storage storage, const Tensor& like) {
  auto keys = c10::DispatchKeySet(c10::DispatchKey::CUDA);
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, like.dtype());
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return tensor;
}

/// A CPU tensor's memory under the GPU's name.
inline c10::Storage disguised(const Tensor& cpu) {
  auto bytes = cpu.storage().nbytes();
  auto* owner = new c10::Storage(cpu.storage());
  auto drop = [](void* context) { delete static_cast<c10::Storage*>(context); };
  c10::DataPtr memory(cpu.storage().mutable_data(), owner, drop, c10::Device(c10::kCPU));
  return c10::Storage(c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), bytes,
                                                            disguised(std::move(memory), bytes), &device_memory, true));
}

}  // namespace standin
