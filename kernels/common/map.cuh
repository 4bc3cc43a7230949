// The elementwise loops, written once; an activation is a functor handed to them.
//
// A tensor is `rows` rows of `cols` elements, each buffer with its own pitch. A row is cut into
// tiles of XACT_BLOCK·XACT_PACKS packs; all tiles, numbered row by row, are cut into `chunks` equal
// runs. A block takes one chunk (or several, a grid apart, if the grid is smaller), and a chunk gives
// one partial sum per parameter. The cut depends on the shape alone (src/geometry.rs), so the sums
// have the same bits on any grid.
//
// A functor Op provides
//   kParams                           number of trainable scalars
//   Op::with<T>(args, f)              reads the parameters, calls f with the functor of this launch
//   op.value(x)                       f(x)
//   op.backward(x, dy, dx, terms)     dx, and the term of each parameter's gradient sum
//   op.chain[i]                       factor from the i-th sum to the gradient of the parameter
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

// Calls body(row, first_pack) for each tile of a chunk.
template <class Body>
__device__ inline void for_each_tile(const ActivationArgs& args, unsigned long long chunk,
                                     Body body) {
    unsigned long long left = args.rows * args.tiles_per_row - chunk * args.tiles_per_chunk;
    if (left > args.tiles_per_chunk) left = args.tiles_per_chunk;
    unsigned long long row = 0;
    unsigned long long tile = chunk * args.tiles_per_chunk;
    if (args.rows > 1) {
        row = tile / args.tiles_per_row;
        tile -= row * args.tiles_per_row;
    }
    for (; left > 0; --left) {
        body(row, tile * (XACT_BLOCK * XACT_PACKS));
        if (++tile == args.tiles_per_row) {
            tile = 0;
            ++row;
        }
    }
}

// What a thread does with its packs of one tile: load all whole ones, then compute and store one by
// one, so that XACT_PACKS vectors per buffer are in flight. A partial pack is done element by
// element. compute(in, result) receives the same W = N or W = 1 neighbours of every input.
template <class T, int kInputs, class Compute>
__device__ inline void do_tile(const Row<T> (&in)[kInputs], const Row<T>& out,
                               unsigned long long first_pack, long long cols, Compute compute) {
    constexpr int N = Pack<T>::N;
    Pack<T> packs[XACT_PACKS][kInputs];
    long long first[XACT_PACKS];
    bool whole[XACT_PACKS];
#pragma unroll
    for (int k = 0; k < XACT_PACKS; ++k) {
        const long long pack = static_cast<long long>(first_pack) + k * XACT_BLOCK + threadIdx.x;
        first[k] = pack * N - in[0].skew;
        whole[k] = first[k] >= 0 && first[k] + N <= cols;
        if (whole[k]) {
#pragma unroll
            for (int i = 0; i < kInputs; ++i) packs[k][i] = in[i].load(first[k]);
        }
    }
#pragma unroll
    for (int k = 0; k < XACT_PACKS; ++k) {
        if (whole[k]) {
            float v[kInputs][N], result[N];
#pragma unroll
            for (int i = 0; i < kInputs; ++i) packs[k][i].unpack(v[i]);
            compute(v, result);
            Pack<T> p;
            p.pack(result);
            out.store(first[k], p);
        } else {
            long long at = first[k] < 0 ? 0 : first[k];
            const long long end = first[k] + N < cols ? first[k] + N : cols;
#pragma unroll 1
            for (; at < end; ++at) {
                float v[kInputs][1], result[1];
#pragma unroll
                for (int i = 0; i < kInputs; ++i) v[i][0] = to_float(in[i].base[at]);
                compute(v, result);
                from_float(result[0], out.base[at]);
            }
        }
    }
}

template <class Op, class T>
__device__ inline void forward(const ActivationArgs& args) {
    Op::template with<T>(args, [&](const auto& op) {
        const auto compute = [&]<int W>(const float (&in)[1][W], float (&y)[W]) {
#pragma unroll
            for (int i = 0; i < W; ++i) y[i] = op.value(in[0][i]);
        };
        for (unsigned long long chunk = blockIdx.x; chunk < args.chunks; chunk += gridDim.x) {
            for_each_tile(args, chunk, [&](unsigned long long row, unsigned long long first_pack) {
                const unsigned phase = Row<T>::phase(args.x, args.x_pitch, row);
                const Row<T> in[1] = {Row<T>(args.x, args.x_pitch, row, phase)};
                const Row<T> out(args.out, args.out_pitch, row, phase);
                do_tile(in, out, first_pack, args.cols, compute);
            });
        }
    });
}

// dx, and one partial Sum per parameter and chunk at args.partials[param][chunk].
template <class Op, class T>
__device__ inline void backward(const ActivationArgs& args) {
    constexpr int P = Op::kParams;
    __shared__ float2 scratch[P][XACT_BLOCK / 32];
    Op::template with<T>(args, [&](const auto& op) {
        for (unsigned long long chunk = blockIdx.x; chunk < args.chunks; chunk += gridDim.x) {
            Sum sums[P];
            const auto compute = [&]<int W>(const float (&in)[2][W], float (&dx)[W]) {
                float terms[P][W];
#pragma unroll
                for (int i = 0; i < W; ++i) {
                    float t[P];
                    op.backward(in[0][i], in[1][i], dx[i], t);
#pragma unroll
                    for (int p = 0; p < P; ++p) terms[p][i] = t[p];
                }
#pragma unroll
                for (int p = 0; p < P; ++p) sums[p].add(tree_sum(terms[p]));
            };
            for_each_tile(args, chunk, [&](unsigned long long row, unsigned long long first_pack) {
                const unsigned phase = Row<T>::phase(args.x, args.x_pitch, row);
                const Row<T> in[2] = {Row<T>(args.x, args.x_pitch, row, phase),
                                      Row<T>(args.dy, args.dy_pitch, row, phase)};
                const Row<T> out(args.out, args.out_pitch, row, phase);
                do_tile(in, out, first_pack, args.cols, compute);
            });
            if (chunk != blockIdx.x) __syncthreads();  // thread 0 may still be reading scratch
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
    const float2* partials = reinterpret_cast<const float2*>(args.partials);
    float totals[P];
#pragma unroll
    for (int p = 0; p < P; ++p) {
        Sum sum;
        for (unsigned long long c = threadIdx.x; c < args.chunks; c += XACT_BLOCK) {
            const float2 v = partials[p * args.chunks + c];
            sum.add(Sum{v.x, v.y});
        }
        totals[p] = block_sum<XACT_BLOCK>(sum, scratch[p]).value();
    }
    if (threadIdx.x != 0) return;
    Op::template with<T>(args, [&](const auto& op) {
#pragma unroll
        for (int p = 0; p < P; ++p) {
            float* out = reinterpret_cast<float*>(args.dparams[p]);
            const float value = op.chain[p] * totals[p];
            *out = args.accumulate ? *out + value : value;
        }
    });
}

}  // namespace xact

#define XACT_ENTRY(name, Op, direction, suffix, T)                                         \
    extern "C" __global__ void __launch_bounds__(XACT_BLOCK)                               \
        name##_##direction##_##suffix(const __grid_constant__ xact::ActivationArgs args) { \
        xact::direction<Op, T>(args);                                                      \
    }

// All entries of an activation, named <name>_<direction>_<dtype>.
#define XACT_ACTIVATION_OF(name, Op, suffix, T) \
    XACT_ENTRY(name, Op, forward, suffix, T)    \
    XACT_ENTRY(name, Op, backward, suffix, T)   \
    XACT_ENTRY(name, Op, dparams, suffix, T)
#define XACT_ACTIVATION(name, Op)              \
    XACT_ACTIVATION_OF(name, Op, f32, float)   \
    XACT_ACTIVATION_OF(name, Op, f16, __half)  \
    XACT_ACTIVATION_OF(name, Op, bf16, __nv_bfloat16)
