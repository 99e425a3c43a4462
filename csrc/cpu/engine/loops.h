// The engine's inner loops, as one table of function pointers for each instruction set.
#pragma once

#include <cstdint>

#include "engine.h"

namespace lpk::engine {

constexpr int kMostRows = 8;
constexpr int kNarrow = 8;  // columns; there are wider tiles for strides of 1 and 2 alone

// The outputs whose sums are in registers together: `rows` pieces of rows, each of them some neighbouring pixels. The
// rows may lie in different images. Addresses are those of channel 0; behind the last row the input's is repeated.
struct Tile {
  const float* in[kMostRows];
  float* out[kMostRows];
  const float* residual[kMostRows];
  int rows;
};

// x = activation(x), for n floats; n is a multiple of 16.
using ActivationLoop = void (*)(float* x, int64_t n, float slope);

// What follows a sum: * scale and + bias of the filter, + residual, then all below `low` is `low` and all above `high`
// is `high`. Activations that are more than that are applied to what was stored.
struct Finish {
  const float* scale;  // null: none
  const float* bias;   // null: none
  bool residual;
  float low;
  float high;
  ActivationLoop activate;  // null: none
  float slope;
  int64_t out_channel;  // floats from one channel to the next
  int64_t residual_channel;
};

// What is the same for all tiles of a convolution.
struct SparseTask {
  SparseFilters filters;
  int64_t count;           // of filters
  int64_t channel_blocks;  // of the filters
  int64_t pixel_stride;    // floats between the inputs of neighbouring outputs
  Finish finish;
};

// Neighbouring outputs of a row and those below them. Addresses are those of channel 0.
struct Strip {
  const float* in;
  float* out;
  const float* residual;
  int64_t rows;
};

struct DepthwiseTask {
  SparseFilters filters;  // in one block
  int64_t pixel_stride;   // floats between the inputs of neighbouring outputs
  int64_t in_row;         // and of outputs below each other
  int64_t out_row;
  int64_t residual_row;
  Finish finish;
};

struct DenseTask {
  DenseFilters filters;
  int64_t weights;         // of one filter
  int64_t weights_per_block;
  int64_t group_filters;
  int64_t group_stride;    // floats between the inputs of neighbouring groups
  int64_t pixel_stride;
  Finish finish;
};

// Addresses are those of channel 0 of the first block's pixel.
struct LaneTask {
  LaneFilters filters;
  int64_t weights;  // of one filter
  int64_t count;    // of filters
  int64_t lanes;    // in all blocks
  const float* in;
  float* out;
  const float* residual;
  int64_t in_block;  // floats from one block to the next
  int64_t out_block;
  int64_t residual_block;
  Finish finish;
};

// One tile of a Winograd convolution: how much there is of its 6 x 6 inputs (with stride 2: 13 x 13), the border included,
// and of its 4 x 4 outputs. Addresses are those of channel 0.
struct WinogradTile {
  const float* in;
  float* out;
  const float* residual;
  int in_rows, in_columns;
  int rows, columns;  // 0: nothing is stored
};

struct WinogradTask {
  WinogradFilters filters;
  int64_t channels;
  int64_t count;       // of filters
  int64_t in_row;      // floats from one row to the next
  int64_t in_channel;  // and from one channel to the next
  int64_t out_row;
  int64_t residual_row;
  Finish finish;
};

// Copies the tile's inputs next to each other, `rows` x `columns` of each channel, and the next channel's `step` floats
// behind them.
struct Gather {
  int64_t channels;
  int64_t in_channel;  // floats from one channel to the next
  int64_t pixel_stride;
  int64_t step;
};
using CollectLoop = void (*)(float* to, const Tile& tile, int rows, int columns, const Gather& gather);

// Computes the filters from `first` to `last` for one tile. `sums` has room for the tile's sums of all these filters.
using SparseLoop = void (*)(const SparseTask& task, const Tile& tile, int64_t first, int64_t last, float* sums);
// The same for a strip, whose tiles are taken one after the other for each filter.
using DepthwiseLoop = void (*)(const DepthwiseTask& task, const Strip& strip, int64_t first, int64_t last);
// The same for a tile and fours of filters.
using DenseLoop = void (*)(const DenseTask& task, const Tile& tile, int64_t first, int64_t last, float* sums);

// Computes the groups from `first` to `last` of filters that lie together. `sums` has room for those of one such group:
// of `together` filters for each lane, and for a pixel.
using LaneLoop = void (*)(const LaneTask& task, int64_t first, int64_t last, float* sums);

// Computes, for some tiles at once, the groups from `first` to `last` of filters that lie together. `memory` has room for
// 36 * (tiles * (channels + filters that lie together) + 1) pixels; with stride 2, for one tile's 169 pixels of each
// channel and 112 of each filter that lies together.
using WinogradLoop = void (*)(const WinogradTask& task, const WinogradTile* tiles, int64_t first, int64_t last,
                              float* memory);

// The pixels of a window that lie in the image; floats from one to the next.
struct Region {
  const float* first;
  int64_t height, width;
  int64_t step_y, step_x;
};

// What each lane has of an ordinary tensor: `count` numbers that follow each other, from data + offset on.
struct Strips {
  float* data;
  int64_t offset[kImages];
  int32_t count[kImages];
};

// A layer norm of some neighbouring pixels; the addresses are those of channel 0.
struct LayerNormTask {
  LayerNorm norm;
  int64_t channels;
  int64_t in_channel;  // floats from one channel to the next
  int64_t out_channel;
};

constexpr int kQueries = 3;   // pixels of queries that attention is computed for at once
constexpr int kMostKeys = 8;  // or numbers of values, whose sums with all of these are in registers together

// What is the same for all heads of an attention; steps are floats from one number of a head to the next.
struct AttentionTask {
  int64_t size;
  float scale;
  int64_t tokens;  // keys and values
  int64_t chunk;   // of them are weighed at once
  const int32_t* key_tokens;
  const int32_t* value_tokens;
  int64_t query_step, key_step, value_step;
  int64_t out_step;
};

// Some pixels of a head's queries. Addresses are those of number 0.
struct AttentionTile {
  const float* query[kQueries];
  float* out[kQueries];
  const float* key;
  const float* value;
  int count;
};

// Neighbouring pixels of a channel that take their lanes from those of others; -1: outside the image.
struct Exchange {
  int64_t to, from;  // floats from the channel's first
  int64_t height, width;
  int32_t lane[kImages];
};

// Some lanes of a pixel, from one pixel of another block: `lanes` is the number of the 16 that it takes, -1: not from
// here.
struct LaneSource {
  int32_t block;
  int32_t offset;  // floats from the block's first
  int32_t lanes;
};

// Neighbouring pixels whose lanes come from several others. Pixel x has the sources from start[x] to start[x + 1].
struct LanesTask {
  const float* const* blocks;
  const LaneSource* sources;
  const int32_t* start;
  const int32_t* lanes;  // 16 by 16
};

struct Loops {
  // Measured, for a product of the dense loop: how fast one of the sparse loop is, and the weight of what is no product.
  double sparse_speed;
  double memory_cost;
  // How many pixels' sums the registers hold.
  int sparse_pixels;
  int dense_pixels;
  // The loop for tiles of this size; null: there is none.
  SparseLoop (*sparse)(int rows, int columns, int64_t stride);
  CollectLoop collect;
  DepthwiseLoop (*depthwise)(int rows, int columns, int64_t stride);
  DenseLoop (*dense)(int rows, int columns, int64_t stride);

  // How many filters lie side by side in the lanes, and the loop.
  int lane_together;
  LaneLoop lanes;

  // How many tiles are computed at once where so many filters lie together; and the loop, null: there is none.
  int (*winograd_tiles)(int64_t together);
  WinogradLoop (*winograd)(int64_t together);
  // How many filters lie together for windows of stride 2; and the loop, null: for another number there is none.
  int strided_winograd_filters;
  WinogradLoop (*strided_winograd)(int64_t together);

  // out = in * scale + shift + residual (null: none), then clamped, for n floats; n is a multiple of 16.
  void (*scale_shift)(float* out, const float* in, const float* residual, int64_t n, float scale, float shift,
                      float low, float high);
  // Null where an activation is a clamp.
  ActivationLoop (*activation)(Activation activation);
  // out = x * y, then clamped, for n floats; y's step is 16 or, for one pixel that all are multiplied by, 0.
  void (*multiply)(float* out, const float* x, const float* y, int64_t n, int64_t y_step, float low, float high);
  // to[i] = from[lane[i]], or 0 where lane[i] is -1.
  void (*permute)(float* to, const float* from, const int32_t* lane);
  // What no source has stays as it is.
  void (*take_lanes)(const LanesTask& task, float* to, int64_t pixels, int64_t offset);
  // The sums of a region, of each lane only as many rows and columns as it has.
  void (*sum)(float* sums, const Region& region, const int32_t* height, const int32_t* width);
  void (*layer_norm)(const LayerNormTask& task, float* out, const float* in, int64_t pixels);
  // `memory` has room for kQueries pixels for each of a chunk's tokens and two times for each number of a head, both
  // rounded up to a multiple of kMostKeys.
  void (*attend)(const AttentionTask& task, const AttentionTile& tile, float* memory);

  // to[i * step + lane] = the lane's number i below n; zero where it has none. And back, to those that there are.
  void (*gather)(float* to, int64_t step, const Strips& strips, int64_t n);
  void (*scatter)(const Strips& strips, const float* from, int64_t step, int64_t n);

  // sums[image] = the sum over `width` pixels of in - centre, or of its square.
  void (*row_sums)(float* sums, const float* in, int64_t width, float centre, bool squared);

  void (*exchange)(float* channel, int64_t row_stride, const Exchange* exchanges, int64_t count, float outside);

  // The largest of a region, or NaN; and the sum of a region, divided. Of neighbouring pixels, whose regions are `step`
  // floats apart.
  void (*largest)(float* out, const Region& region, int64_t pixels, int64_t step);
  void (*average)(float* out, const Region& region, float divisor, int64_t pixels, int64_t step);
};

extern const Loops loops_portable;
#ifdef LPK_X86
extern const Loops loops_avx2;
extern const Loops loops_avx512;
#endif

// Those of the instruction set in use.
const Loops& loops();

}  // namespace lpk::engine
