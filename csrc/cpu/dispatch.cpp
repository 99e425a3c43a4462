// Which instruction set the loops run on.
#include <atomic>
#include <stdexcept>

#include "operations.h"

namespace lpk::cpu {
namespace {

struct InstructionSet {
  const char* name;
  const Loops* loops;
  bool usable;
};

const std::vector<InstructionSet>& known() {
  static const std::vector<InstructionSet> sets = {
      {"portable", loops_portable, true},
#ifdef LPK_X86
      {"avx2", loops_avx2,
       __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")},
      {"avx512", loops_avx512,
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("f16c")},
#endif
  };
  return sets;
}

const InstructionSet* best() {
  const InstructionSet* found = nullptr;
  for (const auto& set : known())
    if (set.usable) found = &set;
  return found;
}

std::atomic<const InstructionSet*> current{nullptr};

const InstructionSet& in_use() {
  const InstructionSet* set = current.load();
  if (set == nullptr) current.store(set = best());
  return *set;
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const auto& set : known())
    if (set.usable) names.push_back(set.name);
  return names;
}

std::string instruction_set() { return in_use().name; }

void set_instruction_set(const std::string& name) {
  if (name == "auto") {
    current.store(best());
    return;
  }
  for (const auto& set : known()) {
    if (name == set.name && set.usable) {
      current.store(&set);
      return;
    }
  }
  throw std::invalid_argument("instruction set \"" + name + "\" is not usable on this processor");
}

const Loops& loops(Dtype dtype) { return in_use().loops[dtype]; }

}  // namespace lpk::cpu
