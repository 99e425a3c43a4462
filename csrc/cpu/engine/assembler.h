// Writes the few x86-64 instructions that compiled filters are made of: AVX-512's on vectors of 16 floats, and those
// that count and add addresses.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace lpk::engine {

// Those that a function may change without asking (System V).
enum class Register : int { rax = 0, rcx = 1, rdx = 2, rsi = 6, rdi = 7, r8 = 8, r9 = 9, r10 = 10, r11 = 11 };

struct Address {
  Register base;
  int64_t offset;  // bytes
};

class Assembler {
 public:
  const std::vector<uint8_t>& bytes() const { return bytes_; }
  int64_t size() const { return int64_t(bytes_.size()); }

  // Vectors are zmm0 to zmm31.
  void zero(int vector) { on_registers({1, 1, 0xef}, vector, vector, vector); }
  void load(int vector, Address from) { on_memory({1, 0, 0x28}, vector, 0, from, kVector); }
  void store(Address to, int vector) { on_memory({1, 0, 0x29}, vector, 0, to, kVector); }
  void broadcast(int vector, Address from) { on_memory({2, 1, 0x18}, vector, 0, from, kFloat); }
  // sum += x * the float at `weight`
  void add_product(int sum, int x, Address weight) { on_memory({2, 1, 0xb8, true}, sum, x, weight, kFloat); }
  // x = x * scale + the float at `bias`
  void scale(int x, int scale, Address bias) { on_memory({2, 1, 0xa8, true}, x, scale, bias, kFloat); }
  void add(int x, Address y) { on_memory({1, 0, 0x58}, x, x, y, kVector); }
  // x, where that is NaN
  void at_least(int low, int x) { on_registers({1, 0, 0x5f}, x, low, x); }
  void at_most(int high, int x) { on_registers({1, 0, 0x5d}, x, high, x); }

  // On its way into the second-level cache.
  void fetch(Address line) {
    if (line.base >= Register::r8) put({0x41});
    put({0x0f, 0x18});
    memory(2, line, 1);
  }
  void load(Register to, Address from) { wide(0x8b, to, from); }
  void copy(Register to, Register from) { wide(0x89, from, to); }
  void add(Register to, Register from) { wide(0x01, from, to); }
  void add(Register to, Address from) { wide(0x03, to, from); }
  void add(Address to, int32_t number) {
    wide(0x81, Register(0), to);
    number32(number);
  }
  void add(Register to, int32_t number) {
    put({0x48 | high(to), 0x81, 0xc0 | low(to)});
    number32(number);
  }
  void decrement(Address counter) { wide(0xff, Register(1), counter); }
  void jump(Address to) {
    if (to.base >= Register::r8) put({0x41});
    put({0xff});
    memory(4, to, 1);
  }
  // What follows is left out if the last decrement gave zero, up to `end_of_skipped`.
  int64_t skip_if_zero() {
    put({0x74, 0});
    return size();
  }
  void end_of_skipped(int64_t start) { bytes_[start - 1] = uint8_t(size() - start); }
  // Back to the caller, whose code may be older than AVX.
  void finish() { put({0xc5, 0xf8, 0x77, 0xc3}); }

 private:
  static constexpr int kVector = 64, kFloat = 4;  // bytes, which short offsets are multiples of

  struct Operation {
    int map, prefix, code;
    bool broadcasts = false;
  };

  static int low(Register r) { return int(r) & 7; }
  static int high(Register r) { return int(r) >> 3; }

  void put(std::initializer_list<int> bytes) { bytes_.insert(bytes_.end(), bytes.begin(), bytes.end()); }
  void number32(int32_t number) {
    uint8_t bytes[4];
    std::memcpy(bytes, &number, 4);
    bytes_.insert(bytes_.end(), bytes, bytes + 4);
  }

  // The EVEX prefix and the code of an instruction with 512-bit vectors. The bits of register numbers are inverted.
  void evex(Operation operation, int reg, int second, int extension, int base) {
    put({0x62,
         (~reg >> 3 & 1) << 7 | (~extension & 1) << 6 | (~base >> 3 & 1) << 5 | (~reg >> 4 & 1) << 4 | operation.map,
         (~second & 15) << 3 | 4 | operation.prefix,
         2 << 5 | int(operation.broadcasts) << 4 | (~second >> 4 & 1) << 3, operation.code});
  }
  void on_registers(Operation operation, int reg, int second, int third) {
    evex(operation, reg, second, third >> 4, third);
    put({0xc0 | (reg & 7) << 3 | (third & 7)});
  }
  void on_memory(Operation operation, int reg, int second, Address address, int unit) {
    evex(operation, reg, second, 0, int(address.base));
    memory(reg, address, unit);
  }
  void wide(int code, Register reg, Address address) {
    put({0x48 | high(reg) << 2 | high(address.base), code});
    memory(int(reg), address, 1);
  }
  void wide(int code, Register reg, Register other) {
    put({0x48 | high(reg) << 2 | high(other), code, 0xc0 | low(reg) << 3 | low(other)});
  }
  void memory(int reg, Address address, int unit) {
    const int64_t units = address.offset / unit;
    const bool is_short = address.offset % unit == 0 && units >= -128 && units < 128;
    put({(is_short ? 0x40 : 0x80) | (reg & 7) << 3 | low(address.base)});
    if (is_short)
      put({int(units & 255)});
    else
      number32(int32_t(address.offset));
  }

  std::vector<uint8_t> bytes_;
};

}  // namespace lpk::engine
