// Greedy answers of an exported model.ts by libtorch alone, for ragged prompts in one batch.
//
//   torchscript model.ts NUM_TOKENS < prompts      a prompt a line: token ids with spaces between
//
// Prints the answers, a line each. docs/export.md says what the inputs mean and how to compile it.
#include <torch/script.h>

#include <algorithm>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

using torch::Tensor;
using Prompts = std::vector<std::vector<int64_t>>;

// The sizes lie in the archive as a flat JSON object of numbers.
int64_t size_of(const std::string& json, const std::string& name) {
  const auto at = json.find('"' + name + "\":");
  if (at == std::string::npos) throw std::runtime_error("the archive says no " + name);
  return std::stoll(json.substr(at + name.size() + 3));
}

std::vector<Tensor> new_cache(const std::string& json, int64_t rows, int64_t capacity) {
  std::vector<Tensor> cache;  // key and value of layer 0, of layer 1, …
  for (int64_t i = 0; i < 2 * size_of(json, "num_layers"); ++i)
    cache.push_back(torch::zeros(
        {rows, size_of(json, "num_kv_heads"), capacity, size_of(json, "head_dim")}));
  return cache;
}

Prompts read_prompts(std::istream& from) {
  Prompts prompts;
  for (std::string line; std::getline(from, line);) {
    std::istringstream ids(line);
    prompts.emplace_back(std::istream_iterator<int64_t>(ids), std::istream_iterator<int64_t>());
    if (prompts.back().empty()) throw std::runtime_error("a prompt is empty");
  }
  if (prompts.empty()) throw std::runtime_error("there is no prompt on stdin");
  return prompts;
}

// Returns the answers [rows, num_tokens].
Tensor generate(torch::jit::Module& model, const std::string& json, const Prompts& prompts,
                int64_t num_tokens) {
  const int64_t rows = prompts.size();
  int64_t length = 0;
  for (const auto& prompt : prompts) length = std::max<int64_t>(length, prompt.size());
  const int64_t capacity = length + num_tokens;

  // Prompts end at the same place; what is left of a short one is padding that nobody may see.
  Tensor ids = torch::zeros({rows, length}, torch::kLong), positions = torch::zeros_like(ids);
  Tensor mask = torch::ones({rows, capacity}, torch::kLong);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t size = prompts[row].size(), padding = length - size;
    ids[row].slice(0, padding).copy_(torch::tensor(prompts[row]));
    positions[row].slice(0, padding).copy_(torch::arange(size));
    mask[row].slice(0, 0, padding).zero_();
  }
  const std::vector<Tensor> cache = new_cache(json, rows, capacity);  // written in place
  Tensor start = torch::zeros({rows}, torch::kLong);
  Tensor wanted = torch::full({rows, 1}, length - 1, torch::kLong);
  std::vector<Tensor> answer;
  for (int64_t step = 0; step < num_tokens; ++step) {
    const Tensor logits = model.forward({ids, positions, start, mask, wanted, cache}).toTensor();
    answer.push_back(logits.select(1, 0).argmax(-1));
    ids = answer.back().unsqueeze(1);
    positions = positions.slice(1, -1) + 1;
    start = torch::full({rows}, length + step, torch::kLong);
    wanted = torch::zeros({rows, 1}, torch::kLong);
  }
  return torch::stack(answer, 1);
}

int main(int argc, char** argv) {
  try {
    if (argc != 3) throw std::runtime_error("usage: torchscript model.ts NUM_TOKENS < prompts");
    torch::NoGradGuard no_grad;
    torch::jit::ExtraFilesMap files{{"loraloop.json", ""}};
    auto model = torch::jit::load(argv[1], torch::kCPU, files);
    const auto answers =
        generate(model, files["loraloop.json"], read_prompts(std::cin), std::stoll(argv[2]));
    for (int64_t row = 0; row < answers.size(0); ++row) {
      for (int64_t i = 0; i < answers.size(1); ++i)
        std::cout << (i ? " " : "") << answers[row][i].item<int64_t>();
      std::cout << '\n';
    }
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
