// The elementwise loops, written once; an activation is a functor handed to them.
//
// A tensor is `rows` rows of `cols` elements, each buffer with its own pitch. A row is cut into
// tiles of XACT_BLOCK·XACT_PACKS packs; all tiles, numbered row by row, are cut into `chunks` equal
// runs. A block takes one chunk (or several, a grid apart, if the grid is smaller), and a chunk gives
// one partial sum per parameter. The cut depends on the shape alone (src/geometry.rs), so the sums
// have the same bits on any grid.
//
// A functor Op provides
//   kParams                          number of trainable scalars
//   Op::with(args, f)                reads the parameters, calls f with the functor for this launch
//   op.value(x)                      f(x)
//   op.backward(x, dy, dx, dparams)  dx, and the term of each parameter's gradient sum
//   op.chain[i]                      factor from the i-th sum to the gradient of the raw parameter
#pragma once

#include "args.cuh"
#include "pack.cuh"
#include "reduce.cuh"

#if !defined(XACT_BLOCK) || !defined(XACT_PACKS)
#error "XACT_BLOCK and XACT_PACKS come from src/geometry.rs through build.rs"
#endif

namespace xact {

// A trainable scalar, read from the device: f32, or the tensor's own type.
template <class T>
__device__ inline float read_param(const ActivationArgs& args, int i) {
    return args.params_are_f32 ? *reinterpret_cast<const float*>(args.params[i])
                               : to_float(*reinterpret_cast<const T*>(args.params[i]));
}

// Calls body(row, first_pack, skew) for each tile of chunk `chunk`.
template <class T, class Body>
__device__ inline void for_each_tile(const ActivationArgs& args, unsigned long long chunk,
                                     Body body) {
    const unsigned long long tiles = args.rows * args.tiles_per_row;
    const unsigned long long begin = chunk * args.tiles_per_chunk;
    unsigned long long end = begin + args.tiles_per_chunk;
    if (end > tiles) end = tiles;
    unsigned long long row = begin / args.tiles_per_row;
    unsigned long long tile = begin - row * args.tiles_per_row;
    for (unsigned long long t = begin; t < end; ++t) {
        body(row, static_cast<long long>(tile) * (XACT_BLOCK * XACT_PACKS));
        if (++tile == args.tiles_per_row) {
            tile = 0;
            ++row;
        }
    }
}

// What a thread does with its packs of one tile: load all, then compute and store one by one, so
// that XACT_PACKS vectors per buffer are in flight.
template <class T, int kInputs, class Compute>
__device__ inline void tile(const Row<T> (&in)[kInputs], const Row<T>& out, long long first_pack,
                            unsigned skew, long long cols, Compute compute) {
    constexpr int N = Pack<T>::N;
    Pack<T> packs[XACT_PACKS][kInputs];
    long long first[XACT_PACKS];
#pragma unroll
    for (int k = 0; k < XACT_PACKS; ++k) {
        first[k] = (first_pack + k * XACT_BLOCK + threadIdx.x) * N - static_cast<long long>(skew);
        const bool whole = first[k] >= 0 && first[k] + N <= cols;
#pragma unroll
        for (int i = 0; i < kInputs; ++i) {
            packs[k][i] = whole ? in[i].load(first[k]) : in[i].load_partial(first[k], cols);
        }
    }
#pragma unroll
    for (int k = 0; k < XACT_PACKS; ++k) {
        if (first[k] >= cols) break;
        const bool whole = first[k] >= 0 && first[k] + N <= cols;
        float x[kInputs][N];
#pragma unroll
        for (int i = 0; i < kInputs; ++i) packs[k][i].unpack(x[i]);
        float y[N];
        compute(x, y);
        Pack<T> result;
        result.pack(y);
        if (whole) {
            out.store(first[k], result);
        } else {
            out.store_partial(first[k], cols, result);
        }
    }
}

template <class Op, class T>
__device__ inline void forward(const ActivationArgs& args) {
    constexpr int N = Pack<T>::N;
    Op::template with<T>(args, [&](const auto& op) {
        for (unsigned long long chunk = blockIdx.x; chunk < args.chunks; chunk += gridDim.x) {
            for_each_tile<T>(args, chunk, [&](unsigned long long row, long long first_pack) {
                const T* anchor = reinterpret_cast<const T*>(args.x) + row * args.x_pitch;
                const unsigned phase = Row<T>::phase(anchor);
                const Row<T> in[1] = {Row<T>(args.x, args.x_pitch, row, phase)};
                const Row<T> out(args.out, args.out_pitch, row, phase);
                tile<T>(in, out, first_pack, phase / sizeof(T), static_cast<long long>(args.cols),
                        [&](const float (&x)[1][N], float (&y)[N]) {
#pragma unroll
                            for (int i = 0; i < N; ++i) y[i] = op.value(x[0][i]);
                        });
            });
        }
    });
}

// dx, and one partial Sum per parameter and chunk at args.partials[param][chunk]. An element outside
// the row is loaded as x = dy = 0, whose terms are 0.
template <class Op, class T>
__device__ inline void backward(const ActivationArgs& args) {
    constexpr int N = Pack<T>::N;
    constexpr int P = Op::kParams;
    __shared__ float2 scratch[P][XACT_BLOCK / 32];
    Op::template with<T>(args, [&](const auto& op) {
        for (unsigned long long chunk = blockIdx.x; chunk < args.chunks; chunk += gridDim.x) {
            Sum sums[P];
            for_each_tile<T>(args, chunk, [&](unsigned long long row, long long first_pack) {
                const T* anchor = reinterpret_cast<const T*>(args.x) + row * args.x_pitch;
                const unsigned phase = Row<T>::phase(anchor);
                const Row<T> in[2] = {Row<T>(args.x, args.x_pitch, row, phase),
                                      Row<T>(args.dy, args.dy_pitch, row, phase)};
                const Row<T> out(args.out, args.out_pitch, row, phase);
                tile<T>(in, out, first_pack, phase / sizeof(T), static_cast<long long>(args.cols),
                        [&](const float (&in)[2][N], float (&dx)[N]) {
                            float terms[P][N];
#pragma unroll
                            for (int i = 0; i < N; ++i) {
                                float t[P];
                                op.backward(in[0][i], in[1][i], dx[i], t);
#pragma unroll
                                for (int p = 0; p < P; ++p) terms[p][i] = t[p];
                            }
#pragma unroll
                            for (int p = 0; p < P; ++p) sums[p].add(tree_sum(terms[p]));
                        });
            });
            __syncthreads();
            float2* partials = reinterpret_cast<float2*>(args.partials);
#pragma unroll
            for (int p = 0; p < P; ++p) {
                const Sum total = block_sum<XACT_BLOCK>(sums[p], scratch[p]);
                if (threadIdx.x == 0) {
                    partials[p * args.chunks + chunk] = make_float2(total.sum, total.comp);
                }
            }
        }
    });
}

// The second stage: one block adds the partials of each parameter in a fixed order.
template <class Op, class T>
__device__ inline void dparams(const ActivationArgs& args) {
    constexpr int P = Op::kParams;
    __shared__ float2 scratch[P][XACT_BLOCK / 32];
    Op::template with<T>(args, [&](const auto& op) {
        const float2* partials = reinterpret_cast<const float2*>(args.partials);
#pragma unroll
        for (int p = 0; p < P; ++p) {
            Sum sum;
            for (unsigned long long c = threadIdx.x; c < args.chunks; c += XACT_BLOCK) {
                const float2 v = partials[p * args.chunks + c];
                Sum part;
                part.sum = v.x;
                part.comp = v.y;
                sum.add(part);
            }
            const Sum total = block_sum<XACT_BLOCK>(sum, scratch[p]);
            if (threadIdx.x == 0) {
                float* out = reinterpret_cast<float*>(args.dparams[p]);
                const float value = op.chain[p] * total.value();
                *out = args.accumulate ? *out + value : value;
            }
        }
    });
}

}  // namespace xact

#define XACT_ENTRY(name, Op, direction, suffix, T)                                     \
    extern "C" __global__ void __launch_bounds__(XACT_BLOCK)                           \
        name##_##direction##_##suffix(const __grid_constant__ xact::ActivationArgs args) { \
        xact::direction<Op, T>(args);                                                  \
    }

// All entries of an activation: <name>_<direction>_<dtype>.
#define XACT_ACTIVATION_FOR(name, Op, suffix, T) \
    XACT_ENTRY(name, Op, forward, suffix, T)     \
    XACT_ENTRY(name, Op, backward, suffix, T)    \
    XACT_ENTRY(name, Op, dparams, suffix, T)
#define XACT_ACTIVATION(name, Op)                        \
    XACT_ACTIVATION_FOR(name, Op, f32, float)            \
    XACT_ACTIVATION_FOR(name, Op, f16, __half)           \
    XACT_ACTIVATION_FOR(name, Op, bf16, __nv_bfloat16)
