// Which instruction set the loops run on: the best that the processor has, or the one that LPK_CPU names.
#include <atomic>
#include <cstdlib>
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

const InstructionSet* usable(const std::string& name) {
  for (const auto& set : known())
    if (set.usable && name == set.name) return &set;
  return nullptr;
}

const InstructionSet* best() {
  const InstructionSet* found = nullptr;
  for (const auto& set : known())
    if (set.usable) found = &set;
  return found;
}

// Throws where LPK_CPU names none that is usable: at the import of lpk._core, which asks first.
const InstructionSet* by_default() {
  const char* asked = std::getenv("LPK_CPU");
  if (asked == nullptr || *asked == '\0') return best();
  if (const InstructionSet* set = usable(asked)) return set;
  std::string names;
  for (const auto& name : instruction_sets()) names += (names.empty() ? "" : ", ") + name;
  throw std::invalid_argument("the environment variable LPK_CPU is \"" + std::string(asked) +
                              "\"; on this processor lpk can use: " + names);
}

std::atomic<const InstructionSet*> current{nullptr};

const InstructionSet& in_use() {
  const InstructionSet* set = current.load();
  if (set == nullptr) current.store(set = by_default());
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
  const InstructionSet* set = name == "auto" ? by_default() : usable(name);
  if (set == nullptr) throw std::invalid_argument("instruction set \"" + name + "\" is not usable on this processor");
  current.store(set);
}

const Loops& loops(Dtype dtype) { return in_use().loops[dtype]; }

}  // namespace lpk::cpu
