#include "executable.h"

#include <sys/mman.h>

#include <cstring>
#include <stdexcept>

namespace lpk::engine {

Executable::Executable(const uint8_t* code, int64_t size) : size_(size) {
  void* const memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  std::memcpy(memory, code, size);
  if (mprotect(memory, size, PROT_READ | PROT_EXEC) != 0) {
    munmap(memory, size);
    throw std::runtime_error("the system lets no memory become executable");
  }
  memory_ = static_cast<uint8_t*>(memory);
}

Executable::~Executable() { munmap(memory_, size_); }

}  // namespace lpk::engine
