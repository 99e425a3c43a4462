// The keep-th largest magnitude of an interpolation, exactly and without sorting, for many coefficients at once.
//
// A sample of the positions gives, for each coefficient, a bracket of magnitudes that holds the threshold unless luck
// was very bad. One sweep over a and b then counts, for all coefficients, what lies above each bracket and stores the
// few magnitudes inside it, among which the threshold is selected. (It interpolates only what is near the brackets: on
// which side of them an interpolation is, its two elements mostly tell.) Where a bracket missed, or too many magnitudes lie
// strictly inside it, two histogram passes find the threshold whatever the data are.
#include <atomic>
#include <limits>

#include "parallel.h"
#include "threshold.h"

namespace lpk::cpu {
namespace {

constexpr int64_t kDirect = 8192;  // below this, all magnitudes are simply selected from

enum class Selection { kAuto, kBracket, kHistogram };
std::atomic<Selection> selection{Selection::kAuto};

// All magnitudes at once: for small vectors.
Threshold direct(const Vectors& v, float alpha, int64_t keep) {
  std::vector<Key> keys(v.n);
  if (!loops(v.dtype).keys(keys.data(), source(v, alpha), 0, v.n)) throw_not_finite(v, alpha);
  std::vector<Key> order(keys);
  const Found found = select(order.data(), order.data() + v.n, keep);
  int64_t left = found.ties;
  int64_t last = 0;
  for (; last < v.n; ++last)
    if (keys[last] == found.key && --left == 0) break;
  return {value_of(found.key, v.dtype), last};
}

}  // namespace

void set_selection(const std::string& name) {
  if (name == "auto")
    selection = Selection::kAuto;
  else if (name == "bracket")
    selection = Selection::kBracket;
  else if (name == "histogram")
    selection = Selection::kHistogram;
  else
    throw std::invalid_argument("selection is auto, bracket or histogram, not \"" + name + "\"");
}

std::vector<Threshold> interpolate_threshold(const Vectors& v, const std::vector<float>& alphas, int64_t keep) {
  DefaultFloatingPoint environment;
  if (keep == 0) {
    for (float alpha : alphas) {  // nothing to select, but bad values are an error here too
      histogram(v, alpha, 1, 0, 0, 31);
    }
    return std::vector<Threshold>(alphas.size(), {std::numeric_limits<float>::infinity(), -1});
  }
  if (alphas.empty()) return {};
  const Selection how = selection;
  if (how == Selection::kBracket || (how == Selection::kAuto && v.n > kDirect)) return by_bracket(v, alphas, keep);
  std::vector<Threshold> thresholds;
  for (float alpha : alphas)
    thresholds.push_back(how == Selection::kHistogram ? by_histogram(v, alpha, keep) : direct(v, alpha, keep));
  return thresholds;
}

}  // namespace lpk::cpu
