// A CUDA graph of the stand-in: operators as they were captured, run again on the memory where they ran.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <functional>
#include <memory>
#include <variant>

#include "tensors.h"

namespace standin {

void run_on_cpu(const c10::OperatorHandle& op, c10::Stack* stack);

using Kernel = void (*)(void*);  // what torch does not see

struct Recorded {
  std::optional<c10::OperatorHandle> op;
  std::function<c10::Stack()> arguments;  // CPU tensors over the memory of the capture
  std::vector<Place> results;
  Kernel kernel = nullptr;
  void* context = nullptr;
};

struct Graph {
  std::vector<Recorded> calls;
  bool spoilt = false;  // an operator was refused

  void replay() const {
    for (const Recorded& call : calls) {
      if (call.kernel) {
        call.kernel(call.context);
        continue;
      }
      c10::Stack stack = call.arguments();
      run_on_cpu(*call.op, &stack);
      std::vector<Tensor> results;
      for (const c10::IValue& value : stack) {
        each_tensor(value, [&](const Tensor& tensor) {
          if (tensor.defined()) results.push_back(tensor);
        });
      }
      TORCH_CHECK(results.size() == call.results.size(), "a replayed operator has other results than in its capture");
      for (size_t at = 0; at < results.size(); ++at) {
        Tensor target = to_cpu(call.results[at]);
        if (target.storage().data() == results[at].storage().data()) continue;
        TORCH_CHECK(target.sizes() == results[at].sizes(), "a replayed operator's result has another shape");
        target.copy_(results[at]);
      }
    }
  }
};

/// What a capture must leave as it was, since a GPU runs nothing then: memory and generators that operators changed.
struct Undo {
  std::map<c10::StorageImpl*, std::pair<c10::intrusive_ptr<c10::StorageImpl>, std::vector<char>>> memory;
  std::map<c10::GeneratorImpl*, std::pair<at::Generator, Tensor>> generators;

  void note(const Tensor& tensor) {
    auto* storage = tensor.storage().unsafeGetStorageImpl();
    if (pool.count(storage) || memory.count(storage) || !on_gpu(tensor)) return;
    const char* data = static_cast<const char*>(storage->data());
    memory.emplace(storage, std::make_pair(tensor.storage().getWeakStorageImpl().lock(),
                                           std::vector<char>(data, data + storage->nbytes())));
  }
  void note(const at::Generator& generator) {
    if (generator.defined()) generators.emplace(generator.unsafeGetGeneratorImpl(), std::make_pair(generator, generator.get_state()));
  }
  void run() {
    for (auto& [storage, kept] : memory) memcpy(storage->mutable_data(), kept.second.data(), kept.second.size());
    for (auto& [impl, kept] : generators) kept.first.set_state(kept.second);
    for (const auto& storage : pool_memory)
      if (storage->nbytes()) memset(storage->mutable_data(), 0xff, storage->nbytes());
    memory.clear(), generators.clear(), pool_memory.clear();
  }
};

inline Undo undo;
inline std::unique_ptr<Graph> current;
inline std::map<int64_t, std::unique_ptr<Graph>> graphs;

inline Place place(const Tensor& tensor) {
  return Place(tensor, pool.count(tensor.storage().unsafeGetStorageImpl()) > 0);
}

/// An argument as a replay has it: places for the GPU's tensors, values for the host's.
using Argument = std::function<c10::IValue()>;

inline Argument remembered(const Tensor& original, const Tensor& operand) {
  if (!on_gpu(original)) {
    Tensor value = operand.defined() ? operand.clone() : operand;
    if (operand.defined() && operand.unsafeGetTensorImpl()->is_wrapped_number())  // else it would promote
      value.unsafeGetTensorImpl()->set_wrapped_number(true);
    return [value] { return c10::IValue(value); };
  }
  return [where = place(original)] { return c10::IValue(to_cpu(where)); };
}

inline Argument remembered(const c10::IValue& original, const c10::IValue& operand) {
  if (original.isTensor()) return remembered(original.toTensor(), operand.toTensor());
  if (original.isTensorList()) {
    std::vector<Argument> items;
    auto before = original.toTensorVector(), after = operand.toTensorVector();
    for (size_t at = 0; at < before.size(); ++at) items.push_back(remembered(before[at], after[at]));
    return [items] {
      c10::List<Tensor> list;
      for (const Argument& item : items) list.push_back(item().toTensor());
      return c10::IValue(list);
    };
  }
  if (original.isList() && original.toList().elementType()->kind() == c10::TypeKind::OptionalType) {
    std::vector<Argument> items;
    auto before = original.toListRef(), after = operand.toListRef();
    for (size_t at = 0; at < before.size(); ++at) items.push_back(remembered(before[at], after[at]));
    return [items] {
      c10::List<std::optional<Tensor>> list;
      for (const Argument& item : items) {
        c10::IValue value = item();
        list.push_back(value.isNone() ? std::optional<Tensor>() : value.toTensor());
      }
      return c10::IValue(list);
    };
  }
  return [operand] { return operand; };
}

/// One call while a graph is captured; outside of a capture nothing.
class Step {
 public:
  Step(const c10::OperatorHandle& op, const c10::Stack& stack, size_t first, const c10::Stack& operands) {
    if (!capturing) return;
    undo.note(default_generator());
    std::vector<Argument> items;
    for (size_t at = 0; at < operands.size(); ++at) {
      const auto* alias = op.schema().arguments()[at].alias_info();
      if (alias && alias->isWrite()) each_tensor(stack[first + at], [](const Tensor& tensor) { undo.note(tensor); });
      if (stack[first + at].isGenerator()) undo.note(stack[first + at].toGenerator());
      items.push_back(remembered(stack[first + at], operands[at]));
    }
    recorded_.op = op;
    recorded_.arguments = [items] {
      c10::Stack arguments;
      for (const Argument& item : items) arguments.push_back(item());
      return arguments;
    };
    active_ = true;
  }

  void finish(const c10::Stack& stack, size_t first) {
    if (!active_) return;
    for (size_t at = first; at < stack.size(); ++at) each_tensor(stack[at], [this](const Tensor& tensor) { add(tensor); });
    current->calls.push_back(std::move(recorded_));
  }

 private:
  void add(const Tensor& tensor) {
    if (!tensor.defined()) return;
    TORCH_CHECK(on_gpu(tensor), recorded_.op->operator_name().name, " brings a value to the host while a graph is captured");
    recorded_.results.push_back(place(tensor));
  }
  Recorded recorded_;
  bool active_ = false;
};

}  // namespace standin
