// The keep-th largest magnitude of an interpolation, exactly and without sorting, for many coefficients at once.
//
// As on a CPU: a sample gives each coefficient a bracket, one sweep over a and b counts for all coefficients and stores
// the few entries inside their brackets, and the threshold is selected among those. A coefficient whose bracket does not
// tell goes through three histogram passes over all entries instead; its kernels are always launched, and return at once
// where no coefficient needs them, so that the host never has to ask. Which of several equal magnitudes survives is
// decided by their indices, never by the order in which threads arrive.
#include <climits>
#include <cmath>

#include "elements.cuh"

namespace lpk::cuda {
namespace {

constexpr int kSample = 1 << 17;
constexpr double kSigmas = 4.5;
constexpr int kBins = 2048;
constexpr int kPerThread = 8;
constexpr int kTile = kThreads * kPerThread;  // entries that a block sweeps at a time
constexpr int kStage = 64;                    // entries of one coefficient that a block holds back in a tile
constexpr int kMostCoefficients = 16;         // of one sweep; more are done in turns
constexpr int kListBlocks = 16;               // blocks that work on one coefficient's list of entries
constexpr int64_t kCountChunk = 8192;         // entries whose ties are counted together
constexpr int kSelectThreads = 1024;

enum Status : int {
  kInBracket = 0,  // the threshold is among the stored entries
  kTied = 1,       // its key is known, the index of the last survivor is not
  kMissed = 2,     // the bracket does not tell
  kDone = 3,
};

// What is known about one coefficient.
struct State {
  Key lo, hi;
  unsigned long long above_hi, from_hi, above_lo, from_lo;
  unsigned long long stored;  // entries inside the bracket, even those that found no room
  unsigned long long listed;  // entries of the bracket's decisive bin
  int status;
  int shift;                  // of the histogram in use
  Key prefix;                 // the bin in use: key >> shift (of distances from lo inside a bracket)
  int64_t rank;               // of the threshold among the entries of that bin, from 1, the largest first
  Key key;
  int64_t ties;               // how many entries with that key survive
};

struct Entry {
  int64_t index;
  Key key;
};

struct Workspace {
  State* states;
  unsigned long long* histograms;  // [count][kBins]
  unsigned* equal;                 // [count][chunks of kCountChunk]
  Key* sample;                     // [count][kSample]
  Entry* stored;                   // [count][capacity]
  Entry* listed;                   // [count][capacity]
  int64_t capacity;
};

__host__ __device__ inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
__host__ __device__ inline int64_t chunk_count(int64_t n) { return (n + kCountChunk - 1) / kCountChunk; }
inline int64_t capacity_for(int64_t n) { return n / 40 + 65536; }
inline int64_t padded(int64_t bytes) { return (bytes + 255) / 256 * 256; }

__device__ inline int64_t sample_position(int64_t n, int64_t count, int64_t i) {
  uint64_t z = 0x9e3779b97f4a7c15ull * uint64_t(i + 2);  // splitmix64
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  z ^= z >> 31;
  const int64_t begin = i * (n / count) + smaller(i, n % count);
  const int64_t end = (i + 1) * (n / count) + smaller(i + 1, n % count);
  return begin + int64_t(z % uint64_t(end - begin));
}

template <class D>
__global__ void sample_kernel(Vectors v, const float* alphas, Workspace w, int64_t size) {
  const int k = blockIdx.y;
  for (int64_t i = first_index(); i < size; i += stride())
    w.sample[int64_t(k) * kSample + i] = D::key(element<D>(v, alphas[k], sample_position(v.n, size, i)));
}

// The bin of a block's histogram in which the entry of this rank lies; the rank becomes that within the bin. All threads
// get both; `scratch` has 66 entries.
template <class Count>
__device__ int find_bin(const Count* histogram, int bins, int64_t& rank, unsigned long long* scratch) {
  const int groups = 64, width = bins / groups;
  if (threadIdx.x < groups) {
    unsigned long long sum = 0;
    for (int i = 0; i < width; ++i) sum += histogram[threadIdx.x * width + i];
    scratch[threadIdx.x] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int64_t left = rank;
    int group = groups - 1;
    while (group > 0 && left > int64_t(scratch[group])) left -= int64_t(scratch[group--]);
    int bin = group * width + width - 1;
    while (bin > group * width && left > int64_t(histogram[bin])) left -= int64_t(histogram[bin--]);
    scratch[64] = bin;
    scratch[65] = left;
  }
  __syncthreads();
  rank = int64_t(scratch[65]);
  const int bin = int(scratch[64]);
  __syncthreads();
  return bin;
}

// The entry of `rank` (from 1, the largest first) among get(0..size), a number of 0..2^bits, by one block. The rank becomes
// that among the entries equal to it.
template <class Get>
__device__ int64_t block_select(Get get, int64_t size, int bits, int64_t& rank) {
  __shared__ unsigned histogram[kBins];
  __shared__ unsigned long long scratch[66];
  int64_t prefix = 0;
  for (int shift = bits; shift > 0;) {
    const int digit = shift < 11 ? shift : 11;
    for (int i = threadIdx.x; i < kBins; i += blockDim.x) histogram[i] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < size; i += blockDim.x) {
      const int64_t x = get(i);
      if (x >= 0 && (x >> shift) == prefix) atomicAdd(&histogram[(x >> (shift - digit)) & (kBins - 1) & ((1 << digit) - 1)], 1u);
    }
    __syncthreads();
    const int bin = find_bin(histogram, kBins, rank, scratch);
    prefix = (prefix << digit) | bin;
    shift -= digit;
  }
  return prefix;
}

__global__ void bracket_kernel(Vectors v, Workspace w, int64_t size, int64_t above, int64_t below) {
  const Key* sample = w.sample + int64_t(blockIdx.x) * kSample;
  const auto key = [&](int64_t i) { return int64_t(sample[i]); };
  State state{};
  state.hi = INT_MAX;
  state.lo = -1;
  if (above >= 0) {
    int64_t rank = above + 1;
    state.hi = Key(block_select(key, size, 31, rank));
  }
  if (below < size) {
    int64_t rank = below + 1;
    state.lo = Key(block_select(key, size, 31, rank));
  }
  if (threadIdx.x == 0) w.states[blockIdx.x] = state;
  for (int i = threadIdx.x; i < kBins; i += blockDim.x) w.histograms[int64_t(blockIdx.x) * kBins + i] = 0;
}

template <class D>
__global__ void sweep_kernel(Vectors v, const float* alphas, Workspace w, int count) {
  using Stored = typename D::Stored;
  __shared__ Entry stage[kMostCoefficients][kStage];
  __shared__ unsigned staged[kMostCoefficients];
  __shared__ unsigned long long base[kMostCoefficients];
  __shared__ unsigned tally[kMostCoefficients][4];
  const auto* a = static_cast<const Stored*>(v.a);
  const auto* b = static_cast<const Stored*>(v.b);
  for (int64_t tile = int64_t(blockIdx.x) * kTile; tile < v.n; tile += int64_t(gridDim.x) * kTile) {
    if (threadIdx.x < kMostCoefficients) {
      staged[threadIdx.x] = 0;
      for (int c = 0; c < 4; ++c) tally[threadIdx.x][c] = 0;
    }
    __syncthreads();
    Stored own_a[kPerThread], own_b[kPerThread];
#pragma unroll
    for (int e = 0; e < kPerThread; ++e) {
      const int64_t i = tile + e * kThreads + threadIdx.x;
      own_a[e] = i < v.n ? a[i] : D::narrow(0.0f);
      own_b[e] = i < v.n && b ? b[i] : D::narrow(0.0f);
    }
#pragma unroll
    for (int e = 0; e < kPerThread; ++e)
      if (!finite(D::widen(own_a[e])) || !finite(D::widen(own_b[e]))) report(v, tile + e * kThreads + threadIdx.x);
    for (int k = 0; k < count; ++k) {
      const Key lo = w.states[k].lo, hi = w.states[k].hi;
      const float alpha = alphas[k];
      unsigned low = 0, high = 0;  // two counts each, at most 32 * kPerThread = 256 in a warp
#pragma unroll
      for (int e = 0; e < kPerThread; ++e) {
        const int64_t i = tile + e * kThreads + threadIdx.x;
        if (i >= v.n) continue;
        const Key key = D::key(b ? interpolated<D>(own_a[e], own_b[e], alpha) : own_a[e]);
        high += unsigned(key > hi) + (unsigned(key >= hi) << 16);
        low += unsigned(key > lo) + (unsigned(key >= lo) << 16);
        if (key > lo && key < hi) {
          const unsigned slot = atomicAdd(&staged[k], 1u);
          if (slot < kStage) {
            stage[k][slot] = Entry{i, key};
          } else {
            const unsigned long long at = atomicAdd(&w.states[k].stored, 1ull);
            if (at < (unsigned long long)w.capacity) w.stored[k * w.capacity + int64_t(at)] = Entry{i, key};
          }
        }
      }
      high = __reduce_add_sync(0xffffffffu, high);
      low = __reduce_add_sync(0xffffffffu, low);
      if (threadIdx.x % 32 == 0) {
        atomicAdd(&tally[k][0], high & 0xffff);
        atomicAdd(&tally[k][1], high >> 16);
        atomicAdd(&tally[k][2], low & 0xffff);
        atomicAdd(&tally[k][3], low >> 16);
      }
    }
    __syncthreads();
    if (threadIdx.x < count) {
      const int k = threadIdx.x;
      State& state = w.states[k];
      const unsigned own = staged[k] < kStage ? staged[k] : kStage;
      base[k] = own ? atomicAdd(&state.stored, (unsigned long long)own) : 0;
      if (tally[k][0]) atomicAdd(&state.above_hi, (unsigned long long)tally[k][0]);
      if (tally[k][1]) atomicAdd(&state.from_hi, (unsigned long long)tally[k][1]);
      if (tally[k][2]) atomicAdd(&state.above_lo, (unsigned long long)tally[k][2]);
      if (tally[k][3]) atomicAdd(&state.from_lo, (unsigned long long)tally[k][3]);
    }
    __syncthreads();
    for (int j = threadIdx.x; j < count * kStage; j += kThreads) {
      const int k = j / kStage, slot = j % kStage;
      const int64_t at = int64_t(base[k]) + slot;
      if (slot < int(staged[k]) && at < w.capacity) w.stored[k * w.capacity + at] = stage[k][slot];
    }
    __syncthreads();
  }
}

// What the counts tell: among the stored entries, at an end of the bracket, or nothing.
__global__ void judge_kernel(Workspace w, int64_t keep) {
  State& s = w.states[threadIdx.x];
  const auto above = [](unsigned long long count) { return int64_t(count); };
  s.status = kMissed;
  s.shift = 31;
  s.prefix = 0;
  s.rank = keep;
  if (keep > above(s.above_hi) && keep <= above(s.from_lo)) {
    if (keep <= above(s.from_hi)) {
      s.status = kTied;
      s.key = s.hi;
      s.ties = keep - above(s.above_hi);
    } else if (keep > above(s.above_lo)) {
      s.status = kTied;
      s.key = s.lo;
      s.ties = keep - above(s.above_lo);
    } else if (above(s.stored) <= w.capacity) {
      s.status = kInBracket;
      s.rank = keep - above(s.from_hi);
      s.shift = 0;
      while (((int64_t(s.hi) - s.lo - 2) >> s.shift) >= kBins) ++s.shift;
    }
  }
}

// A histogram of the stored entries' distances from the bracket's lower end.
__global__ void stored_histogram_kernel(Workspace w) {
  const int k = blockIdx.y;
  const State& s = w.states[k];
  if (s.status != kInBracket) return;
  __shared__ unsigned histogram[kBins];
  for (int i = threadIdx.x; i < kBins; i += blockDim.x) histogram[i] = 0;
  __syncthreads();
  for (int64_t i = first_index(); i < int64_t(s.stored); i += stride())
    atomicAdd(&histogram[(w.stored[k * w.capacity + i].key - s.lo - 1) >> s.shift], 1u);
  __syncthreads();
  for (int i = threadIdx.x; i < kBins; i += blockDim.x)
    if (histogram[i]) atomicAdd(&w.histograms[int64_t(k) * kBins + i], (unsigned long long)histogram[i]);
}

// Lists the stored entries of the decisive bin; every block finds the bin for itself, the first one notes it.
__global__ void list_kernel(Workspace w) {
  const int k = blockIdx.y;
  State& s = w.states[k];
  if (s.status != kInBracket) return;
  __shared__ unsigned long long scratch[66];
  int64_t rank = s.rank;
  const int bin = find_bin(w.histograms + int64_t(k) * kBins, kBins, rank, scratch);
  if (blockIdx.x == 0 && threadIdx.x == 0) s.ties = rank;  // for now: the rank within the bin
  for (int64_t i = first_index(); i < int64_t(s.stored); i += stride()) {
    const Entry entry = w.stored[k * w.capacity + i];
    if (((entry.key - s.lo - 1) >> s.shift) == bin)
      w.listed[k * w.capacity + int64_t(atomicAdd(&s.listed, 1ull))] = entry;
  }
}

// The threshold among the listed entries, and the index of the last one that survives.
template <class D>
__global__ void select_kernel(Workspace w, float* values, int64_t* last, int index_bits) {
  const int k = blockIdx.x;
  State& s = w.states[k];
  if (s.status != kInBracket) return;
  const Entry* listed = w.listed + k * w.capacity;
  const int64_t size = int64_t(s.listed);
  int64_t ties = s.ties;
  const Key key = Key(block_select([&](int64_t i) { return int64_t(listed[i].key); }, size, 31, ties));
  // Of the entries with this key the `ties` first ones survive: the largest index is wanted from the other end.
  const int64_t top = (int64_t(1) << index_bits) - 1;
  const auto reversed = [&](int64_t i) { return listed[i].key == key ? top - listed[i].index : int64_t(-1); };
  const int64_t index = top - block_select(reversed, size, index_bits, ties);
  if (threadIdx.x == 0) {
    values[k] = D::value(key);
    last[k] = index;
    s.status = kDone;
  }
}

// --- where the bracket does not tell ----------------------------------------------------------------------------------

__global__ void clear_histogram_kernel(Workspace w) {
  const int k = blockIdx.x;
  if (w.states[k].status != kMissed) return;
  for (int i = threadIdx.x; i < kBins; i += blockDim.x) w.histograms[int64_t(k) * kBins + i] = 0;
}

// A histogram of the next `digit` bits of all keys with the prefix found so far.
template <class D>
__global__ void histogram_kernel(Vectors v, const float* alphas, Workspace w, int digit) {
  const int k = blockIdx.y;
  const State& s = w.states[k];
  if (s.status != kMissed) return;
  __shared__ unsigned histogram[kBins];
  for (int i = threadIdx.x; i < kBins; i += blockDim.x) histogram[i] = 0;
  __syncthreads();
  const int shift = s.shift - digit;
  for (int64_t i = first_index(); i < v.n; i += stride()) {
    const int64_t key = D::key(element<D>(v, alphas[k], i));
    if ((key >> s.shift) == s.prefix) atomicAdd(&histogram[(key >> shift) & ((1 << digit) - 1)], 1u);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kBins; i += blockDim.x)
    if (histogram[i]) atomicAdd(&w.histograms[int64_t(k) * kBins + i], (unsigned long long)histogram[i]);
}

__global__ void pick_kernel(Workspace w, int digit) {
  State& s = w.states[blockIdx.x];
  if (s.status != kMissed) return;
  __shared__ unsigned long long scratch[66];
  int64_t rank = s.rank;
  const int bin = find_bin(w.histograms + int64_t(blockIdx.x) * kBins, kBins, rank, scratch);
  if (threadIdx.x != 0) return;
  s.rank = rank;
  s.shift -= digit;
  s.prefix = (s.prefix << digit) | bin;
  if (s.shift == 0) {
    s.status = kTied;
    s.key = s.prefix;
    s.ties = rank;
  }
}

template <class D>
__global__ void count_equal_kernel(Vectors v, const float* alphas, Workspace w) {
  const int k = blockIdx.y;
  const State& s = w.states[k];
  if (s.status != kTied) return;
  __shared__ unsigned total;
  for (int64_t chunk = blockIdx.x; chunk < chunk_count(v.n); chunk += gridDim.x) {
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    unsigned own = 0;
    const int64_t end = smaller(v.n, (chunk + 1) * kCountChunk);
    for (int64_t i = chunk * kCountChunk + threadIdx.x; i < end; i += blockDim.x)
      own += D::key(element<D>(v, alphas[k], i)) == s.key;
    if (own) atomicAdd(&total, own);
    __syncthreads();
    if (threadIdx.x == 0) w.equal[k * chunk_count(v.n) + chunk] = total;
    __syncthreads();
  }
}

// Which of `parts` consecutive parts holds the entry number `ties`; `ties` becomes its number within the part.
__device__ inline int64_t find_part(const unsigned long long* sums, int parts, int64_t& ties) {
  int part = 0;
  while (part < parts - 1 && ties > int64_t(sums[part])) ties -= int64_t(sums[part++]);
  return part;
}

template <class D>
__global__ void locate_kernel(Vectors v, const float* alphas, Workspace w, float* values, int64_t* last) {
  const int k = blockIdx.x;
  State& s = w.states[k];
  if (s.status != kTied) return;
  __shared__ unsigned long long sums[kSelectThreads];
  __shared__ int64_t found_chunk, left;
  const unsigned* equal = w.equal + k * chunk_count(v.n);
  const int64_t chunks = chunk_count(v.n), each = (chunks + blockDim.x - 1) / blockDim.x;
  unsigned long long own = 0;
  for (int64_t c = threadIdx.x * each; c < smaller(chunks, (threadIdx.x + 1) * each); ++c) own += equal[c];
  sums[threadIdx.x] = own;
  __syncthreads();
  if (threadIdx.x == 0) {
    int64_t ties = s.ties;
    int64_t chunk = find_part(sums, blockDim.x, ties) * each;
    while (chunk < chunks - 1 && ties > int64_t(equal[chunk])) ties -= equal[chunk++];
    found_chunk = chunk;
    left = ties;
  }
  __syncthreads();
  // Within the chunk every thread has a contiguous piece.
  const int64_t piece = (kCountChunk + blockDim.x - 1) / blockDim.x;
  const int64_t begin = found_chunk * kCountChunk + threadIdx.x * piece;
  const int64_t end = smaller(smaller(v.n, (found_chunk + 1) * kCountChunk), begin + piece);
  own = 0;
  for (int64_t i = begin; i < end; ++i) own += D::key(element<D>(v, alphas[k], i)) == s.key;
  sums[threadIdx.x] = own;
  __syncthreads();
  if (threadIdx.x == 0) {
    int64_t ties = left;
    int64_t i = found_chunk * kCountChunk + find_part(sums, blockDim.x, ties) * piece;
    for (; i < v.n - 1; ++i)
      if (D::key(element<D>(v, alphas[k], i)) == s.key && --ties == 0) break;
    values[k] = D::value(s.key);
    last[k] = i;
    s.status = kDone;
  }
}

Workspace divide(void* memory, int64_t n, int count) {
  auto* at = static_cast<char*>(memory);
  const auto take = [&](int64_t bytes) {
    char* begin = at;
    at += padded(bytes);
    return static_cast<void*>(begin);
  };
  Workspace w{};
  w.capacity = capacity_for(n);
  w.states = static_cast<State*>(take(count * int64_t(sizeof(State))));
  w.histograms = static_cast<unsigned long long*>(take(count * int64_t(kBins) * 8));
  w.equal = static_cast<unsigned*>(take(count * chunk_count(n) * 4));
  w.sample = static_cast<Key*>(take(count * int64_t(kSample) * 4));
  w.stored = static_cast<Entry*>(take(count * w.capacity * int64_t(sizeof(Entry))));
  w.listed = static_cast<Entry*>(take(count * w.capacity * int64_t(sizeof(Entry))));
  return w;
}

template <class D>
void thresholds(float* values, int64_t* last, const Vectors& v, const float* alphas, int count, int64_t keep,
                void* memory) {
  const Workspace w = divide(memory, v.n, count);
  const int64_t size = smaller(kSample, v.n);
  const double share = double(keep) / double(v.n);
  const double width = kSigmas * std::sqrt(double(size) * share * (1.0 - share)) + 2.0;
  const auto above = int64_t(std::floor(share * double(size) - width));
  const auto below = int64_t(std::ceil(share * double(size) + width));
  int index_bits = 1;
  while ((v.n >> index_bits) > 0) ++index_bits;
  const auto s = v.stream;
  const auto grid = [&](int64_t pieces) { return dim3(blocks_for(pieces), unsigned(count)); };
  const int64_t whole = (v.n + kTile - 1) / kTile;

  LPK_LAUNCH(sample_kernel<D>, grid((size + kThreads - 1) / kThreads), kThreads, s, v, alphas, w, size);
  LPK_LAUNCH(bracket_kernel, count, kSelectThreads, s, v, w, size, above, below);
  LPK_LAUNCH(sweep_kernel<D>, blocks_for(whole), kThreads, s, v, alphas, w, count);
  LPK_LAUNCH(judge_kernel, 1, count, s, w, keep);
  LPK_LAUNCH(stored_histogram_kernel, grid(kListBlocks), kThreads, s, w);
  LPK_LAUNCH(list_kernel, grid(kListBlocks), kThreads, s, w);
  LPK_LAUNCH(select_kernel<D>, count, kSelectThreads, s, w, values, last, index_bits);
  for (int digit : {11, 10, 10}) {
    LPK_LAUNCH(clear_histogram_kernel, count, kThreads, s, w);
    LPK_LAUNCH(histogram_kernel<D>, grid(whole), kThreads, s, v, alphas, w, digit);
    LPK_LAUNCH(pick_kernel, count, kThreads, s, w, digit);
  }
  LPK_LAUNCH(count_equal_kernel<D>, grid(chunk_count(v.n)), kThreads, s, v, alphas, w);
  LPK_LAUNCH(locate_kernel<D>, count, kSelectThreads, s, v, alphas, w, values, last);
}

}  // namespace

int64_t workspace_bytes(int64_t n, int count) {
  const int64_t k = count < kMostCoefficients ? count : kMostCoefficients, entries = 2 * k * capacity_for(n);
  return padded(k * int64_t(sizeof(State))) + padded(k * kBins * 8) + padded(k * chunk_count(n) * 4) +
         padded(k * int64_t(kSample) * 4) + 2 * padded(entries / 2 * int64_t(sizeof(Entry)));
}

void interpolate_threshold(float* values, int64_t* last, const Vectors& v, const float* alphas, int count,
                           int64_t keep, void* workspace) {
  for (int first = 0; first < count; first += kMostCoefficients) {
    const int some = count - first < kMostCoefficients ? count - first : kMostCoefficients;
    for_dtype(v.dtype, [&](auto dtype) {
      thresholds<decltype(dtype)>(values + first, last + first, v, alphas + first, some, keep, workspace);
    });
  }
  check_launch();
}

}  // namespace lpk::cuda
