// What the search for a threshold is sure of, on a CPU as on a GPU.
#pragma once

namespace lpk {

// Half a bracket's width, in standard deviations of the threshold's rank in the sample: one of 150,000 misses, which
// costs time and nothing else. kernels/threshold_bracket.py has the same number.
constexpr double kBracketSigmas = 4.5;

}  // namespace lpk
