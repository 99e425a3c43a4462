// Memory that holds machine code.
#pragma once

#include <cstdint>

namespace lpk::engine {

// It is written before it is executable, and never both. Throws std::runtime_error where the system forbids that.
class Executable {
 public:
  Executable(const uint8_t* code, int64_t size);
  ~Executable();
  Executable(const Executable&) = delete;
  Executable& operator=(const Executable&) = delete;

  const uint8_t* data() const { return memory_; }

 private:
  uint8_t* memory_;
  int64_t size_;
};

}  // namespace lpk::engine
