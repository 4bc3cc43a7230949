// Sums in a fixed order that do not lose digits.
//
// A Sum is an unevaluated pair: `sum` is the running f32 sum and `comp` collects exactly what each
// addition rounded away (Knuth's TwoSum), so that sum + comp carries about twice the digits. The
// order of additions is fixed by the code and by the shape alone.
#pragma once

namespace xact {

struct Sum {
    float sum;
    float comp;

    __device__ Sum(float sum = 0.0f, float comp = 0.0f) : sum(sum), comp(comp) {}

    __device__ void add(float v) {
        const float s = sum + v;
        const float t = s - sum;
        comp += (sum - (s - t)) + (v - t);
        sum = s;
    }

    __device__ void add(const Sum& other) {
        add(other.sum);
        comp += other.comp;
    }

    // Once `sum` is infinite or NaN, `comp` is NaN and means nothing.
    __device__ float value() const { return isfinite(sum) ? sum + comp : sum; }
};

// The sum of N values as a balanced tree, log2 N roundings deep.
template <int N>
__device__ inline float tree_sum(const float (&v)[N]) {
    float s[N];
#pragma unroll
    for (int i = 0; i < N; ++i) s[i] = v[i];
#pragma unroll
    for (int width = N / 2; width > 0; width /= 2) {
#pragma unroll
        for (int i = 0; i < width; ++i) s[i] = s[2 * i] + s[2 * i + 1];
    }
    return s[0];
}

// Adds up one Sum per thread over the whole block; thread 0 receives the result. Every thread of
// the block must call it. `scratch` may be used again after the next barrier of the caller.
template <int kThreads>
__device__ inline Sum block_sum(Sum v, float2 (&scratch)[kThreads / 32]) {
    static_assert(kThreads % 32 == 0 && kThreads <= 1024, "whole warps");
    constexpr int kWarps = kThreads / 32;
    constexpr unsigned kAll = 0xffffffffu;
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        v.add(Sum(__shfl_down_sync(kAll, v.sum, offset), __shfl_down_sync(kAll, v.comp, offset)));
    }
    if (lane == 0) scratch[warp] = make_float2(v.sum, v.comp);
    __syncthreads();
    if (threadIdx.x == 0) {
#pragma unroll
        for (int w = 1; w < kWarps; ++w) v.add(Sum(scratch[w].x, scratch[w].y));
    }
    return v;
}

}  // namespace xact
