// What Python calls of the stand-in, as functions of C.
#pragma once

#include "graph.h"

namespace {
std::string failure;

template <typename Function>
int guarded(Function&& run) {
  try {
    run();
    return 0;
  } catch (const std::exception& error) {
    failure = error.what();
    return 1;
  }
}
}  // namespace

extern "C" {
const char* standin_failure() { return failure.c_str(); }
int standin_start() {
  return guarded([] {
    standin::device_memory.allocate(0);
    at::SetAllocator(c10::DeviceType::CUDA, &standin::device_memory);
    at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&standin::math_attention);
    TORCH_CHECK(at::detail::getCUDAHooks().hasCUDA(), "torch asked for a GPU before the stand-in was there");
  });
}
/// The next `torch.Generator("cuda")` is the default one.
void standin_hand_out_default() { standin::hand_out_default = true; }
void standin_watch(int on) { standin::watched = on; }
int standin_watched() { return standin::watched; }
int64_t standin_allocated() { return standin::allocated; }
int64_t standin_peak() { return standin::peak; }
void standin_reset_peak() { standin::peak = standin::allocated.load(); }
int64_t standin_allocations() { return standin::allocations; }
int standin_is_capturing() { return standin::capturing; }

void standin_capture_begin() {
  standin::current = std::make_unique<standin::Graph>();
  standin::pool.clear();
  standin::capturing = true;
}

/// The graph's number; 0 where an operator was refused meanwhile.
int64_t standin_capture_end() {
  static int64_t number = 0;
  standin::capturing = false;
  standin::undo.run();
  standin::pool.clear();
  if (standin::current->spoilt) return standin::current.reset(), 0;
  standin::graphs[++number] = std::move(standin::current);
  return number;
}

int64_t standin_graph_size(int64_t graph) { return standin::graphs.at(graph)->calls.size(); }
int standin_replay(int64_t graph) {
  return guarded([&] { standin::graphs.at(graph)->replay(); });
}
void standin_forget(int64_t graph) { standin::graphs.erase(graph); }
void standin_kernel(void (*kernel)(void*), void* context) {
  if (standin::capturing) {
    standin::Recorded call;
    call.kernel = kernel, call.context = context;
    standin::current->calls.push_back(std::move(call));
  }
}
}
