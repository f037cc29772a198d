// Products with int8 and 4-bit weights on x86-64. Layout and grids: grids.py beside this file.
//
// Inputs are quantized to int8 in blocks of 64, products of integers are exact in 32 bits and
// scaled in fp32; or inputs stay as they are and weights are unpacked to fp32. Threads share the
// outputs in blocks of 16. With AVX2 a few rows of the inputs at a time multiply each row of
// weights while it is in registers, and what a register holds is added up in the end; with
// AVX-512 the 16 outputs are turned into lanes first, each of which adds up its own. Buffers are
// kept between calls, by thread. At the end these become operators of torch, by its stable ABI,
// which compiles in seconds.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t BLOCK = 64;         // inputs that share the scale of an int8 activation
constexpr int64_t OUTPUT_BLOCK = 16;  // outputs that a thread takes at a time
constexpr int ROWS = 8;               // rows of inputs that meet a row of weights in registers
constexpr int64_t SMALL = 1 << 16;    // products that are not worth waking another thread for

enum Dtype : int32_t { FP32, FP16, BF16 };

// What one product is about. Addresses may be null where a name is optional.
struct Product {
  const void* x;               // (rows, inputs) of dtype
  void* y;                     // (rows, outputs) of dtype
  const uint16_t* input_scale; // fp16 (inputs,), optional
  const void* bias;            // (outputs,) of dtype, optional
  const uint8_t* weight;       // as grids.py has it
  const void* scale;           // fp16 (outputs, groups) of 4 bits, fp32 (outputs,) of int8
  const uint8_t* zero;         // (outputs, ceil(groups / 2)) of 4 bits
  int64_t rows, inputs, outputs, blocks, groups;
  int32_t dtype, threads;
  bool is_fine;                // two groups in a block
  const int32_t* group_of;     // by half block of 32 inputs

  int64_t room() const { return (groups + 7) / 8 * 8; }  // for the numbers of an output's groups
};

// Inputs as the integer kernels read them.
struct Quantized {
  std::vector<int8_t> q;        // (rows, blocks * 64)
  std::vector<float> scale;     // (rows, blocks)
  std::vector<float> sums;      // (rows, room): scale times sum of q, by group of the weights
  std::vector<int32_t> block_sums;  // (rows, blocks) of q
};

#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")))

AVX2 inline void read_row(const Product& p, int64_t row, float* out) {
  const int64_t n = p.inputs;
  if (p.dtype == FP32) {
    std::memcpy(out, static_cast<const float*>(p.x) + row * n, n * sizeof(float));
  } else {
    const uint16_t* x = static_cast<const uint16_t*>(p.x) + row * n;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i));
      const __m256 wide = p.dtype == FP16
          ? _mm256_cvtph_ps(half)
          : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
      _mm256_storeu_ps(out + i, wide);
    }
    for (; i < n; ++i) {
      const uint32_t bits = uint32_t(x[i]) << 16;
      if (p.dtype == FP16) out[i] = _cvtsh_ss(x[i]);
      else std::memcpy(out + i, &bits, 4);
    }
  }
  if (p.input_scale) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p.input_scale + i));
      _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_loadu_ps(out + i), _mm256_cvtph_ps(half)));
    }
    for (; i < n; ++i) out[i] *= _cvtsh_ss(p.input_scale[i]);
  }
  std::fill(out + n, out + p.blocks * BLOCK, 0.0f);
}

AVX2 inline void write(const Product& p, int64_t row, int64_t first, int64_t count,
                       const float* y) {
  const int64_t at = row * p.outputs + first;
  if (p.dtype == FP32) {
    std::memcpy(static_cast<float*>(p.y) + at, y, count * sizeof(float));
    return;
  }
  uint16_t* out = static_cast<uint16_t*>(p.y) + at;
  for (int64_t i = 0; i < count; ++i) {
    if (p.dtype == FP16) {
      out[i] = _cvtss_sh(y[i], _MM_FROUND_TO_NEAREST_INT);
    } else {  // to nearest, ties to even; NaN stays one
      uint32_t bits;
      std::memcpy(&bits, y + i, 4);
      const bool is_nan = std::isnan(y[i]);
      out[i] = is_nan ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
  }
}

AVX2 inline float bias_of(const Product& p, int64_t n) {
  if (!p.bias) return 0.0f;
  if (p.dtype == FP32) return static_cast<const float*>(p.bias)[n];
  const uint16_t half = static_cast<const uint16_t*>(p.bias)[n];
  if (p.dtype == FP16) return _cvtsh_ss(half);
  const uint32_t bits = uint32_t(half) << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
}

AVX2 inline float sum(__m256 v) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

// A block of 64: its absmax / 127, its int8 numbers, and their sums of 32 each.
AVX2 inline float quantize_block(const float* x, int8_t* q, int32_t* halves) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 most = _mm256_setzero_ps();
  for (int i = 0; i < BLOCK; i += 8)
    most = _mm256_max_ps(most, _mm256_andnot_ps(sign, _mm256_loadu_ps(x + i)));
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  const float scale = _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half))) / 127.0f;
  const __m256 divisor = _mm256_set1_ps(scale == 0.0f ? 1.0f : scale);
  for (int part = 0; part < 2; ++part) {
    __m256i sums = _mm256_setzero_si256();
    for (int i = 32 * part; i < 32 * part + 32; i += 8) {
      const __m256i n = _mm256_cvtps_epi32(_mm256_div_ps(_mm256_loadu_ps(x + i), divisor));
      sums = _mm256_add_epi32(sums, n);
      const __m128i words =
          _mm_packs_epi32(_mm256_castsi256_si128(n), _mm256_extracti128_si256(n, 1));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(q + i), _mm_packs_epi16(words, words));
    }
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    halves[part] = _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
  }
  return scale;
}

AVX2 void quantize_row(const Product& p, int64_t row, float* wide, Quantized& out) {
  read_row(p, row, wide);
  const int64_t blocks = p.blocks, room = p.room();
  float* sums = out.sums.data() + row * room;
  std::fill(sums, sums + room, 0.0f);
  for (int64_t b = 0; b < blocks; ++b) {
    int32_t halves[2];
    const float scale =
        quantize_block(wide + b * BLOCK, &out.q[(row * blocks + b) * BLOCK], halves);
    out.scale[row * blocks + b] = scale;
    out.block_sums[row * blocks + b] = halves[0] + halves[1];
    for (int part = 0; part < 2; ++part) sums[p.group_of[2 * b + part]] += scale * halves[part];
  }
}

void quantize_rows(const Product& p, int64_t first, int64_t last, Quantized& out) {
  thread_local std::vector<float> wide;
  wide.resize(p.blocks * BLOCK);
  for (int64_t row = first; row < last; ++row) quantize_row(p, row, wide.data(), out);
}

void quantize(const Product& p, Quantized& out) {
  out.q.resize(p.rows * p.blocks * BLOCK);
  out.scale.resize(p.rows * p.blocks);
  out.sums.resize(p.rows * p.room());
  out.block_sums.resize(p.rows * p.blocks);
  if (p.rows <= ROWS) return quantize_rows(p, 0, p.rows, out);
#pragma omp parallel for num_threads(p.threads) schedule(static)
  for (int64_t row = 0; row < p.rows; ++row) quantize_rows(p, row, row + 1, out);
}

// The scales of one output in fp32, and scale times zero point; both by group, eight at a time.
// Where the tensor goes on behind the row, so does what is read: nobody looks at that.
AVX2 inline void read_scales(const Product& p, int64_t n, float* scales, float* offsets) {
  const int64_t groups = p.groups, zero_bytes = (groups + 1) / 2;
  const uint16_t* scale = static_cast<const uint16_t*>(p.scale) + n * groups;
  const uint8_t* zero = p.zero + n * zero_bytes;
  const bool goes_on = (p.outputs - n - 1) * groups >= 8;
  for (int64_t g = 0; g < groups; g += 8) {
    __m128i some = _mm_setzero_si128();
    uint32_t zeros = 0;
    if (goes_on || g + 8 <= groups) {
      some = _mm_loadu_si128(reinterpret_cast<const __m128i*>(scale + g));
      std::memcpy(&zeros, zero + g / 2, 4);
    } else {
      std::memcpy(&some, scale + g, 2 * (groups - g));
      std::memcpy(&zeros, zero + g / 2, zero_bytes - g / 2);
    }
    const __m256 s = _mm256_cvtph_ps(some);
    const __m128i low = _mm_cvtsi32_si128(int32_t(zeros & 0x0f0f0f0f));
    const __m128i high = _mm_cvtsi32_si128(int32_t((zeros >> 4) & 0x0f0f0f0f));
    const __m256i z = _mm256_cvtepu8_epi32(_mm_unpacklo_epi8(low, high));
    _mm256_storeu_ps(scales + g, s);
    _mm256_storeu_ps(offsets + g, _mm256_mul_ps(s, _mm256_cvtepi32_ps(z)));
  }
}

// What a tile of 4 bits reads: one row of weights, or several below each other.
struct Four {
  const uint8_t* weight;
  const float *scale, *offset;  // by group
  const int32_t* group_of;
  const int8_t* x;
  const float *xs, *sums;       // by block; by group
  int64_t blocks, room;
  bool is_fine;
};

// Likewise of 8 bits.
struct Eight {
  const int8_t *weight, *x;
  const float* xs;
  int64_t blocks;
};

AVX2 inline __m256i load(const void* at) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(at));
}

AVX2 inline void add4(const Four& t, const uint8_t* w, const float* scale, int64_t b, __m256i x0,
                      __m256i x1, __m256 factor, __m256& total) {
  const __m256i mask = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  const __m256i both = load(w + 32 * b);
  const __m256i p0 = _mm256_maddubs_epi16(_mm256_and_si256(both, mask), x0);
  const __m256i p1 = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(both, 4), mask), x1);
  const __m256 s0 = _mm256_broadcast_ss(scale + t.group_of[2 * b]);
  if (t.is_fine) {
    const __m256 s1 = _mm256_broadcast_ss(scale + t.group_of[2 * b + 1]);
    const __m256 f0 = _mm256_cvtepi32_ps(_mm256_madd_epi16(p0, ones));
    const __m256 f1 = _mm256_cvtepi32_ps(_mm256_madd_epi16(p1, ones));
    total = _mm256_fmadd_ps(_mm256_fmadd_ps(f1, s1, _mm256_mul_ps(f0, s0)), factor, total);
  } else {  // four products of at most 15 * 127 fit a word
    const __m256i words = _mm256_madd_epi16(_mm256_add_epi16(p0, p1), ones);
    total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(words), _mm256_mul_ps(s0, factor), total);
  }
}

// Zero points come off in the end: scale * zero * sum of the inputs, group by group.
AVX2 inline __m256 without_offsets(__m256 total, const float* offset, const float* sums,
                                   int64_t room) {
  for (int64_t g = 0; g < room; g += 8)
    total = _mm256_fnmadd_ps(_mm256_loadu_ps(offset + g), _mm256_loadu_ps(sums + g), total);
  return total;
}

AVX2 inline void sum_of_each(__m256 a, __m256 b, __m256 c, __m256 d, float* out) {
  const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
}

// Four rows of weights by one row of inputs: the step of a single sequence.
AVX2 void four_rows4(const Four& t, float* out) {
  __m256 total[4];
  for (int n = 0; n < 4; ++n) total[n] = _mm256_setzero_ps();
  for (int64_t b = 0; b < t.blocks; ++b) {
    const __m256i x0 = load(t.x + b * BLOCK), x1 = load(t.x + b * BLOCK + 32);
    const __m256 factor = _mm256_broadcast_ss(t.xs + b);
    for (int n = 0; n < 4; ++n)
      add4(t, t.weight + n * t.blocks * 32, t.scale + n * t.room, b, x0, x1, factor, total[n]);
  }
  for (int n = 0; n < 4; ++n)
    total[n] = without_offsets(total[n], t.offset + n * t.room, t.sums, t.room);
  sum_of_each(total[0], total[1], total[2], total[3], out);
}

AVX2 inline void add8(__m256i w0, __m256i w1, __m256i a0, __m256i a1, __m256i x0, __m256i x1,
                      __m256 factor, __m256& total) {
  const __m256i ones = _mm256_set1_epi16(1);
  // Two products of at most 127 * 127 fit a word, four do not
  const __m256i p0 = _mm256_maddubs_epi16(a0, _mm256_sign_epi8(x0, w0));
  const __m256i p1 = _mm256_maddubs_epi16(a1, _mm256_sign_epi8(x1, w1));
  const __m256i words = _mm256_add_epi32(_mm256_madd_epi16(p0, ones), _mm256_madd_epi16(p1, ones));
  total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(words), factor, total);
}

AVX2 void four_rows8(const Eight& t, float* out) {
  __m256 total[4];
  for (int n = 0; n < 4; ++n) total[n] = _mm256_setzero_ps();
  for (int64_t b = 0; b < t.blocks; ++b) {
    const __m256i x0 = load(t.x + b * BLOCK), x1 = load(t.x + b * BLOCK + 32);
    const __m256 factor = _mm256_broadcast_ss(t.xs + b);
    for (int n = 0; n < 4; ++n) {
      const int8_t* w = t.weight + (n * t.blocks + b) * BLOCK;
      const __m256i w0 = load(w), w1 = load(w + 32);
      add8(w0, w1, _mm256_abs_epi8(w0), _mm256_abs_epi8(w1), x0, x1, factor, total[n]);
    }
  }
  sum_of_each(total[0], total[1], total[2], total[3], out);
}

// One row of weights by M rows of inputs.
template <int M>
AVX2 void tile4_avx2(const Four& t, float* out) {
  __m256 total[M];
  for (int m = 0; m < M; ++m) total[m] = _mm256_setzero_ps();
  for (int64_t b = 0; b < t.blocks; ++b)
    for (int m = 0; m < M; ++m) {
      const int8_t* x = t.x + (m * t.blocks + b) * BLOCK;
      const __m256 factor = _mm256_broadcast_ss(t.xs + m * t.blocks + b);
      add4(t, t.weight, t.scale, b, load(x), load(x + 32), factor, total[m]);
    }
  for (int m = 0; m < M; ++m)
    out[m] = sum(without_offsets(total[m], t.offset, t.sums + m * t.room, t.room));
}

template <int M>
AVX2 void tile8_avx2(const Eight& t, float* out) {
  __m256 total[M];
  for (int m = 0; m < M; ++m) total[m] = _mm256_setzero_ps();
  for (int64_t b = 0; b < t.blocks; ++b) {
    const __m256i w0 = load(t.weight + b * BLOCK), w1 = load(t.weight + b * BLOCK + 32);
    const __m256i a0 = _mm256_abs_epi8(w0), a1 = _mm256_abs_epi8(w1);
    for (int m = 0; m < M; ++m) {
      const int8_t* x = t.x + (m * t.blocks + b) * BLOCK;
      const __m256 factor = _mm256_broadcast_ss(t.xs + m * t.blocks + b);
      add8(w0, w1, a0, a1, load(x), load(x + 32), factor, total[m]);
    }
  }
  for (int m = 0; m < M; ++m) out[m] = sum(total[m]);
}

// AVX-512 takes 16 outputs side by side, one to a lane, so that a sum never leaves its lane and an
// input is read once for all of them.
struct Sixteen {
  const uint8_t* weight;
  int64_t stride, last;         // bytes between outputs; the last output that there is
  const float *scale, *offset;  // (groups, 16) of 4 bits
  const int32_t* group_of;
  const int8_t* x;
  const float *xs, *sums;       // by block; by group
  const int32_t* block_sums;
  int64_t blocks, groups, room;
};

// Eight words of 4 bytes of each of 16 outputs: of each word all outputs. ``bytes``: what there is
// to read of an output, the rest is 0.
AVX512 inline void transpose(const void* at, int64_t stride, int64_t last, int64_t bytes,
                             __m512i* words) {
  const uint8_t* from = static_cast<const uint8_t*>(at);
  const __mmask32 there = bytes >= 32 ? ~__mmask32(0) : (__mmask32(1) << bytes) - 1;
  __m512i a[8], b[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    a[i] = _mm512_inserti64x4(
        _mm512_castsi256_si512(
            _mm256_maskz_loadu_epi8(there, from + std::min<int64_t>(i, last) * stride)),
        _mm256_maskz_loadu_epi8(there, from + std::min<int64_t>(i + 8, last) * stride), 1);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  const __m512i first = _mm512_set_epi64(13, 12, 5, 4, 9, 8, 1, 0);
  const __m512i second = _mm512_set_epi64(15, 14, 7, 6, 11, 10, 3, 2);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    words[i] = _mm512_permutex2var_epi64(a[i], first, a[i + 4]);
    words[i + 4] = _mm512_permutex2var_epi64(a[i], second, a[i + 4]);
  }
}

// A block as unsigned bytes, four inputs of each output to a register; int8 becomes 128 too large.
template <bool IS_FOUR>
AVX512 inline void unpack_block(const Sixteen& t, int64_t b, __m512i* w) {
  // The processor does not see that 16 outputs are read from one stretch: it is told of the next
  // ones
  constexpr int bytes = OUTPUT_BLOCK * BLOCK / (IS_FOUR ? 2 : 1);
  const uint8_t* next = t.weight + OUTPUT_BLOCK * t.stride + b * bytes;
#pragma GCC unroll 16
  for (int i = 0; i < bytes; i += 64)
    _mm_prefetch(reinterpret_cast<const char*>(next + i), _MM_HINT_T0);
  if (IS_FOUR) {
    const __m512i mask = _mm512_set1_epi8(15);
    transpose(t.weight + 32 * b, t.stride, t.last, 32, w);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      w[i + 8] = _mm512_and_si512(_mm512_srli_epi16(w[i], 4), mask);
      w[i] = _mm512_and_si512(w[i], mask);
    }
  } else {
    const __m512i shift = _mm512_set1_epi8(-128);
    transpose(t.weight + 64 * b, t.stride, t.last, 32, w);
    transpose(t.weight + 64 * b + 32, t.stride, t.last, 32, w + 8);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) w[i] = _mm512_xor_si512(w[i], shift);
  }
}

template <int M, bool IS_FOUR, bool IS_FINE>
AVX512 inline void add_block(const Sixteen& t, const __m512i* w, int64_t b, __m512* total) {
  __m512i sum[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
    sum[m] = _mm512_set1_epi32(IS_FOUR ? 0 : -128 * t.block_sums[m * t.blocks + b]);
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        int32_t four;
        std::memcpy(&four, t.x + (m * t.blocks + b) * BLOCK + 32 * half + 4 * i, 4);
        sum[m] = _mm512_dpbusd_epi32(sum[m], w[8 * half + i], _mm512_set1_epi32(four));
      }
    if (!IS_FINE && half == 0) continue;
    const __m512 scale =
        IS_FOUR ? _mm512_loadu_ps(t.scale + 16 * t.group_of[2 * b + half]) : _mm512_set1_ps(1.0f);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const __m512 factor = _mm512_mul_ps(scale, _mm512_set1_ps(t.xs[m * t.blocks + b]));
      total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[m]), factor, total[m]);
      sum[m] = _mm512_setzero_si512();
    }
  }
}

// Sixteen outputs by M rows of inputs. ``ready``: their blocks unpacked, where many rows meet them.
template <int M, bool IS_FOUR, bool IS_FINE>
AVX512 void tile_avx512(const Sixteen& t, const __m512i* ready, float* out) {
  __m512 total[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) total[m] = _mm512_setzero_ps();
  for (int64_t b = 0; b < t.blocks; ++b) {
    __m512i own[16];
    if (!ready) unpack_block<IS_FOUR>(t, b, own);
    add_block<M, IS_FOUR, IS_FINE>(t, ready ? ready + 16 * b : own, b, total);
  }
  for (int64_t g = 0; IS_FOUR && g < t.groups; ++g) {
    const __m512 offset = _mm512_loadu_ps(t.offset + 16 * g);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
      total[m] = _mm512_fnmadd_ps(offset, _mm512_set1_ps(t.sums[m * t.room + g]), total[m]);
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) _mm512_storeu_ps(out + 16 * m, total[m]);
}

// By the rows of inputs; [0] takes four rows of weights and one of inputs.
#define BY_ROWS(tile, ...)                                                                        \
  tile<1 __VA_ARGS__>, tile<2 __VA_ARGS__>, tile<3 __VA_ARGS__>, tile<4 __VA_ARGS__>,             \
      tile<5 __VA_ARGS__>, tile<6 __VA_ARGS__>, tile<7 __VA_ARGS__>, tile<8 __VA_ARGS__>
void (*const FOUR[])(const Four&, float*) = {four_rows4, BY_ROWS(tile4_avx2)};
void (*const EIGHT[])(const Eight&, float*) = {four_rows8, BY_ROWS(tile8_avx2)};
// Of these [0] is none
using Tile = void (*)(const Sixteen&, const __m512i*, float*);
const Tile FOUR_WIDE[] = {nullptr, BY_ROWS(tile_avx512, , true, false)};
const Tile FINE_WIDE[] = {nullptr, BY_ROWS(tile_avx512, , true, true)};
const Tile EIGHT_WIDE[] = {nullptr, BY_ROWS(tile_avx512, , false, false)};

// One block of outputs: rows come in tiles, and each tile meets all outputs of the block.
struct Scratch {
  std::vector<float> scales, offsets, wide;
  std::vector<float> turned;      // scales and offsets by group, 16 outputs each
  std::vector<int8_t> unpacked;   // blocks for tile_avx512
  float y[ROWS][OUTPUT_BLOCK];
};

// Bias and, of 8 bits, the output's scale; then in the dtype of the inputs.
void finish(const Product& p, int64_t row, int64_t first, int64_t count, const float* scale,
            float* y) {
  if (scale)
    for (int64_t j = 0; j < count; ++j) y[j] *= scale[first + j];
  if (p.bias)
    for (int64_t j = 0; j < count; ++j) y[j] += bias_of(p, first + j);
  write(p, row, first, count, y);
}

// Scales of 16 outputs, and scale times zero point; of each group all outputs, up to 16 groups more
// than there are.
AVX512 void turn_scales(const Product& p, int64_t first, int64_t last, float* scales,
                        float* offsets) {
  const int64_t groups = p.groups, zero_bytes = (groups + 1) / 2;
  const uint16_t* scale = static_cast<const uint16_t*>(p.scale) + first * groups;
  const uint8_t* zero = p.zero + first * zero_bytes;
  __m512i words[8];
  for (int64_t g = 0; g < groups; g += 16) {
    transpose(scale + g, 2 * groups, last, 2 * (groups - g), words);
    for (int i = 0; i < 8; ++i) {
      const __m256i low = _mm512_cvtepi32_epi16(words[i]);
      const __m256i high = _mm512_cvtepi32_epi16(_mm512_srli_epi32(words[i], 16));
      _mm512_storeu_ps(scales + (g + 2 * i) * 16, _mm512_cvtph_ps(low));
      _mm512_storeu_ps(scales + (g + 2 * i + 1) * 16, _mm512_cvtph_ps(high));
    }
  }
  for (int64_t g = 0; g < groups; ++g) {
    if (g % 64 == 0) transpose(zero + g / 2, zero_bytes, last, zero_bytes - g / 2, words);
    const __m512i shifted = _mm512_srl_epi32(words[g % 64 / 8], _mm_cvtsi32_si128(4 * (g % 8)));
    const __m512 zeros = _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(15)));
    _mm512_storeu_ps(offsets + g * 16, _mm512_mul_ps(_mm512_loadu_ps(scales + g * 16), zeros));
  }
}

AVX512 inline __m512 widened(int32_t dtype, __m256i halves) {
  return dtype == FP16 ? _mm512_cvtph_ps(halves)
                       : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// As ``finish``, of up to 16 outputs at once.
AVX512 inline void finish_wide(const Product& p, int64_t row, int64_t first, int64_t count,
                               const float* scale, const float* sums) {
  const __mmask16 there = __mmask16((uint32_t(1) << count) - 1);
  const int64_t at = row * p.outputs + first;
  __m512 y = _mm512_loadu_ps(sums);
  if (scale) y = _mm512_mul_ps(y, _mm512_maskz_loadu_ps(there, scale + first));
  if (p.bias && p.dtype == FP32) {
    y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(there, static_cast<const float*>(p.bias) + first));
  } else if (p.bias) {
    const uint16_t* bias = static_cast<const uint16_t*>(p.bias) + first;
    y = _mm512_add_ps(y, widened(p.dtype, _mm256_maskz_loadu_epi16(there, bias)));
  }
  if (p.dtype == FP32) {
    _mm512_mask_storeu_ps(static_cast<float*>(p.y) + at, there, y);
    return;
  }
  __m256i halves;
  if (p.dtype == FP16) {
    halves = _mm512_cvtps_ph(y, _MM_FROUND_TO_NEAREST_INT);
  } else {  // to nearest, ties to even; NaN stays one
    const __m512i bits = _mm512_castps_si512(y);
    const __m512i is_odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), is_odd);
    const __mmask16 is_nan = _mm512_cmp_ps_mask(y, y, _CMP_UNORD_Q);
    const __m512i kept = _mm512_mask_mov_epi32(rounded, is_nan, _mm512_set1_epi32(0x7fc00000));
    halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
  }
  _mm256_mask_storeu_epi16(static_cast<uint16_t*>(p.y) + at, there, halves);
}

template <bool IS_FOUR>
AVX512 void sixteen_outputs(const Product& p, const Quantized& x, int64_t first, int64_t count,
                            Scratch& s) {
  const int64_t blocks = p.blocks, room = p.room(), stride = blocks * (IS_FOUR ? 32 : 64);
  Sixteen t{p.weight + first * stride, stride, count - 1, nullptr, nullptr, p.group_of, nullptr,
            nullptr, nullptr, nullptr, blocks, p.groups, room};
  if (IS_FOUR) {
    s.turned.resize(2 * (p.groups + 16) * OUTPUT_BLOCK);
    float* offsets = &s.turned[(p.groups + 16) * OUTPUT_BLOCK];
    turn_scales(p, first, count - 1, s.turned.data(), offsets);
    t.scale = s.turned.data();
    t.offset = offsets;
  }
  const Tile* tiles = !IS_FOUR ? EIGHT_WIDE : p.is_fine ? FINE_WIDE : FOUR_WIDE;
  __m512i* ready = nullptr;
  if (p.rows > ROWS) {
    s.unpacked.resize(blocks * 16 * 64 + 64);
    ready = reinterpret_cast<__m512i*>((reinterpret_cast<uintptr_t>(s.unpacked.data()) + 63) &
                                       ~uintptr_t(63));
    for (int64_t b = 0; b < blocks; ++b) unpack_block<IS_FOUR>(t, b, ready + 16 * b);
  }
  const float* scale = IS_FOUR ? nullptr : static_cast<const float*>(p.scale);
  for (int64_t row = 0; row < p.rows; row += ROWS) {
    const int m = int(std::min<int64_t>(ROWS, p.rows - row));
    t.x = x.q.data() + row * blocks * BLOCK;
    t.xs = x.scale.data() + row * blocks;
    t.sums = x.sums.data() + row * room;
    t.block_sums = x.block_sums.data() + row * blocks;
    tiles[m](t, ready, &s.y[0][0]);
    for (int i = 0; i < m; ++i) finish_wide(p, row + i, first, count, scale, s.y[i]);
  }
}

void four_bits(const Product& p, const Quantized& x, int64_t first, int64_t count, Scratch& s) {
  const int64_t blocks = p.blocks, room = p.room();
  s.scales.resize(count * room);
  s.offsets.resize(count * room);
  for (int64_t j = 0; j < count; ++j)
    read_scales(p, first + j, &s.scales[j * room], &s.offsets[j * room]);
  for (int64_t row = 0; row < p.rows; row += ROWS) {
    const int m = int(std::min<int64_t>(ROWS, p.rows - row));
    Four t{nullptr, nullptr, nullptr, p.group_of, x.q.data() + row * blocks * BLOCK,
           x.scale.data() + row * blocks, x.sums.data() + row * room, blocks, room, p.is_fine};
    for (int64_t j = 0; j < count;) {
      const bool several = m == 1 && j + 4 <= count;
      t.weight = p.weight + (first + j) * blocks * 32;
      t.scale = &s.scales[j * room];
      t.offset = &s.offsets[j * room];
      float out[ROWS];
      FOUR[several ? 0 : m](t, out);
      if (several) std::copy(out, out + 4, &s.y[0][j]);
      else for (int i = 0; i < m; ++i) s.y[i][j] = out[i];
      j += several ? 4 : 1;
    }
    for (int i = 0; i < m; ++i) finish(p, row + i, first, count, nullptr, s.y[i]);
  }
}

void eight_bits(const Product& p, const Quantized& x, int64_t first, int64_t count, Scratch& s) {
  const int64_t blocks = p.blocks;
  const int8_t* weight = reinterpret_cast<const int8_t*>(p.weight);
  for (int64_t row = 0; row < p.rows; row += ROWS) {
    const int m = int(std::min<int64_t>(ROWS, p.rows - row));
    Eight t{nullptr, x.q.data() + row * blocks * BLOCK, x.scale.data() + row * blocks, blocks};
    for (int64_t j = 0; j < count;) {
      const bool several = m == 1 && j + 4 <= count;
      t.weight = weight + (first + j) * blocks * BLOCK;
      float out[ROWS];
      EIGHT[several ? 0 : m](t, out);
      if (several) std::copy(out, out + 4, &s.y[0][j]);
      else for (int i = 0; i < m; ++i) s.y[i][j] = out[i];
      j += several ? 4 : 1;
    }
    const float* scale = static_cast<const float*>(p.scale);
    for (int i = 0; i < m; ++i) finish(p, row + i, first, count, scale, s.y[i]);
  }
}

// One row of weights in fp32.
AVX2 void unpack(const Product& p, int64_t n, bool is_four_bits, Scratch& s) {
  const int64_t blocks = p.blocks;
  s.wide.resize(blocks * BLOCK);
  if (!is_four_bits) {
    const int8_t* w = reinterpret_cast<const int8_t*>(p.weight) + n * blocks * BLOCK;
    const float scale = static_cast<const float*>(p.scale)[n];
    for (int64_t i = 0; i < blocks * BLOCK; ++i) s.wide[i] = scale * float(w[i]);
    return;
  }
  s.scales.resize(p.room());
  s.offsets.resize(p.room());
  read_scales(p, n, s.scales.data(), s.offsets.data());
  const uint8_t* w = p.weight + n * blocks * 32;
  for (int64_t h = 0; h < 2 * blocks; ++h) {
    const float scale = s.scales[p.group_of[h]], offset = s.offsets[p.group_of[h]];
    const int shift = 4 * int(h % 2);
    for (int i = 0; i < 32; ++i)
      s.wide[h * 32 + i] = scale * float((w[h / 2 * 32 + i] >> shift) & 15) - offset;
  }
}

template <int M>
AVX2 void tile_fp32(const float* w, const float* x, int64_t inputs, float* out) {
  __m256 total[M];
  for (int m = 0; m < M; ++m) total[m] = _mm256_setzero_ps();
  for (int64_t i = 0; i < inputs; i += 8) {
    const __m256 weights = _mm256_loadu_ps(w + i);
    for (int m = 0; m < M; ++m)
      total[m] = _mm256_fmadd_ps(weights, _mm256_loadu_ps(x + m * inputs + i), total[m]);
  }
  for (int m = 0; m < M; ++m) out[m] = sum(total[m]);
}

using Fp32 = void (*)(const float*, const float*, int64_t, float*);
const Fp32 FP32_TILES[ROWS + 1] = {nullptr, tile_fp32<1>, tile_fp32<2>, tile_fp32<3>, tile_fp32<4>,
                                   tile_fp32<5>, tile_fp32<6>, tile_fp32<7>, tile_fp32<8>};

// Outputs are a few at a time, so that unpacked weights stay in the cache while all rows meet them.
AVX2 void sixteen_bits(const Product& p, const std::vector<float>& x, bool is_four_bits,
                       int64_t first, int64_t count, Scratch& s) {
  const int64_t inputs = p.blocks * BLOCK;
  for (int64_t j = 0; j < count; ++j) {
    unpack(p, first + j, is_four_bits, s);
    for (int64_t row = 0; row < p.rows; row += ROWS) {
      const int m = int(std::min<int64_t>(ROWS, p.rows - row));
      float out[ROWS];
      FP32_TILES[m](s.wide.data(), x.data() + row * inputs, inputs, out);
      for (int i = 0; i < m; ++i) finish(p, row + i, first + j, 1, nullptr, &out[i]);
    }
  }
}

}  // namespace

// 0: none of these kernels runs on this processor; 1: AVX2; 2: AVX-512 with VNNI.
extern "C" int32_t bench_instruction_set() {
  static const int32_t level = [] {
    __builtin_cpu_init();
    const bool has_vnni = __builtin_cpu_supports("avx512vnni") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c");
    return has_vnni ? 2 : int32_t(has_avx2);
  }();
  return level;
}

extern "C" void bench_linear(const void* x, void* y, const uint16_t* input_scale, const void* bias,
                             const void* weight, const void* scale, const void* zero, int64_t rows,
                             int64_t inputs, int64_t outputs, int64_t group_size, int32_t dtype,
                             int32_t is_four_bits, int32_t is_int8, int32_t instructions,
                             int32_t threads) {
  thread_local std::vector<int32_t> group_of;  // padding is of the last group
  thread_local Quantized quantized;
  thread_local std::vector<float> floats;
  if (!is_four_bits) group_size = inputs;
  const int64_t halves = 2 * ((inputs + BLOCK - 1) / BLOCK);
  const int64_t last = (inputs + group_size - 1) / group_size - 1;
  group_of.resize(halves);
  for (int64_t h = 0; h < halves; ++h) group_of[h] = int32_t(std::min(h * 32 / group_size, last));
  const Product p{x, y, input_scale, bias, static_cast<const uint8_t*>(weight), scale,
                  static_cast<const uint8_t*>(zero), rows, inputs, outputs, halves / 2, last + 1,
                  dtype, threads, group_size == 32, group_of.data()};
  if (is_int8) {
    quantize(p, quantized);
  } else {
    const int64_t width = p.blocks * BLOCK;
    floats.resize(rows * width);
    for (int64_t row = 0; row < rows; ++row) read_row(p, row, floats.data() + row * width);
  }
  const Quantized& q = quantized;  // what is local to a thread has another address in the others
  const std::vector<float>& wide = floats;
  const int64_t pieces = (outputs + OUTPUT_BLOCK - 1) / OUTPUT_BLOCK;
  const bool is_small = rows * outputs * inputs < SMALL;
#pragma omp parallel for num_threads(is_small ? 1 : threads) schedule(static)
  for (int64_t piece = 0; piece < pieces; ++piece) {
    thread_local Scratch scratch;
    const int64_t first = piece * OUTPUT_BLOCK;
    const int64_t count = std::min(OUTPUT_BLOCK, outputs - first);
    if (!is_int8) sixteen_bits(p, wide, is_four_bits, first, count, scratch);
    else if (instructions == 2 && is_four_bits) sixteen_outputs<true>(p, q, first, count, scratch);
    else if (instructions == 2) sixteen_outputs<false>(p, q, first, count, scratch);
    else if (is_four_bits) four_bits(p, q, first, count, scratch);
    else eight_bits(p, q, first, count, scratch);
  }
}

#ifdef BENCH_OPERATORS  // the tests' emulation has none

#include <stdexcept>
#include <string>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

const void* address(const Optional& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }

// torch's own macro for this has another name before 2.13
void check(AOTITorchError code, const char* call) {
  if (code != AOTI_TORCH_SUCCESS) {
    throw std::runtime_error(std::string(call) + " failed: " + std::to_string(code));
  }
}

// On a CPU, in the dtype of x. The stable ABI's new_empty looks its operator up by name in each call.
Tensor empty(const Tensor& x, const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t i = shape.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * shape[i];
  int32_t dtype;
  AtenTensorHandle made;
  check(aoti_torch_get_dtype(x.get(), &dtype), "aoti_torch_get_dtype");
  check(aoti_torch_empty_strided(int64_t(shape.size()), shape.data(), strides.data(), dtype,
                                 aoti_torch_device_type_cpu(), 0, &made),
        "aoti_torch_empty_strided");
  return Tensor(made);
}

Tensor linear(const Tensor& given, const Tensor& weight, const Tensor& scale, const Optional& zero,
              const Optional& input_scale, const Optional& bias, int64_t group_size, bool is_int8) {
  const Tensor x = given.is_contiguous() ? given : torch::stable::contiguous(given);
  std::vector<int64_t> shape;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) shape.push_back(x.size(i));
  const int64_t inputs = x.size(x.dim() - 1), outputs = weight.size(0);
  shape.push_back(outputs);
  Tensor y = empty(x, shape);
  using torch::headeronly::ScalarType;
  const ScalarType type = x.scalar_type();
  const Dtype dtype = type == ScalarType::Float ? FP32 : type == ScalarType::Half ? FP16 : BF16;
  bench_linear(x.const_data_ptr(), y.mutable_data_ptr(),
               static_cast<const uint16_t*>(address(input_scale)), address(bias),
               weight.const_data_ptr(), scale.const_data_ptr(), address(zero), x.numel() / inputs,
               inputs, outputs, group_size, dtype, zero.has_value(), is_int8,
               bench_instruction_set(), omp_get_max_threads());
  return y;
}

Tensor int8_linear(Tensor x, Tensor weight, Tensor scale, Optional input_scale, Optional bias,
                   bool int8_activations) {
  return linear(x, weight, scale, std::nullopt, input_scale, bias, 0, int8_activations);
}

Tensor int4_linear(Tensor x, Tensor weight, Tensor scale, Tensor zero, Optional input_scale,
                   Optional bias, int64_t group_size, bool int8_activations) {
  return linear(x, weight, scale, zero, input_scale, bias, group_size, int8_activations);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bench, CPU, m) {
  m.impl("int8_linear", TORCH_BOX(&int8_linear));
  m.impl("int4_linear", TORCH_BOX(&int4_linear));
}

#endif
