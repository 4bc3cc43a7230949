// Conversions between the element types of tensors and f32.
//
// All arithmetic is f32. A value is widened once after the load and rounded once, to nearest even,
// before the store; f16 overflow therefore gives inf, and a NaN stays a NaN.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace xact {

// Whether T is a 16-bit type, and whether it has the range of f32.
template <class T>
inline constexpr bool kIsShort = sizeof(T) == 2;
template <class T>
inline constexpr bool kIsWide = true;
template <>
inline constexpr bool kIsWide<__half> = false;

__device__ inline float to_float(float v) { return v; }
__device__ inline float to_float(__half v) { return __half2float(v); }
__device__ inline float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

// The i-th of the values that fill a vector, exactly.
template <class T>
__device__ inline float element(const unsigned (&vector)[4], int i) {
    return to_float(reinterpret_cast<const T*>(vector)[i]);
}
// One instruction: extracted as 16 bits, the upper half of a word takes two.
template <>
__device__ inline float element<__nv_bfloat16>(const unsigned (&vector)[4], int i) {
    const unsigned word = vector[i / 2];
    return __uint_as_float(i % 2 == 0 ? word << 16 : word & 0xffff0000);
}

// Taken out as a half of a register, which the conversion can read; a 16-bit access would be a shift.
template <>
__device__ inline float element<__half>(const unsigned (&vector)[4], int i) {
    unsigned short lo, hi;
    asm("mov.b32 {%0, %1}, %2;" : "=h"(lo), "=h"(hi) : "r"(vector[i / 2]));
    return __half2float(__ushort_as_half(i % 2 == 0 ? lo : hi));
}

__device__ inline void from_float(float v, float& out) { out = v; }
__device__ inline void from_float(float v, __half& out) { out = __float2half_rn(v); }
__device__ inline void from_float(float v, __nv_bfloat16& out) { out = __float2bfloat16_rn(v); }

// Rounds two neighbours at once: for the 16-bit types this is one instruction (bf16) or packs into
// one register without a shuffle (f16).
__device__ inline void from_floats(float lo, float hi, float (&out)[2]) {
    out[0] = lo;
    out[1] = hi;
}
__device__ inline void from_floats(float lo, float hi, __half (&out)[2]) {
    const __half2 pair = __floats2half2_rn(lo, hi);
    out[0] = __low2half(pair);
    out[1] = __high2half(pair);
}
__device__ inline void from_floats(float lo, float hi, __nv_bfloat16 (&out)[2]) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(lo, hi);
    out[0] = __low2bfloat16(pair);
    out[1] = __high2bfloat16(pair);
}

}  // namespace xact
