// Products with int8 and 4-bit weights on x86-64. Layout and grids: grids.py beside this file.
//
// Inputs are quantized to int8 in blocks of 64, products of integers are exact in 32 bits and scaled
// in fp32; or inputs stay as they are and weights are unpacked to fp32. Threads share the outputs in
// blocks; within one, a few rows of the inputs at a time multiply each row of weights while it is in
// registers. Without a header of torch: what calls this passes addresses.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t BLOCK = 64;         // inputs that share the scale of an int8 activation
constexpr int64_t OUTPUT_BLOCK = 16;  // outputs that a thread takes at a time
constexpr int ROWS = 8;               // rows of inputs that meet a row of weights in registers

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
  int64_t rows, inputs, outputs, group_size;
  int32_t dtype, threads;
  const int32_t* group_of;     // by half block of 32 inputs

  int64_t blocks() const { return (inputs + BLOCK - 1) / BLOCK; }
  int64_t groups() const { return (inputs + group_size - 1) / group_size; }
  int64_t room() const { return (groups() + 7) / 8 * 8; }  // for the scales of an output
};

// Inputs as the integer kernels read them.
struct Quantized {
  std::vector<int8_t> q;        // (rows, blocks * 64)
  std::vector<float> scale;     // (rows, blocks)
  std::vector<float> sums;      // (rows, groups): scale times sum of q, by group of the weights
};

#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")))

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
  std::fill(out + n, out + p.blocks() * BLOCK, 0.0f);
}

AVX2 inline void write(const Product& p, int64_t row, int64_t first, int64_t count, const float* y) {
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
      const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(n), _mm256_extracti128_si256(n, 1));
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
  const int64_t blocks = p.blocks(), groups = p.groups();
  float* sums = out.sums.data() + row * groups;
  std::fill(sums, sums + groups, 0.0f);
  for (int64_t b = 0; b < blocks; ++b) {
    int32_t halves[2];
    const float scale = quantize_block(wide + b * BLOCK, &out.q[(row * blocks + b) * BLOCK], halves);
    out.scale[row * blocks + b] = scale;
    for (int part = 0; part < 2; ++part) sums[p.group_of[2 * b + part]] += scale * halves[part];
  }
}

Quantized quantize(const Product& p) {
  Quantized out;
  out.q.resize(p.rows * p.blocks() * BLOCK);
  out.scale.resize(p.rows * p.blocks());
  out.sums.resize(p.rows * p.groups());
#pragma omp parallel num_threads(p.threads) if (p.rows > 4)
  {
    std::vector<float> wide(p.blocks() * BLOCK);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < p.rows; ++row) quantize_row(p, row, wide.data(), out);
  }
  return out;
}

// The scales of one output in fp32, and scale times zero point; both by group, eight at a time. Where
// the tensor goes on behind the row, so does what is read: nobody looks at that.
AVX2 inline void read_scales(const Product& p, int64_t n, float* scales, float* offsets) {
  const int64_t groups = p.groups(), zero_bytes = (groups + 1) / 2;
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

inline float dot(const float* a, const float* b, int64_t n) {
  float total = 0.0f;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < n; ++i) total += a[i] * b[i];
  return total;
}

// Each tile multiplies one row of weights by M rows of quantized inputs; out[m] is without offsets.

template <int M>
AVX2 void tile4_avx2(const uint8_t* w, const float* scale, const int32_t* group_of,
                     const int8_t* x, const float* xs, int64_t blocks, bool fine, float* out) {
  const __m256i mask = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  __m256 total[M];
  for (int m = 0; m < M; ++m) total[m] = _mm256_setzero_ps();
  for (int64_t b = 0; b < blocks; ++b) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 32 * b));
    const __m256i low = _mm256_and_si256(both, mask);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
    const __m256 s0 = _mm256_broadcast_ss(scale + group_of[2 * b]);
    const __m256 s1 = _mm256_broadcast_ss(scale + group_of[2 * b + 1]);
    for (int m = 0; m < M; ++m) {
      const int8_t* row = x + (m * blocks + b) * BLOCK;
      const __m256i x0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row));
      const __m256i x1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 32));
      const __m256i p0 = _mm256_maddubs_epi16(low, x0), p1 = _mm256_maddubs_epi16(high, x1);
      const __m256 factor = _mm256_broadcast_ss(xs + m * blocks + b);
      if (fine) {  // two groups in a block
        const __m256 f0 = _mm256_cvtepi32_ps(_mm256_madd_epi16(p0, ones));
        const __m256 f1 = _mm256_cvtepi32_ps(_mm256_madd_epi16(p1, ones));
        total[m] = _mm256_fmadd_ps(_mm256_fmadd_ps(f1, s1, _mm256_mul_ps(f0, s0)), factor, total[m]);
      } else {  // four products of at most 15 * 127 fit a word
        const __m256i words = _mm256_madd_epi16(_mm256_add_epi16(p0, p1), ones);
        total[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(words), _mm256_mul_ps(s0, factor), total[m]);
      }
    }
  }
  for (int m = 0; m < M; ++m) out[m] = sum(total[m]);
}

template <int M>
AVX2 void tile8_avx2(const int8_t* w, const int8_t* x, const float* xs, int64_t blocks, float* out) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256 total[M];
  for (int m = 0; m < M; ++m) total[m] = _mm256_setzero_ps();
  for (int64_t b = 0; b < blocks; ++b) {
    const __m256i w0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + b * BLOCK));
    const __m256i w1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + b * BLOCK + 32));
    const __m256i a0 = _mm256_abs_epi8(w0), a1 = _mm256_abs_epi8(w1);
    for (int m = 0; m < M; ++m) {
      const int8_t* row = x + (m * blocks + b) * BLOCK;
      const __m256i x0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row));
      const __m256i x1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 32));
      // Two products of at most 127 * 127 fit a word, four do not
      const __m256i p0 = _mm256_maddubs_epi16(a0, _mm256_sign_epi8(x0, w0));
      const __m256i p1 = _mm256_maddubs_epi16(a1, _mm256_sign_epi8(x1, w1));
      const __m256i words = _mm256_add_epi32(_mm256_madd_epi16(p0, ones), _mm256_madd_epi16(p1, ones));
      const __m256 factor = _mm256_broadcast_ss(xs + m * blocks + b);
      total[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(words), factor, total[m]);
    }
  }
  for (int m = 0; m < M; ++m) out[m] = sum(total[m]);
}

template <int M>
AVX512 void tile4_avx512(const uint8_t* w, const float* scale, const int32_t* group_of,
                     const int8_t* x, const float* xs, int64_t blocks, bool, float* out) {
  const __m256i mask = _mm256_set1_epi8(15);
  __m512 total[M];
  for (int m = 0; m < M; ++m) total[m] = _mm512_setzero_ps();
  for (int64_t b = 0; b < blocks; ++b) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 32 * b));
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
    const __m512i q = _mm512_inserti64x4(
        _mm512_castsi256_si512(_mm256_and_si256(both, mask)), high, 1);
    const __m512 s = _mm512_insertf32x8(
        _mm512_set1_ps(scale[group_of[2 * b]]), _mm256_set1_ps(scale[group_of[2 * b + 1]]), 1);
    for (int m = 0; m < M; ++m) {
      const __m512i row = _mm512_loadu_si512(x + (m * blocks + b) * BLOCK);
      const __m512i words = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q, row);
      const __m512 factor = _mm512_mul_ps(s, _mm512_set1_ps(xs[m * blocks + b]));
      total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(words), factor, total[m]);
    }
  }
  for (int m = 0; m < M; ++m) out[m] = _mm512_reduce_add_ps(total[m]);
}

template <int M>
AVX512 void tile8_avx512(const int8_t* w, const int8_t* x, const float* xs, int64_t blocks, float* out) {
  const __m512i bias = _mm512_set1_epi8(-128);
  __m512 total[M];
  for (int m = 0; m < M; ++m) total[m] = _mm512_setzero_ps();
  for (int64_t b = 0; b < blocks; ++b) {
    // As unsigned numbers, 128 too large: the inputs' sums take that off again
    const __m512i q = _mm512_xor_si512(_mm512_loadu_si512(w + b * BLOCK), bias);
    for (int m = 0; m < M; ++m) {
      const __m512i row = _mm512_loadu_si512(x + (m * blocks + b) * BLOCK);
      const __m512i words = _mm512_sub_epi32(
          _mm512_dpbusd_epi32(_mm512_setzero_si512(), q, row),
          _mm512_dpbusd_epi32(_mm512_setzero_si512(), bias, row));
      const __m512 factor = _mm512_set1_ps(xs[m * blocks + b]);
      total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(words), factor, total[m]);
    }
  }
  for (int m = 0; m < M; ++m) out[m] = _mm512_reduce_add_ps(total[m]);
}

template <int M>
struct Tiles {
  static void four(bool wide, const uint8_t* w, const float* scale, const int32_t* group_of,
                   const int8_t* x, const float* xs, int64_t blocks, bool fine, float* out) {
    (wide ? tile4_avx512<M> : tile4_avx2<M>)(w, scale, group_of, x, xs, blocks, fine, out);
  }
  static void eight(bool wide, const int8_t* w, const int8_t* x, const float* xs, int64_t blocks,
                    float* out) {
    (wide ? tile8_avx512<M> : tile8_avx2<M>)(w, x, xs, blocks, out);
  }
};

using Four = void (*)(bool, const uint8_t*, const float*, const int32_t*, const int8_t*, const float*, int64_t, bool, float*);
using Eight = void (*)(bool, const int8_t*, const int8_t*, const float*, int64_t, float*);
const Four FOUR[ROWS + 1] = {nullptr, Tiles<1>::four, Tiles<2>::four, Tiles<3>::four, Tiles<4>::four,
                             Tiles<5>::four, Tiles<6>::four, Tiles<7>::four, Tiles<8>::four};
const Eight EIGHT[ROWS + 1] = {nullptr, Tiles<1>::eight, Tiles<2>::eight, Tiles<3>::eight, Tiles<4>::eight,
                               Tiles<5>::eight, Tiles<6>::eight, Tiles<7>::eight, Tiles<8>::eight};

// One block of outputs: rows come in tiles, and each tile meets all outputs of the block.
struct Scratch {
  std::vector<float> scales, offsets, wide;
  float y[ROWS][OUTPUT_BLOCK];
};

AVX2 void four_bits(const Product& p, const Quantized& x, bool wide, int64_t first, int64_t count, Scratch& s) {
  const int64_t blocks = p.blocks(), groups = p.groups(), room = p.room();
  s.scales.resize(count * room);
  s.offsets.resize(count * room);
  for (int64_t j = 0; j < count; ++j) read_scales(p, first + j, &s.scales[j * room], &s.offsets[j * room]);
  for (int64_t row = 0; row < p.rows; row += ROWS) {
    const int m = int(std::min<int64_t>(ROWS, p.rows - row));
    for (int64_t j = 0; j < count; ++j) {
      float out[ROWS];
      FOUR[m](wide, p.weight + (first + j) * blocks * 32, &s.scales[j * room], p.group_of,
              x.q.data() + row * blocks * BLOCK, x.scale.data() + row * blocks, blocks,
              p.group_size == 32, out);
      const float bias = bias_of(p, first + j);
      for (int i = 0; i < m; ++i) {
        const float offset = dot(&s.offsets[j * room], x.sums.data() + (row + i) * groups, groups);
        s.y[i][j] = out[i] - offset + bias;
      }
    }
    for (int i = 0; i < m; ++i) write(p, row + i, first, count, s.y[i]);
  }
}

AVX2 void eight_bits(const Product& p, const Quantized& x, bool wide, int64_t first, int64_t count, Scratch& s) {
  const int64_t blocks = p.blocks();
  const int8_t* weight = reinterpret_cast<const int8_t*>(p.weight);
  const float* scale = static_cast<const float*>(p.scale);
  for (int64_t row = 0; row < p.rows; row += ROWS) {
    const int m = int(std::min<int64_t>(ROWS, p.rows - row));
    for (int64_t j = 0; j < count; ++j) {
      float out[ROWS];
      EIGHT[m](wide, weight + (first + j) * blocks * BLOCK, x.q.data() + row * blocks * BLOCK,
               x.scale.data() + row * blocks, blocks, out);
      const float bias = bias_of(p, first + j);
      for (int i = 0; i < m; ++i) s.y[i][j] = out[i] * scale[first + j] + bias;
    }
    for (int i = 0; i < m; ++i) write(p, row + i, first, count, s.y[i]);
  }
}

// One row of weights in fp32.
AVX2 void unpack(const Product& p, int64_t n, bool is_four_bits, Scratch& s) {
  const int64_t blocks = p.blocks();
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
AVX2 void sixteen_bits(const Product& p, const std::vector<float>& x, bool is_four_bits, int64_t first,
                  int64_t count, Scratch& s) {
  const int64_t inputs = p.blocks() * BLOCK;
  for (int64_t j = 0; j < count; ++j) {
    unpack(p, first + j, is_four_bits, s);
    const float bias = bias_of(p, first + j);
    for (int64_t row = 0; row < p.rows; row += ROWS) {
      const int m = int(std::min<int64_t>(ROWS, p.rows - row));
      float out[ROWS];
      FP32_TILES[m](s.wide.data(), x.data() + row * inputs, inputs, out);
      for (int i = 0; i < m; ++i) {
        const float y = out[i] + bias;
        write(p, row + i, first + j, 1, &y);
      }
    }
  }
}

}  // namespace

// 0: none of these kernels runs on this processor; 1: AVX2; 2: AVX-512 with VNNI.
extern "C" int32_t bench_instruction_set() {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    return 2;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c");
}

extern "C" void bench_linear(const void* x, void* y, const uint16_t* input_scale, const void* bias,
                             const void* weight, const void* scale, const void* zero, int64_t rows,
                             int64_t inputs, int64_t outputs, int64_t group_size, int32_t dtype,
                             int32_t is_four_bits, int32_t is_int8, int32_t instructions,
                             int32_t threads) {
  if (!is_four_bits) group_size = inputs;
  const int64_t halves = 2 * ((inputs + BLOCK - 1) / BLOCK);
  const int64_t last = (inputs + group_size - 1) / group_size - 1;
  std::vector<int32_t> group_of(halves);  // padding is of the last group
  for (int64_t h = 0; h < halves; ++h) group_of[h] = int32_t(std::min(h * 32 / group_size, last));
  const Product p{x, y, input_scale, bias, static_cast<const uint8_t*>(weight), scale,
                  static_cast<const uint8_t*>(zero), rows, inputs, outputs,
                  group_size, dtype, threads, group_of.data()};
  const bool wide = instructions == 2;
  const int64_t pieces = (outputs + OUTPUT_BLOCK - 1) / OUTPUT_BLOCK;
  Quantized quantized;
  std::vector<float> floats;
  if (is_int8) {
    quantized = quantize(p);
  } else {
    const int64_t width = p.blocks() * BLOCK;
    floats.resize(rows * width);
    for (int64_t row = 0; row < rows; ++row) read_row(p, row, floats.data() + row * width);
  }
#pragma omp parallel num_threads(threads)
  {
    Scratch scratch;
#pragma omp for schedule(static)
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t first = piece * OUTPUT_BLOCK;
      const int64_t count = std::min(OUTPUT_BLOCK, outputs - first);
      if (!is_int8) sixteen_bits(p, floats, is_four_bits, first, count, scratch);
      else if (is_four_bits) four_bits(p, quantized, wide, first, count, scratch);
      else eight_bits(p, quantized, wide, first, count, scratch);
    }
  }
}
