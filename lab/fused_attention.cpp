// Causal attention for training on a CPU: forward and backward without ever holding a T x T matrix.
//
// Forward walks over blocks of keys and keeps, for each query, the largest score so far, the sum of the weights and the
// weighted sum of the values (online softmax); it hands on the output and each row's log-sum-exp. Backward makes the
// weights again from the log-sum-exp. Source: Dao et al. 2022, arXiv 2205.14135, algorithms 1 and 4.
//
// Three small kernels do all the multiplying. Each keeps its sums in registers and multiplies vectors by one number:
//
//     dots     out[row][lane] = sum over channels of tile[channel][lane] * rows[row][channel]
//     gather   sums[channel][lane] += sum over rows of weights[row][lane] * rows[row][channel]
//     scatter  sums[row][channel]  += sum over keys of weights[row][key]  * keys[key][channel]
//
// A tile is LANES rows, turned so that each lane of a vector belongs to one row. In forward the lanes are queries: the
// softmax of each is then computed lane by lane. In backward the lanes are keys, and gather and scatter give dK, dV and
// dQ out of the same weights.
//
// What is multiplied are cells of 32 bits: a float, or, where the processor multiplies bf16 (AVX512-BF16) and the input
// is bf16, two bf16 numbers, whose products with another pair are added up in fp32. All else is the same for both.
//
// lab/fused_attention.py compiles this file for the instruction set of the machine at hand and calls the two functions
// at the end. Every sum is added up in the same order whatever the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include <omp.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

// ---------------------------------------------------------------- vectors

#if defined(__AVX512F__)
constexpr int W = 16, ROWS = 8, CHANNELS = 8;  // numbers in a vector; rows, channels that a kernel works on at once
#elif defined(__AVX2__)
constexpr int W = 8, ROWS = 4, CHANNELS = 4;
#else
constexpr int W = 4, ROWS = 4, CHANNELS = 4;
#endif
constexpr int VECTORS = 2, LANES = VECTORS * W;  // of a tile
constexpr int BLOCK = 64;                        // rows that a tile meets at once; a multiple of LANES
constexpr float HIDDEN = -1e30f, START = -1e29f;  // the score of a key that may not be looked at; the first maximum

typedef float Vec __attribute__((vector_size(4 * W), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * W), may_alias));
typedef uint32_t Naturals __attribute__((vector_size(4 * W), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline Vec load_anywhere(const float* p) {
  Vec x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline void store(float* p, Vec x) { *reinterpret_cast<Vec*>(p) = x; }
inline Vec broadcast(float x) { return x - Vec{}; }  // x - 0, unlike x + 0, is x for -0 too

inline Vec maximum(Vec a, Vec b) {
#ifdef __AVX512F__
  return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}

// 2^x for x <= 0, relative error 7.5e-8, or, if `rough`, 7.5e-5: less than a fiftieth of bf16's. 2^x = 2^n 2^f with n
// whole and f in [-1/2, 1/2], and 2^f by the polynomial of least largest relative error.
template <bool rough>
inline Vec exp2_of(Vec x) {
#ifdef __AVX512F__
  Vec n = (Vec)_mm512_roundscale_ps((__m512)x, 0);
#else
  Vec shifted = x + 12582912.0f, n = shifted - 12582912.0f;  // adding 1.5 * 2^23 leaves no room for a fraction
#endif
  Vec f = x - n, y;
  if (rough)
    y = 0.9999280733f + f * (0.6932609857f + f * (0.2426111254f + f * 0.05517166954f));
  else
    y = 1.000000072f + f * (0.6931469671f + f * (0.2402211972f + f * (0.05550713274f +
        f * (0.009675541385f + f * 0.001327647205f))));
#ifdef __AVX512F__
  return (Vec)_mm512_scalef_ps((__m512)y, (__m512)n);
#else
  y = (Vec)((Ints)y + ((Ints)shifted << 23));  // adds n to the exponent
  return x < -126.0f ? Vec{} : y;
#endif
}

inline Vec shuffle(Vec a, Vec b, Ints from) {  // lane n: a's lane from[n], or, from W on, b's
#ifdef __clang__
  Vec y;
  for (int n = 0; n < W; n++) y[n] = from[n] < W ? a[from[n]] : b[from[n] - W];
  return y;
#else
  return (Vec)__builtin_shuffle((Ints)a, (Ints)b, from);
#endif
}

// Transposes W vectors in place: exchanges the off-diagonal quarters of the square, then of each quarter, and so on.
template <int side = W / 2>
inline void transpose(Vec* x) {
  Ints upper, lower;
  for (int n = 0; n < W; n++) {
    upper[n] = n & side ? W + n - side : n;
    lower[n] = n & side ? W + n : n + side;
  }
#pragma GCC unroll 16
  for (int r = 0; r < W; r++)
    if (!(r & side)) {
      Vec a = x[r], b = x[r + side];
      x[r] = shuffle(a, b, upper), x[r + side] = shuffle(a, b, lower);
    }
  if constexpr (side > 1) transpose<side / 2>(x);
}

// ---------------------------------------------------------------- cells

typedef uint16_t Bf16;
inline float widen(float x) { return x; }
inline float widen(Bf16 x) {
  uint32_t bits = uint32_t(x) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
inline void narrow(float x, float* y) { *y = x; }
inline void narrow(float x, Bf16* y) {  // to the nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  *y = x != x ? 0x7fc0 : Bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// A cell is one float.
struct Single {
  static constexpr int size = 1;  // numbers in a cell
  static constexpr bool rough = false;
  static Vec multiply_add(Vec sum, Vec a, float b) { return sum + a * b; }
  template <class T>
  static float cell(const T* x, const T*) { return widen(*x); }
};

#ifdef __AVX512BF16__
// A cell is two bf16 numbers.
struct Pair {
  static constexpr int size = 2;
  static constexpr bool rough = true;
  static Vec multiply_add(Vec sum, Vec a, float b) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)_mm512_set1_ps(b));
  }
  static float cell(const Bf16* low, const Bf16* high) {
    uint32_t bits = *low | uint32_t(*high) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
  }
  // Lane by lane the cell (a, b), rounded to the nearest.
  static Vec join(Vec a, Vec b) {
    Naturals low = ((Naturals)a + 0x8000u) >> 16, high = ((Naturals)b + 0x8000u) & 0xffff0000u;
    return (Vec)(low | high);
  }
  // The lanes of a, then of b, as neighbours.
  static Vec in_order(Vec a, Vec b) { return (Vec)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a); }
};
#endif

// ---------------------------------------------------------------- the three kernels

template <class Cell>
void dots(const float* tile, const float* rows, int count, int cells, float* out) {
  for (int r0 = 0; r0 < count; r0 += ROWS, rows += ROWS * cells, out += ROWS * LANES) {
    Vec sums[ROWS][VECTORS] = {};
    for (int c = 0; c < cells; c++)
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; v++)
          sums[r][v] = Cell::multiply_add(sums[r][v], load(tile + c * LANES + v * W), rows[r * cells + c]);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
      for (int v = 0; v < VECTORS; v++) store(out + r * LANES + v * W, sums[r][v]);
  }
}

template <class Cell, int width>
void gather_some(float* sums, const float* weights, const float* rows, int count, int channels) {
  Vec kept[width][VECTORS];
#pragma GCC unroll 16
  for (int c = 0; c < width; c++)
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; v++) kept[c][v] = load(sums + c * LANES + v * W);
  for (int r = 0; r < count; r++)
#pragma GCC unroll 16
    for (int c = 0; c < width; c++)
#pragma GCC unroll 16
      for (int v = 0; v < VECTORS; v++)
        kept[c][v] = Cell::multiply_add(kept[c][v], load(weights + r * LANES + v * W), rows[r * channels + c]);
#pragma GCC unroll 16
  for (int c = 0; c < width; c++)
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; v++) store(sums + c * LANES + v * W, kept[c][v]);
}

template <class Cell>
void gather(float* sums, const float* weights, const float* rows, int count, int channels) {
  int c = 0;
  for (; c + CHANNELS <= channels; c += CHANNELS)
    gather_some<Cell, CHANNELS>(sums + c * LANES, weights, rows + c, count, channels);
  for (; c < channels; c += 4) gather_some<Cell, 4>(sums + c * LANES, weights, rows + c, count, channels);
}

template <class Cell>
void scatter(float* sums, const float* weights, const float* keys, int count, int channels) {
  constexpr int rows = VECTORS * ROWS, cells = LANES / Cell::size;  // here a row takes one vector
  for (int c = 0; c < channels; c += W)
    for (int r0 = 0; r0 < count; r0 += rows) {
      float* here = sums + r0 * channels + c;
      Vec kept[rows];
#pragma GCC unroll 16
      for (int r = 0; r < rows; r++) kept[r] = load(here + r * channels);
      for (int j = 0; j < cells; j++) {
        Vec key = load(keys + j * channels + c);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) kept[r] = Cell::multiply_add(kept[r], key, weights[(r0 + r) * cells + j]);
      }
#pragma GCC unroll 16
      for (int r = 0; r < rows; r++) store(here + r * channels, kept[r]);
    }
}

// ---------------------------------------------------------------- packing: from tensors to cells and back

inline int round_up(int64_t n, int to) { return int((n + to - 1) / to * to); }

// `memcpy` of a few bytes, without the call.
inline void copy(const void* from, void* to, int bytes) {
  const char* x = static_cast<const char*>(from);
  char* y = static_cast<char*>(to);
  for (; bytes >= 16; bytes -= 16, x += 16, y += 16) std::memcpy(y, x, 16);
  for (; bytes > 0; bytes -= 2, x += 2, y += 2) std::memcpy(y, x, 2);
}

// Rows of cells along channels: x[t][c] -> out[t][cell], zeros from row T and channel K on.
template <class Cell, class T>
void pack_rows(const T* x, int64_t stride, int length, int width, int rows, int cells, float* out) {
  for (int t = 0; t < length; t++, x += stride, out += cells) {
    __builtin_prefetch(x + 16 * stride);  // rows lie too far apart for the processor to guess
    std::fill(out + width / Cell::size, out + cells, 0.0f);
    if (Cell::size == 2 || sizeof(T) == 4)
      copy(x, out, width * sizeof(T));
    else
      for (int c = 0; c < width; c++) out[c] = widen(x[c]);
  }
  std::fill(out, out + int64_t(rows - length) * cells, 0.0f);
}

// Cells along rows: x[t][c] -> out[t / size][c], where each cell holds the same channel of `size` neighbouring rows.
template <class Cell, class T>
void pack_columns(const T* x, int64_t stride, int length, int width, int rows, int channels, float* out) {
  static const T zero = 0;
  int t = 0;
  for (; t < length; t += Cell::size, x += Cell::size * stride, out += channels) {
    const bool whole = t + Cell::size <= length;
    const T* next = x + (Cell::size - 1) * stride;
    for (int c = 0; c < width; c++) out[c] = Cell::cell(x + c, whole ? next + c : &zero);
    std::fill(out + width, out + channels, 0.0f);
  }
  std::fill(out, out + int64_t(rows - t) / Cell::size * channels, 0.0f);
}

// LANES rows of cells, turned: rows[lane][cell] -> tile[cell][lane]. Reads up to W floats beyond the rows.
void turn(const float* rows, int cells, float* tile) {
  for (int c = 0; c < cells; c += W)
    for (int v = 0; v < VECTORS; v++) {
      Vec x[W];
      for (int n = 0; n < W; n++) x[n] = load_anywhere(rows + (v * W + n) * cells + c);
      transpose(x);
      for (int n = 0; n < std::min(W, cells - c); n++) store(tile + (c + n) * LANES + v * W, x[n]);
    }
}

// The first `count` numbers of a vector, rounded to T.
template <class T>
inline void put(Vec x, int count, T* out) {
  T narrowed[W];
#ifdef __AVX512BF16__
  if (sizeof(T) == 2) {
    __m256bh y = _mm512_cvtneps_pbh((__m512)x);
    std::memcpy(narrowed, &y, sizeof narrowed);
  } else
#endif
    for (int n = 0; n < W; n++) narrow(x[n], narrowed + n);
  if (count >= W)
    std::memcpy(out, narrowed, sizeof narrowed);
  else
    copy(narrowed, out, count * sizeof(T));
}

// sums[channel][lane] -> x[lane][channel], times `scale`, for the rows that there are. Reads up to W vectors too many.
template <class T>
void unpack_tile(const float* sums, float scale, int count, int width, T* x, int64_t stride) {
  for (int c = 0; c < width; c += W)
    for (int v = 0; v < VECTORS; v++) {
      Vec turned[W];
      for (int n = 0; n < W; n++) turned[n] = load(sums + (c + n) * LANES + v * W) * scale;
      transpose(turned);
      for (int n = 0; n < std::min(W, count - v * W); n++) put(turned[n], width - c, x + (v * W + n) * stride + c);
    }
}

// ---------------------------------------------------------------- the problem, as Python describes it

struct View {  // of a tensor (B, heads, T, channels): strides in numbers, channels side by side
  void* data;
  int64_t b, h, t;
};

struct Problem {
  int64_t B, H, G, T, K, V;  // V: channels of a value
  int64_t window;            // T where there is none
  int64_t bf16;              // the numbers' type, else float
  int64_t threads;
  double scale;             // of the scores
  const int64_t* segments;  // (B, T), or null
  View q, k, v, out, grad_out, grad_q, grad_k, grad_v;
  float* lse;  // (B, H, T): log2 of the sum of each row's 2^(score * scale * log2 e)
};

template <class T>
T* head(const View& x, int64_t b, int64_t h) {
  return static_cast<T*>(x.data) + b * x.b + h * x.h;
}

// Which queries may look at which keys of one row of the batch.
struct Mask {
  int length, window;
  const int32_t* segment;  // of each position, or null
  const int32_t *start, *stop;  // outside of positions start..stop-1 there is none of the same segment
  const int32_t* run;           // where the unbroken run of the position's segment begins

  // Keys that queries i..i+LANES-1 have to meet begin here.
  int first_key(int i) const {
    int first = std::max(0, i + 1 - window);
    if (segment) first = std::max(first, int(start[i]));
    return first / LANES * LANES;
  }
  // Queries that have to meet keys j..j+LANES-1 end before this one.
  int last_query(int j) const {
    int last = std::min(length, j + LANES - 1 + window);
    if (segment) last = std::min(last, int(stop[std::min(j + LANES, length) - 1]));
    return round_up(last, LANES);
  }
  // Whether all queries i..i_end-1 may look at all keys j..j_end-1.
  bool open(int i, int i_end, int j, int j_end) const {
    if (j_end - 1 > i || i_end - 1 - j >= window) return false;
    return !segment || run[std::min(i_end, length) - 1] <= j;
  }
  // Lane by lane: may they look? lanes: positions from `lane` on; `sign` is 1 where the lanes are queries, else -1.
  Ints allowed(int lane, int row, int sign) const {
    static const int32_t counting[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    Ints distance, same;
    std::memcpy(&distance, counting, sizeof distance);
    distance = (distance + (lane - row)) * sign;
    Ints near = (Naturals)distance < uint32_t(window);  // a negative distance is a huge natural number
    if (!segment) return near;
    std::memcpy(&same, segment + lane, sizeof same);
    return near & (same == segment[row]);
  }
};

// The segments of the whole batch, prepared for Mask: four numbers for each of B x `padded` positions.
struct Segments {
  int padded;
  std::vector<int32_t> numbers[4];  // segment, start, stop, run

  explicit Segments(const Problem& p) : padded(round_up(p.T, BLOCK)) {
    if (!p.segments) return;
    for (auto& n : numbers) n.assign(p.B * padded, -1);
    for (int64_t b = 0; b < p.B; b++) prepare(p.segments + b * p.T, int(p.T), b * padded);
  }

  void prepare(const int64_t* given, int length, int64_t at) {
    int32_t *segment = &numbers[0][at], *start = &numbers[1][at], *stop = &numbers[2][at], *run = &numbers[3][at];
    std::vector<int64_t> known(given, given + length);  // sorted: a segment's place in it is its number from now on
    bool ordered = std::is_sorted(known.begin(), known.end());
    std::sort(known.begin(), known.end());
    for (int t = 0; t < length; t++) {
      segment[t] = int32_t(std::lower_bound(known.begin(), known.end(), given[t]) - known.begin());
      run[t] = t && given[t] == given[t - 1] ? run[t - 1] : t;
      start[t] = ordered ? run[t] : 0;
    }
    for (int t = length - 1; t >= 0; t--)
      stop[t] = !ordered || t == length - 1 ? length : given[t] == given[t + 1] ? stop[t + 1] : t + 1;
  }

  Mask mask(const Problem& p, int64_t b) const {
    Mask m = {int(p.T), int(p.window), nullptr, nullptr, nullptr, nullptr};
    if (p.segments) {
      int64_t at = b * padded;
      m.segment = &numbers[0][at], m.start = &numbers[1][at], m.stop = &numbers[2][at], m.run = &numbers[3][at];
    }
    return m;
  }
};

// Sizes of packed things, and the memory that one thread works in.
template <class Cell>
struct Sizes {
  int rows, k_cells, v_cells, k_channels, v_channels, k_wide;
  explicit Sizes(const Problem& p)
      : rows(round_up(p.T, BLOCK)),
        k_channels(round_up(p.K, 4)),
        v_channels(round_up(p.V, 4)),
        k_wide(round_up(p.K, W)) {
    k_cells = k_channels / Cell::size, v_cells = v_channels / Cell::size;
  }
};

inline float* row(float* x, int64_t n, int width) { return x + n * width; }

struct Memory {
  float* next;
  float* take(int64_t count) {
    float* here = next;
    next += round_up(count, 16);
    return here;
  }
};

// ---------------------------------------------------------------- forward

template <class Cell>
int64_t forward_memory(const Problem& p) {
  Sizes<Cell> n(p);
  return int64_t(n.rows) * (2 * n.k_cells + n.v_channels) + LANES * (n.k_cells + n.v_channels + BLOCK) + 256;
}

// One block of keys: scores become weights; the running maximum and sum, and what was summed up before, follow.
template <class Cell>
void weigh(float* scores, int count, float scale, Vec* top, Vec* total, float* sums, int channels) {
  for (int v = 0; v < VECTORS; v++) {
    Vec highest = top[v];
    for (int r = 0; r < count; r++) highest = maximum(highest, load(scores + r * LANES + v * W));
    Vec fade = exp2_of<Cell::rough>((top[v] - highest) * scale), shift = highest * scale, sum = total[v] * fade;
    for (int c = 0; c < channels; c++) store(sums + c * LANES + v * W, load(sums + c * LANES + v * W) * fade);
    for (int r = 0; r < count; r += 2) {
      float* here = scores + r * LANES + v * W;
      Vec a = exp2_of<Cell::rough>(load(here) * scale - shift);
      Vec b = exp2_of<Cell::rough>(load(here + LANES) * scale - shift);
      sum += a + b;
      if constexpr (Cell::size == 2) {
        store(scores + r / 2 * LANES + v * W, Cell::join(a, b));
      } else {
        store(here, a), store(here + LANES, b);
      }
    }
    top[v] = highest, total[v] = sum;
  }
}

template <class Cell, class T>
void forward_head(const Problem& p, const Mask& mask, int64_t b, int64_t h, Memory memory) {
  Sizes<Cell> n(p);
  const int64_t g = h / (p.H / p.G);
  const int length = int(p.T);
  const float scale = float(p.scale * 1.4426950408889634);  // weights are powers of 2
  float *queries = memory.take(int64_t(n.rows) * n.k_cells), *keys = memory.take(int64_t(n.rows) * n.k_cells);
  float *values = memory.take(int64_t(n.rows) * n.v_channels), *tile = memory.take(LANES * n.k_cells);
  float *sums = memory.take(LANES * n.v_channels), *scores = memory.take(LANES * BLOCK);
  pack_rows<Cell>(head<T>(p.q, b, h), p.q.t, length, int(p.K), n.rows, n.k_cells, queries);
  pack_rows<Cell>(head<T>(p.k, b, g), p.k.t, length, int(p.K), n.rows, n.k_cells, keys);
  pack_columns<Cell>(head<T>(p.v, b, g), p.v.t, length, int(p.V), n.rows, n.v_channels, values);

  for (int i = 0; i < length; i += LANES) {
    turn(row(queries, i, n.k_cells), n.k_cells, tile);
    Vec top[VECTORS], total[VECTORS] = {};
    for (Vec& t : top) t = broadcast(START);
    std::fill(sums, sums + LANES * n.v_channels, 0.0f);
    for (int j = mask.first_key(i), j_end; j < i + LANES; j = j_end) {
      j_end = std::min(j + BLOCK, i + LANES);
      dots<Cell>(tile, row(keys, j, n.k_cells), j_end - j, n.k_cells, scores);
      if (!mask.open(i, i + LANES, j, j_end))
        for (int r = j; r < j_end; r++)
          for (int v = 0; v < VECTORS; v++) {
            float* here = scores + (r - j) * LANES + v * W;
            store(here, mask.allowed(i + v * W, r, 1) ? load(here) : broadcast(HIDDEN));
          }
      weigh<Cell>(scores, j_end - j, scale, top, total, sums, n.v_channels);
      gather<Cell>(sums, scores, row(values, j / Cell::size, n.v_channels), (j_end - j) / Cell::size, n.v_channels);
    }
    for (int c = 0; c < n.v_channels; c++)
      for (int v = 0; v < VECTORS; v++) store(sums + c * LANES + v * W, load(sums + c * LANES + v * W) / total[v]);
    const int count = std::min(LANES, length - i);
    unpack_tile(sums, 1.0f, count, int(p.V), head<T>(p.out, b, h) + i * p.out.t, p.out.t);
    for (int lane = 0; lane < count; lane++)
      p.lse[(b * p.H + h) * p.T + i + lane] = top[lane / W][lane % W] * scale + std::log2(total[lane / W][lane % W]);
  }
}

// ---------------------------------------------------------------- backward

template <class Cell>
int64_t backward_memory(const Problem& p) {
  Sizes<Cell> n(p);
  int64_t tiles = n.k_cells + n.v_cells + n.k_channels + n.v_channels + n.k_wide;
  int64_t rows = n.k_cells + n.k_channels + n.v_cells + n.v_channels + n.k_wide + 2;
  return n.rows * (tiles + rows) + 3 * LANES * BLOCK + 512;
}

// The rows of one query head, packed.
template <class Cell, class T>
struct Queries {
  float *rows, *columns, *grad_rows, *grad_columns, *sums, *lse, *delta;

  Queries(const Sizes<Cell>& n, Memory& memory)
      : rows(memory.take(int64_t(n.rows) * n.k_cells)),
        columns(memory.take(int64_t(n.rows) * n.k_channels)),
        grad_rows(memory.take(int64_t(n.rows) * n.v_cells)),
        grad_columns(memory.take(int64_t(n.rows) * n.v_channels)),
        sums(memory.take(int64_t(n.rows) * n.k_wide)),
        lse(memory.take(n.rows)),
        delta(memory.take(n.rows)) {}

  // grad . out: the sum over keys of a weight times its gradient
  static float product(const T* grad, const T* out, int width) {
    float sums[8] = {};
    int c = 0;
    for (; c + 8 <= width; c += 8)
      for (int n = 0; n < 8; n++) sums[n] += widen(grad[c + n]) * widen(out[c + n]);
    for (; c < width; c++) sums[0] += widen(grad[c]) * widen(out[c]);
    return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
  }

  void fill(const Problem& p, const Sizes<Cell>& n, int64_t b, int64_t h) {
    const int length = int(p.T), K = int(p.K), V = int(p.V);
    const T *q = head<T>(p.q, b, h), *grad = head<T>(p.grad_out, b, h), *out = head<T>(p.out, b, h);
    pack_rows<Cell>(q, p.q.t, length, K, n.rows, n.k_cells, rows);
    pack_rows<Cell>(grad, p.grad_out.t, length, V, n.rows, n.v_cells, grad_rows);
    pack_columns<Cell>(q, p.q.t, length, K, n.rows, n.k_channels, columns);
    pack_columns<Cell>(grad, p.grad_out.t, length, V, n.rows, n.v_channels, grad_columns);
    std::fill(sums, sums + int64_t(n.rows) * n.k_wide, 0.0f);
    std::fill(lse, lse + n.rows, 0.0f);
    std::fill(delta, delta + n.rows, 0.0f);
    std::copy(p.lse + (b * p.H + h) * p.T, p.lse + (b * p.H + h + 1) * p.T, lse);
    for (int t = 0; t < length; t++) delta[t] = product(grad + t * p.grad_out.t, out + t * p.out.t, V);
  }
};

// Scores and the gradients of the weights, [row][lane], become weights and the gradients of the scores. For pairs these
// are then laid out as gather wants them, the cells along rows, and `in_order` as scatter does, along keys.
template <class Cell>
void weigh_again(float* scores, float* grads, float* in_order, int count, float scale, const float* lse,
                 const float* delta, const Mask* mask, int i, int j) {
  for (int r = 0; r < count; r += 2) {
    Vec weight[2][VECTORS], grad[2][VECTORS];
#pragma GCC unroll 2
    for (int s = 0; s < 2; s++)
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; v++) {
        int at = (r + s) * LANES + v * W;
        weight[s][v] = exp2_of<Cell::rough>(load(scores + at) * scale - lse[r + s]);
        if (mask) weight[s][v] = mask->allowed(j + v * W, i + r + s, -1) ? weight[s][v] : Vec{};
        grad[s][v] = weight[s][v] * (load(grads + at) - delta[r + s]);
      }
    if constexpr (Cell::size == 2) {
      for (int v = 0; v < VECTORS; v++) {
        store(scores + r / 2 * LANES + v * W, Cell::join(weight[0][v], weight[1][v]));
        store(grads + r / 2 * LANES + v * W, Cell::join(grad[0][v], grad[1][v]));
      }
      for (int s = 0; s < 2; s++) store(in_order + (r + s) * LANES / 2, Cell::in_order(grad[s][0], grad[s][1]));
    } else {
      for (int s = 0; s < 2; s++)
        for (int v = 0; v < VECTORS; v++) {
          store(scores + (r + s) * LANES + v * W, weight[s][v]);
          store(grads + (r + s) * LANES + v * W, grad[s][v]);
        }
    }
  }
}

template <class Cell, class T>
void backward_group(const Problem& p, const Mask& mask, int64_t b, int64_t g, Memory memory) {
  Sizes<Cell> n(p);
  const int length = int(p.T);
  const float scale = float(p.scale * 1.4426950408889634);
  float *k_tiles = memory.take(int64_t(n.rows) * n.k_cells), *v_tiles = memory.take(int64_t(n.rows) * n.v_cells);
  float *k_sums = memory.take(int64_t(n.rows) * n.k_channels), *v_sums = memory.take(int64_t(n.rows) * n.v_channels);
  float* keys = memory.take(int64_t(n.rows) * n.k_wide);
  Queries<Cell, T> queries(n, memory);
  float *scores = memory.take(LANES * BLOCK), *grads = memory.take(LANES * BLOCK);
  float* in_order = Cell::size == 2 ? memory.take(LANES * BLOCK) : grads;
  const T *k = head<T>(p.k, b, g), *v = head<T>(p.v, b, g);

  pack_rows<Cell>(k, p.k.t, length, int(p.K), n.rows, n.k_cells, queries.rows);  // lent until the heads need it
  pack_rows<Cell>(v, p.v.t, length, int(p.V), n.rows, n.v_cells, queries.grad_rows);
  for (int j = 0; j < n.rows; j += LANES) {
    turn(row(queries.rows, j, n.k_cells), n.k_cells, row(k_tiles, j, n.k_cells));
    turn(row(queries.grad_rows, j, n.v_cells), n.v_cells, row(v_tiles, j, n.v_cells));
  }
  pack_columns<Cell>(k, p.k.t, length, int(p.K), n.rows, n.k_wide, keys);
  std::fill(k_sums, k_sums + int64_t(n.rows) * n.k_channels, 0.0f);
  std::fill(v_sums, v_sums + int64_t(n.rows) * n.v_channels, 0.0f);

  for (int64_t h = g * (p.H / p.G); h < (g + 1) * (p.H / p.G); h++) {
    queries.fill(p, n, b, h);
    for (int j = 0; j < length; j += LANES)
      for (int i = j, i_end, last = mask.last_query(j); i < last; i = i_end) {
        i_end = std::min(i + BLOCK, last);
        const int count = i_end - i;
        const int cell = i / Cell::size, cells = count / Cell::size;
        const Mask* masked = mask.open(i, i_end, j, j + LANES) ? nullptr : &mask;
        dots<Cell>(row(k_tiles, j, n.k_cells), row(queries.rows, i, n.k_cells), count, n.k_cells, scores);
        dots<Cell>(row(v_tiles, j, n.v_cells), row(queries.grad_rows, i, n.v_cells), count, n.v_cells, grads);
        weigh_again<Cell>(scores, grads, in_order, count, scale, queries.lse + i, queries.delta + i, masked, i, j);
        gather<Cell>(row(v_sums, j, n.v_channels), scores, row(queries.grad_columns, cell, n.v_channels), cells,
                     n.v_channels);
        gather<Cell>(row(k_sums, j, n.k_channels), grads, row(queries.columns, cell, n.k_channels), cells,
                     n.k_channels);
        scatter<Cell>(row(queries.sums, i, n.k_wide), in_order, row(keys, j / Cell::size, n.k_wide), count, n.k_wide);
      }
    T* grad_q = head<T>(p.grad_q, b, h);
    for (int t = 0; t < length; t++)
      for (int c = 0; c < p.K; c += W)
        put(load(row(queries.sums, t, n.k_wide) + c) * float(p.scale), int(p.K) - c, grad_q + t * p.grad_q.t + c);
  }
  for (int j = 0; j < length; j += LANES) {
    const int count = std::min(LANES, length - j);
    T *grad_k = head<T>(p.grad_k, b, g) + j * p.grad_k.t, *grad_v = head<T>(p.grad_v, b, g) + j * p.grad_v.t;
    unpack_tile(row(k_sums, j, n.k_channels), float(p.scale), count, int(p.K), grad_k, p.grad_k.t);
    unpack_tile(row(v_sums, j, n.v_channels), 1.0f, count, int(p.V), grad_v, p.grad_v.t);
  }
}

// ---------------------------------------------------------------- threads

// Calls work(mask, b, head, memory) for every row of the batch and each of its heads; false where memory is short.
template <class Work>
bool for_each_head(const Problem& p, int64_t heads, int64_t floats, Work work) {
  const Segments segments(p);
  const int64_t tasks = p.B * heads, share = (floats + 15) / 16 * 16;  // whole cache lines
  const int threads = int(std::min(p.threads, tasks));
  float* memory = static_cast<float*>(std::aligned_alloc(64, threads * share * sizeof(float)));
  if (!memory) return false;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t n = 0; n < tasks; n++)
    work(segments.mask(p, n / heads), n / heads, n % heads, Memory{memory + omp_get_thread_num() * share});
  std::free(memory);
  return true;
}

template <class Cell, class T>
bool forward(const Problem& p) {
  return for_each_head(p, p.H, forward_memory<Cell>(p), [&](const Mask& mask, int64_t b, int64_t h, Memory memory) {
    forward_head<Cell, T>(p, mask, b, h, memory);
  });
}

template <class Cell, class T>
bool backward(const Problem& p) {
  return for_each_head(p, p.G, backward_memory<Cell>(p), [&](const Mask& mask, int64_t b, int64_t g, Memory memory) {
    backward_group<Cell, T>(p, mask, b, g, memory);
  });
}

#ifdef __AVX512BF16__
using Cell16 = Pair;
#else
using Cell16 = Single;  // bf16 numbers are widened to floats
#endif

}  // namespace

// Both return whether there was memory enough.
extern "C" bool attention_forward(const Problem* p) {
  return p->bf16 ? forward<Cell16, Bf16>(*p) : forward<Single, float>(*p);
}
extern "C" bool attention_backward(const Problem* p) {
  return p->bf16 ? backward<Cell16, Bf16>(*p) : backward<Single, float>(*p);
}
