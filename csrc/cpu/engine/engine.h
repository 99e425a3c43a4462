// The inference engine's operations. Activations are stored in blocks of 16 images with the batch innermost,
// [blocks][height + 2 border][channels][width + 2 border][16]: one pixel of 16 images is one cache line, and what a
// piece of a row is computed from lies close together, in few pages of memory. (Strides are told, and any others work.)
// The last block is filled up with images of zeros. The border is zero and no operation writes into it: a convolution
// reads its padding there, and its inner loop has no special cases.
//
// An image may be cut into patches of equal size, rows x columns of them, and a lane (one of the 16) holds a patch
// instead of an image: the same loops then compute up to 16 parts of one image at once. Patches may reach beyond the
// image; the pixels there are zero. The border of a patch holds its neighbours' pixels, and zeros outside the image:
// exchange_borders puts them there after each operation.
//
// Every output is computed by one thread in one fixed order: the bits do not depend on the number of threads.
// Addresses are multiples of 64; sizes were checked by the caller (lpk/sparse).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace lpk::engine {

constexpr int64_t kImages = 16;  // lanes: images or patches in a block

// How an image is cut.
struct Patches {
  int64_t rows, columns;
  int64_t image_height, image_width;

  int64_t count() const { return rows * columns; }
};

// Some blocks of all there are, and where the first of them lies in what has its memory by thread.
struct Part {
  int64_t first, count, place;
};

struct Activations {
  float* data;
  int64_t blocks;
  int64_t channels;
  int64_t height;  // of a patch
  int64_t width;
  int64_t border;
  // Floats from one block, channel and row to the next: more than lies between where this is a slice of the channels.
  int64_t block_stride;
  int64_t channel_stride;
  int64_t row_stride;
  Patches patches;
  bool by_thread;  // there is memory for as many of the blocks as threads are at work: see operation.h

  int64_t rows() const { return blocks * height; }
  int64_t pixels() const { return blocks * channels * height * width; }
  Activations some(const Part& part) const {
    Activations x = *this;
    x.data += (by_thread ? part.place : part.first) * block_stride;
    x.blocks = part.count;
    return x;
  }
  // The address of a pixel of channel 0; y and x may lie in the border.
  float* pixel(int64_t block, int64_t y, int64_t x) const {
    return data + block * block_stride + (y + border) * row_stride + (x + border) * kImages;
  }
};

struct Convolution {
  int64_t filters;
  int64_t channels;
  int64_t groups;
  int64_t kernel_height, kernel_width;
  int64_t stride_y, stride_x;
  int64_t padding_y, padding_x;
  int64_t dilation_y, dilation_x;

  int64_t group_channels() const { return channels / groups; }
  int64_t group_filters() const { return filters / groups; }
  int64_t window() const { return kernel_height * kernel_width; }
  int64_t weights() const { return group_channels() * window(); }  // of one filter
};

// A window that a pooling slides over the image.
struct Window {
  int64_t height, width;
  int64_t stride_y, stride_x;
  int64_t padding_y, padding_x;
  int64_t dilation_y, dilation_x;
};

enum Activation : int {
  kIdentity = 0,
  kRelu = 1,
  kRelu6 = 2,
  kSilu = 3,
  kHardswish = 4,
  kHardsigmoid = 5,
  kSigmoid = 6,
  kTanh = 7,
  kGelu = 8,
  kGeluTanh = 9,  // with tanh in place of erf
  kLeakyRelu = 10,
  kElu = 11,
};

// What follows a convolution's sum: * scale and + bias of the filter, + residual, activation. Null: left out.
struct Epilogue {
  const float* scale;
  const float* bias;
  const Activations* residual;
  Activation activation;
  float slope;  // leaky relu's, and elu's alpha
};

// One weight that is not zero, and where its first input lies: floats from the corner of the window in channel 0.
struct NonZero {
  float value;
  int32_t offset;
};

// The filters' weights that are not zero. The input channels are cut into blocks of `channels_per_block`; filter k has,
// in block b, the entries from start[b * filters + k] to the next start.
//
// Windows of one pixel can be computed on gathered pixels: of `gathered` outputs, the inputs are copied next to each
// other first, [channels][gathered][16], and offsets are into that. 0: they are read where they are.
struct SparseFilters {
  const NonZero* entries;
  const int64_t* start;
  const int64_t* work;  // about how long the filters before each take
  int64_t channels_per_block;
  int64_t gathered;
};

// The filters of each group, four by four: [groups][fours][weights][4], filled up with zeros; and where the input of
// each of the `weights` lies, in floats from the corner of the window in the group's first channel.
struct DenseFilters {
  const float* weights;
  const int32_t* offsets;
};

constexpr int64_t kFour = 4;

// All weights with the filters in the lanes, `together` of them side by side: [filters / together][weights][together],
// filled up with zeros. A pixel of one image is broadcast: what has few pixels leaves no lane empty.
struct LaneFilters {
  const float* weights;
  const int32_t* offsets;  // as of DenseFilters
  int64_t together;
};

// The weights of a 3 x 3 convolution with stride 1, transformed for Winograd's F(4 x 4, 3 x 3): `together` filters side
// by side, [filters / together][36][channels][together], filled up with zeros. Of a 7 x 7 convolution with stride 2,
// [filters / together][169 * channels][together] in the order of winograd.h.
struct WinogradFilters {
  const float* weights;
  int64_t together;
};

constexpr int64_t kWindow = 6;   // pixels, squared, that Winograd's transforms take
constexpr int64_t kOutputs = 4;  // pixels, squared, that come out
constexpr int64_t kPositions = kWindow * kWindow;

// An ordinary tensor of these strides into blocks, and back.
void pack_input(const Activations& out, const float* in, int64_t batch, const int64_t* strides, int threads);
void unpack_output(float* out, const Activations& in, int64_t batch, const int64_t* strides, int threads);

// Fills the border of every patch, and what of it lies behind the image's end. What comes from where is the same for all
// channels and blocks.
struct Exchange;
std::shared_ptr<const std::vector<Exchange>> exchanges_of(const Activations& x);
void exchange_borders(const Activations& x, const std::vector<Exchange>& exchanges, float outside, int threads);

// The pixels in their order, as those of images of another cut, height and width, or every so many of them; for `images`
// of them, from the first one in out on, which is number `first` in in. Pixels of patches outside the image, and lanes
// without one, are left as they are. What comes from where is the same for all images.
struct Moves;
std::shared_ptr<const Moves> moves_of(const Activations& out, const Activations& in, int64_t stride_y,
                                      int64_t stride_x);
void relayout(const Activations& out, const Activations& in, const Moves& moves, int64_t first, int64_t images,
              int threads);

// The weights are contiguous: [filters][channels / groups][kernel_height][kernel_width]. First the starts, then as many
// entries as the last start says.
void count_filters(int64_t* start, const float* weights, const Convolution& convolution, int64_t channels_per_block,
                   int threads);
void pack_filters(NonZero* entries, const int64_t* start, const float* weights, const Convolution& convolution,
                  const Activations& in, int64_t channels_per_block, int64_t gathered, int threads);
// How many pixels should be gathered, 0: none; and how many input channels a block of the filters should then have.
int64_t best_gathered(const Convolution& convolution, const Activations& in, int64_t nonzeros);
int64_t best_channels_per_block(const Convolution& convolution, const Activations& out, int64_t nonzeros,
                                int64_t gathered);
void sparse_convolution(const Activations& out, const Activations& in, const Convolution& convolution,
                        const SparseFilters& filters, const Epilogue& epilogue, int threads);

// The same with the filters as machine code (compiled.h): if there is any for the instruction set in use, and the
// system lets memory become executable; and if the inputs of a window lie no further apart than an instruction reaches.
bool compiles();
bool compiles(const Convolution& convolution, const Activations& in);
class CompiledFilters;
void compiled_convolution(const Activations& out, const Activations& in, const Convolution& convolution,
                          const CompiledFilters& filters, const Epilogue& epilogue, int threads);

// Where each group has one input channel: the filters are in one block.
void depthwise_convolution(const Activations& out, const Activations& in, const Convolution& convolution,
                           const SparseFilters& filters, const Epilogue& epilogue, int threads);

int64_t dense_filters_size(const Convolution& convolution);
void pack_dense_filters(float* packed, int32_t* offsets, const float* weights, const Convolution& convolution,
                        const Activations& in, int threads);
void dense_convolution(const Activations& out, const Activations& in, const Convolution& convolution,
                       const DenseFilters& filters, const Epilogue& epilogue, int threads);

// Of one group, and for outputs of one pixel, of which the first `lanes` lanes of all blocks are computed.
int64_t lane_together();
void pack_lane_filters(float* packed, int32_t* offsets, const float* weights, const Convolution& convolution,
                       const Activations& in, int64_t together, int threads);
void lane_convolution(const Activations& out, const Activations& in, const Convolution& convolution,
                      const LaneFilters& filters, int64_t lanes, const Epilogue& epilogue, int threads);

// Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2016): 36 products take the place of 144; and of
// windows of 7 x 7 with stride 2, 169 the place of 784.
bool winograd_applies(const Convolution& convolution);
int64_t winograd_together(const Convolution& convolution, const Activations& out);
int64_t winograd_filters_size(const Convolution& convolution, int64_t together);
void pack_winograd_filters(float* packed, const float* weights, const Convolution& convolution, int64_t together,
                           int threads);
void winograd_convolution(const Activations& out, const Activations& in, const Convolution& convolution,
                          const WinogradFilters& filters, const Epilogue& epilogue, int threads);

// About how long a block of images takes, where `share` of the weights is not zero, for one that the dense convolution
// takes; infinite where an algorithm does not apply. The same for every number of blocks and threads.
double sparse_cost(const Convolution& convolution, const Activations& out, double share);
double compiled_cost(const Convolution& convolution, const Activations& out, double share);
double lane_cost(const Convolution& convolution, const Activations& out, int64_t lanes);
double winograd_cost(const Convolution& convolution, const Activations& out);

// The mean and the unbiased variance of each channel over the images below `batch` and all pixels.
void channel_statistics(double* mean, double* variance, const Activations& in, int64_t batch, int threads);

// The epilogue alone, on in instead of sums. out may be in or the residual.
void scale_shift(const Activations& out, const Activations& in, const Epilogue& epilogue, int threads);

// The product, then the activation. y is like x, or it has one pixel and is not cut: the channel's factor for all pixels
// of an image. x starts with block `first` of those that y's images have. out may be x.
void multiply(const Activations& out, const Activations& x, const Activations& y, Activation activation, float slope,
              int64_t first, int threads);

// Over the channels, for each pixel: (in - mean) / sqrt(variance + epsilon) * weight + bias (null: left out). out may be
// in.
struct LayerNorm {
  const float* weight;
  const float* bias;
  float epsilon;
};
void layer_norm(const Activations& out, const Activations& in, const LayerNorm& norm, int threads);

// Where the heads of queries, keys or values lie among the channels: number i of head h is channel
// first + h * head + i * step.
struct Heads {
  int64_t first, head, step;
};

// softmax(scale * queries · keys) · values, for each head. Channel h * size + i of out is number i of head h.
struct Attention {
  Heads query, key, value;
  int64_t heads;
  int64_t size;  // numbers of a head
  float scale;
};

// Where the tokens of a sample lie, which are the pixels of its image: floats from a channel's first. One sample is in a
// block, and is cut into 16 patches; of the keys and of the values alike.
std::vector<int32_t> tokens_of(const Activations& x);
struct Tokens {
  std::vector<int32_t> key, value;
};
void attention(const Activations& out, const Activations& query, const Activations& key, const Activations& value,
               const Attention& attention, const Tokens& tokens, int threads);

// Channel i of out is channel channels[i] of in.
void pick_channels(const Activations& out, const Activations& in, const int64_t* channels, int threads);

void max_pool(const Activations& out, const Activations& in, const Window& window, int threads);
void average_pool(const Activations& out, const Activations& in, const Window& window, bool count_padding, int threads);
// in may be cut into patches, out is not; out starts with block `first` of those that in's images have.
void global_average_pool(const Activations& out, const Activations& in, int64_t first, int threads);

}  // namespace lpk::engine
