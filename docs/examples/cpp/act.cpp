// Acts with an exported policy (format=torchscript) of one group of agents: act policy.ts AGENTS FEATURES [NUMBERS]
//
// Each line of standard input holds the observations of one step, AGENTS x FEATURES numbers, the first agent's first.
// An empty line begins a new episode. Each line of output holds the actions, the first agent's first. NUMBERS: what a
// policy with a memory remembers of each agent (the card's last size of GROUP_memory).
#include <ATen/Parallel.h>
#include <torch/script.h>

#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "act policy.ts AGENTS FEATURES [NUMBERS]\n";
    return 2;
  }
  const int64_t agents = std::atoll(argv[2]), features = std::atoll(argv[3]), numbers = argc > 4 ? std::atoll(argv[4]) : 0;
  torch::InferenceMode no_gradients;
  torch::jit::Module policy = torch::jit::load(argv[1]);
  policy.eval();
  at::set_num_threads(1);
  torch::Tensor memory = torch::zeros({1, agents, numbers});

  std::cout.precision(9);
  std::string line;
  while (std::getline(std::cin, line)) {
    if (line.empty()) {
      memory = torch::zeros({1, agents, numbers});
      continue;
    }
    std::istringstream words(line);
    std::vector<float> row;
    for (float number; words >> number;) row.push_back(number);
    if (static_cast<int64_t>(row.size()) != agents * features) {
      std::cerr << "a step has " << agents * features << " numbers, this line " << row.size() << "\n";
      return 1;
    }
    std::vector<torch::jit::IValue> inputs{torch::from_blob(row.data(), {1, agents, features})};
    if (numbers) inputs.push_back(memory);
    const auto outputs = policy.forward(inputs).toTuple()->elements();
    if (numbers) memory = outputs[1].toTensor();
    const torch::Tensor actions = outputs[0].toTensor().to(torch::kDouble).flatten().contiguous();
    for (int64_t i = 0; i < actions.numel(); i++) std::cout << (i ? " " : "") << actions.data_ptr<double>()[i];
    std::cout << std::endl;  // flushed: a control loop waits for it
  }
}
