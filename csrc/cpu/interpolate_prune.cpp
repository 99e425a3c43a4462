// The interpolation with all but its `keep` largest magnitudes set to +0, in one pass, given their threshold. With one
// vector only (b null) this is magnitude pruning. For many coefficients at once the vectors are read once: in pieces that
// stay in cache until they were written for every coefficient.
#include "pieces.h"

namespace lpk::cpu {
namespace {

constexpr int64_t kPiece = 4096;  // elements: two vectors' fit into the first-level cache

}  // namespace

void interpolate_prune(void* out, const Vectors& v, float alpha, const Threshold& threshold) {
  const int64_t bytes = v.n * (v.dtype == kFloat32 ? 4 : 2);
  const bool stream = bytes > kStreamBytes && out != v.a && out != v.b;
  for_pieces(v, alpha, threshold, [&](int64_t offset, int64_t count, Key key) {
    return loops(v.dtype).prune(out, source(v, alpha), offset, count, key, stream);
  });
}

void interpolate_prune_all(void* out, const Vectors& v, const std::vector<float>& alphas,
                           const std::vector<Threshold>& thresholds) {
  const int64_t item = v.dtype == kFloat32 ? 4 : 2, rows = int64_t(alphas.size());
  const bool stream = v.n * item * rows > kStreamBytes;
  std::vector<Cut> cuts;
  for (const Threshold& threshold : thresholds) cuts.push_back(cut(threshold, v.dtype));
  std::vector<std::atomic<bool>> finite(rows);
  for (auto& row : finite) row = true;
  parallel_for((v.n + kPiece - 1) / kPiece, v.threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t first = piece * kPiece, stop = std::min(first + kPiece, v.n);
      for (int64_t k = 0; k < rows; ++k) {
        void* const row = static_cast<char*>(out) + k * v.n * item;
        const bool all = on_both_sides(cuts[k], first, stop, [&](int64_t offset, int64_t count, Key key) {
          return loops(v.dtype).prune(row, source(v, alphas[k]), offset, count, key, stream);
        });
        if (!all) finite[k] = false;
      }
    }
  });
  for (int64_t k = 0; k < rows; ++k)
    if (!finite[k]) throw_not_finite(v, alphas[k]);
}

}  // namespace lpk::cpu
