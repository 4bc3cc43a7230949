// Sums in a fixed order that do not lose digits.
//
// A Sum is an unevaluated pair: `sum` is the running f32 sum and `comp` collects exactly what each
// addition rounded away (Knuth's TwoSum), so that sum + comp carries about twice the digits. The
// order of additions is fixed by the code, and by the shape and the alignment of the tensors.
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

// The sum of N values, a power of two, as a balanced tree log2 N roundings deep. Values are added in
// order of their index, and a node is formed as soon as both its children are there.
template <int N>
struct TreeSum {
    TreeSum<N / 2> low, high;

    __device__ void add(int i, float v) {
        if (i < N / 2) {
            low.add(i, v);
        } else {
            high.add(i - N / 2, v);
        }
    }
    __device__ float value() const { return low.value() + high.value(); }
};
template <>
struct TreeSum<1> {
    float v;

    __device__ void add(int, float value) { v = value; }
    __device__ float value() const { return v; }
};

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
