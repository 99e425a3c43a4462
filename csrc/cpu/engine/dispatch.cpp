#include <string>

#include "../operations.h"
#include "loops.h"

namespace lpk::engine {

const Loops& loops() {
#ifdef LPK_X86
  const std::string name = cpu::instruction_set();
  if (name == "avx512") return loops_avx512;
  if (name == "avx2") return loops_avx2;
#endif
  return loops_portable;
}

}  // namespace lpk::engine
