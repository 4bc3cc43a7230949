// The loop of one block over a part of one row. A functor gets the elements.
//
// The packs of a row are those of pack.cuh, anchored at the input. A block takes the packs [begin, end) of a
// row, and thread t the packs begin + t, begin + t + XACT_BLOCK, …, in batches of XACT_ROW_PACKS, all loaded
// before the first is used. A thread therefore gets the same packs in every pass over the same part, and can
// read what it wrote to shared memory without a barrier.
#pragma once

#include "pack.cuh"

#if !defined(XACT_BLOCK) || !defined(XACT_ROW_PACKS)
#error "the XACT_ numbers come from src/geometry.rs through build.rs"
#endif

namespace xact {

// A run of packs of a row.
struct Part {
    long long begin;
    long long end;
};

// Packs that hold `cols` elements, the first of which lies `skew` elements into pack 0.
template <class T>
__device__ inline long long packs(long long cols, int skew) {
    return (cols + skew + Pack<T>::N - 1) / Pack<T>::N;
}

// The `split`-th of the parts of `packs_per_split` packs that a row of `packs` packs is cut into.
__device__ inline Part part_of(long long packs, unsigned long long split,
                               unsigned long long packs_per_split) {
    const long long begin = split * packs_per_split;
    const long long end = begin + packs_per_split;
    return {begin < packs ? begin : packs, end < packs ? end : packs};
}

// Walks the elements [0, cols) of a part of a row, K packs at a time. The functor has
//   f.load(pack, first)             the pack `pack`, whose first element is `first`
//   f.batch<kApart>(packs, pack, first)
//                                   some whole packs, XACT_BLOCK apart, the first being `pack`; only with
//                                   kApart may they hold the element that the functor treats apart
//   f.element(at)                   an element of a pack that is not whole
// `apart` is that element, or -1.
template <class T, int K, class F>
__device__ inline void walk(Part part, int skew, long long cols, long long apart, F& f) {
    constexpr int N = Pack<T>::N;
    constexpr long long kStride = static_cast<long long>(XACT_BLOCK) * N;
    // Packs before this one are whole, but for pack 0 of a row with a skew.
    const long long whole_end = (cols + skew) / N;
    const long long apart_pack = apart < 0 ? -1 : (apart + skew) / N;
    for (long long pack = part.begin + threadIdx.x; pack < part.end; pack += XACT_BLOCK * K) {
        const long long first = pack * N - skew;
        const long long end = part.end < whole_end ? part.end : whole_end;
        const long long ahead = apart_pack - pack;
        const bool has_apart = ahead >= 0 && ahead < XACT_BLOCK * K && ahead % XACT_BLOCK == 0;
        Pack<T> packs[K];
        if (pack + (K - 1) * XACT_BLOCK < end && first >= 0 && !has_apart) {
#pragma unroll
            for (int k = 0; k < K; ++k) packs[k] = f.load(pack + k * XACT_BLOCK, first + k * kStride);
            f.template batch<false>(packs, pack, first);
            continue;
        }
        // The same one by one, with the loads still ahead of all else.
        bool whole[K];
#pragma unroll
        for (int k = 0; k < K; ++k) {
            const long long at = first + k * kStride;
            whole[k] = pack + k * XACT_BLOCK < end && at >= 0;
            if (whole[k]) packs[k] = f.load(pack + k * XACT_BLOCK, at);
        }
#pragma unroll
        for (int k = 0; k < K; ++k) {
            const long long at = first + k * kStride;
            if (whole[k]) {
                const Pack<T> one[1] = {packs[k]};
                f.template batch<true>(one, pack + k * XACT_BLOCK, at);
            }
        }
#pragma unroll 1
        for (int k = 0; k < K; ++k) {
            const long long here = pack + k * XACT_BLOCK;
            if (here >= part.end) break;
            const long long at = here * N - skew;
            if (at >= 0 && at + N <= cols) continue;
            const long long stop = at + N < cols ? at + N : cols;
#pragma unroll 1
            for (long long i = at < 0 ? 0 : at; i < stop; ++i) f.element(i);
        }
    }
}

// Writes `value` to the elements [from, to) of a part of a row.
template <class T>
__device__ inline void fill(const Row<T>& out, Part part, long long from, long long to, float value) {
    constexpr int N = Pack<T>::N;
    float values[N];
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = value;
    const Pack<T> packed(values);
    const long long before = (from + out.skew) / N;
    const long long begin = before > part.begin ? before : part.begin;
    for (long long pack = begin + threadIdx.x; pack < part.end; pack += XACT_BLOCK) {
        const long long first = pack * N - out.skew;
        if (first >= from && first + N <= to) {
            out.store(first, packed);
            continue;
        }
        const long long end = first + N < to ? first + N : to;
#pragma unroll 1
        for (long long i = first < from ? from : first; i < end; ++i) from_float(value, out.base[i]);
    }
}

}  // namespace xact
