// The elementwise loops. An activation is a functor that they call.
//
// A tensor has `rows` rows of `cols` elements, and each buffer has its own row pitch. A row is divided into
// tiles of XACT_BLOCK·XACT_PACKS packs. All tiles, numbered row by row, are divided into `chunks` equal runs.
// A block takes one chunk, or several in a grid-stride loop if the grid is smaller, and a chunk gives one
// partial sum per parameter. The division depends on the shape alone (src/geometry.rs), so the sums have the
// same bits on any grid.
//
// An activation f(x) = x·G(x) is used plain, y = f(x), or gated by a second input v:
//
//   order 1:  y = G(x)·v        order 2:  y = f(x)·v
//
//   dx = dy·v·g'(x)    dv = dy·g(x)    dp = Σ dy·v·∂g/∂p    with g = G or f, and v = 1 if plain
//
// A functor Op provides
//   kParams                  number of trainable scalars
//   Op::with<T>(args, f)     reads the parameters, calls f with the functor of this launch
//   op.at(Order<1 or 2, what is used of the Point>, x, upstream)
//                            a Point of G or f; the compiler removes fields that are not used
//   op.chain[i]              factor from the i-th sum to the gradient of the parameter
#pragma once

#include "args.cuh"
#include "pack.cuh"
#include "reduce.cuh"

#if !defined(XACT_BLOCK) || !defined(XACT_BLOCKS_OF_1) || !defined(XACT_BLOCKS_OF_2) || \
    !defined(XACT_BLOCKS_OF_3) || !defined(XACT_PACKS)
#error "the XACT_ numbers come from src/geometry.rs through build.rs"
#endif

namespace xact {

// The form of an activation: plain, or gated with an order.
enum class Form { Plain, Gated1, Gated2 };

__host__ __device__ constexpr bool is_gated(Form form) { return form != Form::Plain; }
__host__ __device__ constexpr int order(Form form) { return form == Form::Gated1 ? 1 : 2; }

// What a caller uses of a Point: the forward its value, the plain backward all but its value.
enum class Use { Value, Derivatives, All };

// Chooses between the overloads of at().
template <int kOrder, Use kUse>
struct Order {};

// A function g at one x: g, g', and upstream·∂g/∂p for each parameter. A functor multiplies in an order in
// which no intermediate overflows, so that the terms are 0 for a finite x and an upstream gradient of 0.
template <int kParams>
struct Point {
    float value;
    float slope;
    float terms[kParams];
};

// A trainable scalar, read from the device: f32, or the tensor's own type.
template <class T>
__device__ inline float read_param(const ActivationArgs& args, int i) {
    return args.params_are_f32 ? *reinterpret_cast<const float*>(args.params[i])
                               : to_float(*reinterpret_cast<const T*>(args.params[i]));
}

// Calls body(row, tile, tiles) for each run of tiles of one row in the block's chunks, and
// end_of_chunk(chunk).
template <class Body, class End>
__device__ inline void for_each_run(const ActivationArgs& args, Body body, End end_of_chunk) {
    for (unsigned long long chunk = blockIdx.x; chunk < args.chunks; chunk += gridDim.x) {
        unsigned long long left = args.rows * args.tiles_per_row - chunk * args.tiles_per_chunk;
        if (left > args.tiles_per_chunk) left = args.tiles_per_chunk;
        unsigned long long row = 0;
        unsigned long long tile = chunk * args.tiles_per_chunk;
        if (args.rows > 1) {
            row = tile / args.tiles_per_row;
            tile -= row * args.tiles_per_row;
        }
        while (left > 0) {
            unsigned long long tiles = args.tiles_per_row - tile;
            if (tiles > left) tiles = left;
            body(row, tile, tiles);
            left -= tiles;
            tile = 0;
            ++row;
        }
        end_of_chunk(chunk);
    }
}

// The work of a thread on its packs of one tile. It loads all whole packs, then computes and stores one after
// the other, so that XACT_PACKS vectors per buffer are in flight. A partial pack is computed element by
// element. compute(in, out) gets the same W = N or W = 1 neighbours of every input. If `again` has a buffer,
// compute.again(in, out) computes its contents in a second evaluation, which costs nothing without the
// buffer.
template <class T, int kInputs, int kOutputs, class Compute>
__device__ inline void do_tile(const Row<T> (&in)[kInputs], const Row<T> (&out)[kOutputs],
                               const Row<T>& again, unsigned long long index, long long cols,
                               Compute compute) {
    constexpr int N = Pack<T>::N;
    Pack<T> packs[XACT_PACKS][kInputs];
    long long first[XACT_PACKS];
    bool whole[XACT_PACKS];
    // If all packs are whole and all inputs have the same alignment, one branch covers all loads. With a
    // branch for each input, ptxas waits for some of three 16-bit inputs before it loads the others. A single
    // input needs no branch.
    bool straight = kInputs > 1;
#pragma unroll
    for (int i = 1; i < kInputs; ++i) straight = straight && in[i].opaque_width() == 16;
#pragma unroll
    for (int k = 0; k < XACT_PACKS; ++k) {
        const long long pack = index * (XACT_BLOCK * XACT_PACKS) + k * XACT_BLOCK + threadIdx.x;
        first[k] = pack * N - in[0].skew;
        whole[k] = first[k] >= 0 && first[k] + N <= cols;
        straight = straight && whole[k];
    }
    if (straight) {
#pragma unroll
        for (int k = 0; k < XACT_PACKS; ++k) {
#pragma unroll
            for (int i = 0; i < kInputs; ++i) packs[k][i] = in[i].load_aligned(first[k]);
        }
    } else {
#pragma unroll
        for (int k = 0; k < XACT_PACKS; ++k) {
            if (!whole[k]) continue;
#pragma unroll
            for (int i = 0; i < kInputs; ++i) packs[k][i] = in[i].load(first[k]);
        }
    }
#pragma unroll
    for (int k = 0; k < XACT_PACKS; ++k) {
        if (whole[k]) {
            float v[kInputs][N];
#pragma unroll
            for (int i = 0; i < kInputs; ++i) packs[k][i].unpack(v[i]);
            float result[kOutputs][N];
            compute(v, result);
#pragma unroll
            for (int o = 0; o < kOutputs; ++o) out[o].store(first[k], Pack<T>(result[o]));
            if (again.base != nullptr) {
#pragma unroll
                for (int i = 0; i < kInputs; ++i) {
                    packs[k][i].forget();
                    packs[k][i].unpack(v[i]);
                }
                float y[N];
                compute.again(v, y);
                again.store(first[k], Pack<T>(y));
            }
        } else {
            long long at = first[k] < 0 ? 0 : first[k];
            const long long end = first[k] + N < cols ? first[k] + N : cols;
#pragma unroll 1
            for (; at < end; ++at) {
                float v[kInputs][1], result[kOutputs][1], y[1];
#pragma unroll
                for (int i = 0; i < kInputs; ++i) v[i][0] = to_float(in[i].base[at]);
                compute(v, result);
#pragma unroll
                for (int o = 0; o < kOutputs; ++o) from_float(result[o][0], out[o].base[at]);
                if (again.base != nullptr) {
                    compute.again(v, y);
                    from_float(y[0], again.base[at]);
                }
            }
        }
    }
}

// Inputs x (, v); output y.
template <class Functor, Form kForm>
struct Forward {
    static constexpr int kInputs = is_gated(kForm) ? 2 : 1;
    static constexpr int kOutputs = 1;

    const Functor& op;

    template <int W>
    __device__ void operator()(const float (&in)[kInputs][W], float (&out)[kOutputs][W]) const {
#pragma unroll
        for (int i = 0; i < W; ++i) {
            const float g = op.at(Order<order(kForm), Use::Value>(), in[0][i], 0.0f).value;
            out[0][i] = is_gated(kForm) ? g * in[kInputs - 1][i] : g;
        }
    }

    template <int W>
    __device__ void again(const float (&)[kInputs][W], float (&)[W]) const {}
};

// Inputs x, dy (, v); outputs dx (, dv) and, if it has a buffer, y. Sums the terms of the parameter
// gradients.
template <class Functor, Form kForm>
struct Backward {
    static constexpr int kInputs = is_gated(kForm) ? 3 : 2;
    static constexpr int kOutputs = is_gated(kForm) ? 2 : 1;
    static constexpr int P = Functor::kParams;
    static constexpr Use kUse = is_gated(kForm) ? Use::All : Use::Derivatives;

    const Functor& op;
    const ActivationArgs& args;
    Sum (&sums)[P];

    template <int W>
    __device__ void operator()(const float (&in)[kInputs][W], float (&out)[kOutputs][W]) const {
        TreeSum<W> terms[P];
#pragma unroll
        for (int i = 0; i < W; ++i) {
            const float dy = in[1][i];
            const float dg = is_gated(kForm) ? dy * in[kInputs - 1][i] : dy;
            const Point<P> g = op.at(Order<order(kForm), kUse>(), in[0][i], dg);
            out[0][i] = dg * g.slope;
            if (is_gated(kForm)) out[kOutputs - 1][i] = dy * g.value;
#pragma unroll
            for (int p = 0; p < P; ++p) terms[p].add(i, g.terms[p]);
        }
#pragma unroll
        for (int p = 0; p < P; ++p) {
            if (args.dparams[p] != 0) sums[p].add(terms[p].value());
        }
    }

    template <int W>
    __device__ void again(const float (&in)[kInputs][W], float (&y)[W]) const {
#pragma unroll
        for (int i = 0; i < W; ++i) {
            const float g = op.at(Order<order(kForm), Use::Value>(), in[0][i], 0.0f).value;
            y[i] = is_gated(kForm) ? g * in[kInputs - 1][i] : g;
        }
    }
};

template <class T, Form kForm, class Functor>
__device__ inline void run_forward(const ActivationArgs& args, const Functor& op) {
    const Forward<Functor, kForm> compute{op};
    const auto run = [&](unsigned long long row, unsigned long long tile, unsigned long long tiles) {
        const unsigned phase = Row<T>::phase(args.x, row);
        Row<T> in[compute.kInputs], out[1] = {Row<T>(args.y, row, phase)};
        const Row<T> none;
        if (is_gated(kForm)) in[compute.kInputs - 1] = Row<T>(args.v, row, phase);
        in[0] = Row<T>(args.x, row, phase);
        for (; tiles > 0; --tiles, ++tile) do_tile(in, out, none, tile, args.cols, compute);
    };
    for_each_run(args, run, [](unsigned long long) {});
}

template <class T, Form kForm, class Functor, int P>
__device__ inline void run_backward(const ActivationArgs& args, const Functor& op,
                                    float2 (&scratch)[P][XACT_BLOCK / 32]) {
    Sum sums[P];
    const Backward<Functor, kForm> compute{op, args, sums};
    const auto run = [&](unsigned long long row, unsigned long long tile, unsigned long long tiles) {
        const unsigned phase = Row<T>::phase(args.x, row);
        Row<T> in[compute.kInputs], out[compute.kOutputs];
        if (is_gated(kForm)) {
            in[compute.kInputs - 1] = Row<T>(args.v, row, phase);
            out[compute.kOutputs - 1] = Row<T>(args.dv, row, phase);
        }
        in[0] = Row<T>(args.x, row, phase);
        in[1] = Row<T>(args.dy, row, phase);
        out[0] = Row<T>(args.dx, row, phase);
        const Row<T> y(args.y, row, phase);
        for (; tiles > 0; --tiles, ++tile) do_tile(in, out, y, tile, args.cols, compute);
    };
    for_each_run(args, run, [&](unsigned long long chunk) {
        if (chunk != blockIdx.x) __syncthreads();  // thread 0 may still be reading scratch
        float2* partials = reinterpret_cast<float2*>(args.partials);
#pragma unroll
        for (int p = 0; p < P; ++p) {
            if (args.dparams[p] == 0) continue;
            const Sum total = block_sum<XACT_BLOCK>(sums[p], scratch[p]);
            if (threadIdx.x == 0) {
                partials[p * args.chunks + chunk] = make_float2(total.sum, total.comp);
            }
            sums[p] = Sum();
        }
    });
}

template <class Op, class T, Form kForm>
__device__ inline void forward(const ActivationArgs& args) {
    Op::template with<T>(args, [&](const auto& op) { run_forward<T, kForm>(args, op); });
}

// Writes dx (and dv), y if it has a buffer, and one partial Sum per parameter and chunk to
// args.partials[param][chunk].
template <class Op, class T, Form kForm>
__device__ inline void backward(const ActivationArgs& args) {
    __shared__ float2 scratch[Op::kParams][XACT_BLOCK / 32];
    Op::template with<T>(args, [&](const auto& op) { run_backward<T, kForm>(args, op, scratch); });
}

// The second stage: one block for each parameter adds its partial sums in a fixed order.
template <class Op, class T>
__device__ inline void dparams(const ActivationArgs& args) {
    constexpr int P = Op::kParams;
    __shared__ float2 scratch[XACT_BLOCK / 32];
#pragma unroll
    for (int p = 0; p < P; ++p) {
        if (p != blockIdx.x || args.dparams[p] == 0) continue;
        const float2* partials = reinterpret_cast<const float2*>(args.partials) + p * args.chunks;
        Sum sum;
        for (unsigned long long c = threadIdx.x; c < args.chunks; c += XACT_BLOCK) {
            const float2 v = partials[c];
            sum.add(Sum(v.x, v.y));
        }
        const float total = block_sum<XACT_BLOCK>(sum, scratch).value();
        if (threadIdx.x != 0) return;
        Op::template with<T>(args, [&](const auto& op) {
            float* out = reinterpret_cast<float*>(args.dparams[p]);
            const float value = op.chain[p] * total;
            *out = args.accumulate ? *out + value : value;
        });
    }
}

}  // namespace xact

#define XACT_ENTRY(name, blocks, body)                               \
    extern "C" __global__ void __launch_bounds__(XACT_BLOCK, blocks) \
        name(const __grid_constant__ xact::ActivationArgs args) {    \
        body;                                                        \
    }

// The entries of an activation, named <name>_<task>_<dtype>.
#define XACT_FORM(name, Op, suffix, T, prefix, form, forward_blocks, backward_blocks) \
    XACT_ENTRY(name##_##prefix##forward_##suffix, forward_blocks,                     \
               (xact::forward<Op, T, xact::Form::form>(args)))                        \
    XACT_ENTRY(name##_##prefix##backward_##suffix, backward_blocks,                   \
               (xact::backward<Op, T, xact::Form::form>(args)))
#define XACT_PLAIN_OF(name, Op, suffix, T)                                      \
    XACT_FORM(name, Op, suffix, T, , Plain, XACT_BLOCKS_OF_1, XACT_BLOCKS_OF_2) \
    XACT_ENTRY(name##_dparams_##suffix, 1, (xact::dparams<Op, T>(args)))
#define XACT_GATED_OF(name, Op, suffix, T)                                              \
    XACT_FORM(name, Op, suffix, T, gated1_, Gated1, XACT_BLOCKS_OF_2, XACT_BLOCKS_OF_3) \
    XACT_FORM(name, Op, suffix, T, gated2_, Gated2, XACT_BLOCKS_OF_2, XACT_BLOCKS_OF_3)

// An activation, and its gated forms.
#define XACT_ACTIVATION(name, Op)        \
    XACT_PLAIN_OF(name, Op, f32, float)  \
    XACT_PLAIN_OF(name, Op, f16, __half) \
    XACT_PLAIN_OF(name, Op, bf16, __nv_bfloat16)
#define XACT_GATED(name, Op)             \
    XACT_GATED_OF(name, Op, f32, float)  \
    XACT_GATED_OF(name, Op, f16, __half) \
    XACT_GATED_OF(name, Op, bf16, __nv_bfloat16)
