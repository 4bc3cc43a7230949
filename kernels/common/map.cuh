// The elementwise loops. An activation is a functor that they call.
//
// A tensor has `rows` rows of `cols` elements, and each buffer has its own row pitch. The packs of all rows
// (pack.cuh, anchored at x) are numbered row by row, `packs_per_row` in each, and XACT_BLOCK·XACT_PACKS
// consecutive ones are a tile, so that several short rows share a tile. A block takes one chunk of tiles, or
// several in a grid-stride loop if the grid is smaller, and a chunk gives one partial sum per parameter. The
// division depends on the shape and on the alignment of x alone (src/geometry.rs), so the sums have the same
// bits on any grid.
//
// There are two loops. whole_tiles takes the tiles that lie in one row where all buffers are aligned alike;
// it is what training runs, and has no branch. any_tile takes the others.
//
// An activation f(x) = x·G(x) is used plain, y = f(x), or gated by a second input v:
//
//   order 1:  y = G(x)·v        order 2:  y = f(x)·v
//
//   dx = dy·v·g'(x)    dv = dy·g(x)    dp = Σ dy·v·∂g/∂p    with g = G or f, and v = 1 if plain
//
// A functor Op provides
//   kParams                  number of trainable scalars
//   kUsual                   the first kUsual of them are summed in whole_tiles; calls that want the sums of
//                            others too take any_tile. All of them, unless the functor says otherwise
//   kName                    loop_name("..."), if the op has several functors
//   Op::with<T>(args, f)     reads the parameters, calls f with the functor of this launch
//   op.at(Order<1 or 2, what is used of the Point>, x, upstream)
//                            a Point of G or f; the compiler removes fields that are not used
//   op.chain[i]              factor from the i-th sum to the gradient of the parameter
#pragma once

#include "args.cuh"
#include "pack.cuh"
#include "reduce.cuh"

#if !defined(XACT_BLOCK) || !defined(XACT_BLOCKS_OF_1) || !defined(XACT_BLOCKS_OF_2) || \
    !defined(XACT_BLOCKS_OF_3) || !defined(XACT_PACKS) || !defined(XACT_MAX_CHUNKS) || !defined(XACT_FOLDS)
#error "the XACT_ numbers come from src/geometry.rs through build.rs"
#endif

// A comment in the PTX from which `cargo xtask sass` knows a loop: the functor's name, the sums that are
// taken, and whether y is written. It is no instruction.
#define XACT_MARK(name, sums, with_y) \
    asm volatile("// xact loop %0 %1 %2" ::"n"(name), "n"(sums), "n"(static_cast<int>(with_y)))

namespace xact {

using u64 = unsigned long long;

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

// Up to 8 characters as a number, which an asm statement can print.
__host__ __device__ constexpr u64 loop_name(const char* text) {
    u64 name = 0;
    for (; *text != 0; ++text) name = name << 8 | static_cast<unsigned char>(*text);
    return name;
}

template <class Functor>
__host__ __device__ constexpr u64 name_of() {
    if constexpr (requires { Functor::kName; }) return Functor::kName;
    return 0;
}
template <class Functor>
__host__ __device__ constexpr int usual_sums() {
    if constexpr (requires { Functor::kUsual; }) return Functor::kUsual;
    return Functor::kParams;
}

// A pack: its row, and its first element in the row, which is negative in pack 0 of a row with a skew.
struct Spot {
    u64 row;
    long long first;
};

// Its address in a matrix of elements T, as a pointer to As.
template <class As, class T = As>
__device__ inline As* at(const Matrix& matrix, Spot spot) {
    return reinterpret_cast<As*>(reinterpret_cast<T*>(matrix.ptr) + (spot.row * matrix.pitch + spot.first));
}

template <class T>
__device__ inline Spot spot_of(const ActivationArgs& args, u64 pack) {
    u64 row = 0;
    if (args.rows > 1) {
        // With row_factor = ⌊(2^64 − 1)/packs_per_row⌋ the quotient is exact or 1 too small.
        row = __umul64hi(pack, args.row_factor);
        pack -= row * args.packs_per_row;
        if (pack >= args.packs_per_row) {
            ++row;
            pack -= args.packs_per_row;
        }
    }
    const int skew = Row<T>::phase(args.x, row) / sizeof(T);
    return {row, static_cast<long long>(pack * Pack<T>::N) - skew};
}

// The packs of a tile.
constexpr int kTile = XACT_BLOCK * XACT_PACKS;

// Ends the basic block, at the cost of one instruction; `aligned` is not 0. Otherwise ptxas delays some of
// the loads before it until others have arrived, for a few registers.
__device__ inline void after_loads(unsigned aligned) {
    asm volatile("{.reg .pred p; setp.eq.u32 p, %0, 0; @p exit;}" ::"r"(aligned));
}

// The work of a thread on tiles that lie in one row, from the pack `spot` on, with all buffers aligned like
// x.
template <class T, int kInputs, int kOutputs, class Compute>
__device__ inline void whole_tiles(const Matrix* const (&in)[kInputs], const Matrix* const (&out)[kOutputs],
                                   Spot spot, unsigned tiles, unsigned aligned, const Compute& compute) {
    constexpr int N = Pack<T>::N;
    spot.first += static_cast<int>(threadIdx.x) * N;
    const uint4* from[kInputs];
    uint4* to[kOutputs];
#pragma unroll
    for (int i = 0; i < kInputs; ++i) from[i] = at<const uint4, T>(*in[i], spot);
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) to[o] = at<uint4, T>(*out[o], spot);
#pragma unroll 1
    for (; tiles > 0; --tiles) {
        compute.mark();
        Pack<T> packs[XACT_PACKS][kInputs];
#pragma unroll
        for (int k = 0; k < XACT_PACKS; ++k) {
#pragma unroll
            for (int i = 0; i < kInputs; ++i) packs[k][i].set(load_vector(from[i] + k * XACT_BLOCK));
        }
#pragma unroll
        for (int k = 0; k < XACT_PACKS; ++k) {
            after_loads(aligned);
            float v[kInputs][N], result[kOutputs][N];
#pragma unroll
            for (int i = 0; i < kInputs; ++i) packs[k][i].unpack(v[i]);
            compute(v, result);
#pragma unroll
            for (int o = 0; o < kOutputs; ++o) {
                store_vector(to[o] + k * XACT_BLOCK, Pack<T>(result[o]).v16);
            }
        }
#pragma unroll
        for (int i = 0; i < kInputs; ++i) from[i] += kTile;
#pragma unroll
        for (int o = 0; o < kOutputs; ++o) to[o] += kTile;
    }
}

// The work of a thread on its packs of one tile of any rows and alignments. An output without a buffer is not
// written. The elements that a partial pack lacks are computed as zeros, which add 0 to every sum.
template <class T, int kInputs, int kOutputs, class Compute>
__device__ inline void any_tile(const ActivationArgs& args, const Matrix* const (&in)[kInputs],
                                const Matrix* const (&out)[kOutputs], u64 tile, const Compute& compute) {
    constexpr int N = Pack<T>::N;
    constexpr int K = XACT_PACKS;
    Pack<T> packs[K][kInputs];
    Spot spots[K];
    bool whole[K];
    // If all packs are whole and aligned, one branch covers all loads. With a branch for each input, ptxas
    // waits for some of three 16-bit inputs before it loads the others.
    bool straight = true;
#pragma unroll
    for (int k = 0; k < K; ++k) {
        spots[k] = spot_of<T>(args, tile * kTile + k * XACT_BLOCK + threadIdx.x);
        // Packs beyond the last row have no elements.
        if (spots[k].row >= args.rows) spots[k].first = args.cols;
        whole[k] = spots[k].first >= 0 && spots[k].first + N <= args.cols;
        straight = straight && whole[k];
#pragma unroll
        for (int i = 1; i < kInputs; ++i) straight = straight && width_at(at<T>(*in[i], spots[k])) == 16;
    }
    if (straight) {
#pragma unroll
        for (int k = 0; k < K; ++k) {
#pragma unroll
            for (int i = 0; i < kInputs; ++i)
                packs[k][i].set(load_vector(at<const uint4, T>(*in[i], spots[k])));
        }
    } else {
#pragma unroll
        for (int k = 0; k < K; ++k) {
#pragma unroll
            for (int i = 0; i < kInputs; ++i) {
                const T* from = at<T>(*in[i], spots[k]);
                if (whole[k]) {
                    packs[k][i].load(from, width_at(from));
                } else {
                    packs[k][i].load_some(from, -spots[k].first, args.cols - spots[k].first);
                }
            }
        }
    }
    // Not unrolled, for half the code.
#pragma unroll 1
    for (int k = 0; k < K; ++k) {
        float v[kInputs][N], result[kOutputs][N];
#pragma unroll
        for (int i = 0; i < kInputs; ++i) packs[0][i].unpack(v[i]);
        compute(v, result);
#pragma unroll
        for (int o = 0; o < kOutputs; ++o) {
            if (out[o]->ptr == 0) continue;
            T* to = at<T>(*out[o], spots[0]);
            if (whole[0]) {
                Pack<T>(result[o]).store(to, width_at(to));
            } else {
                Pack<T>(result[o]).store_some(to, -spots[0].first, args.cols - spots[0].first);
            }
        }
#pragma unroll
        for (int j = 0; j + 1 < K; ++j) {
            spots[j] = spots[j + 1];
            whole[j] = whole[j + 1];
#pragma unroll
            for (int i = 0; i < kInputs; ++i) packs[j][i] = packs[j + 1][i];
        }
    }
}

// Calls whole(spot, tiles) and any(tile) for the `left` tiles before end(). Without `fast`, any takes all.
template <class T, class End, class Whole, class Any>
__device__ inline void for_each_tile(const ActivationArgs& args, unsigned left, End end, bool fast,
                                     Whole whole, Any any) {
    while (left > 0) {
        const u64 tile = end() - left;
        Spot spot;
        unsigned tiles = 0;
        if (fast) {
            spot = spot_of<T>(args, tile * kTile);
            const long long ahead = args.cols - spot.first;
            if (spot.first >= 0 && ahead > 0) {
                const u64 in_row = static_cast<u64>(ahead) / (kTile * Pack<T>::N);
                tiles = in_row < left ? static_cast<unsigned>(in_row) : left;
            }
        }
        if (tiles > 0) {
            left -= tiles;
            whole(spot, tiles);
        } else {
            --left;
            any(tile);
        }
    }
}

// Inputs x (, v); output y.
template <class Functor, Form kForm>
struct Forward {
    static constexpr int kInputs = is_gated(kForm) ? 2 : 1;
    static constexpr int kOutputs = 1;

    const Functor& op;

    __device__ void mark() const { XACT_MARK(name_of<Functor>(), 0, 0); }

    template <int N>
    __device__ void operator()(const float (&in)[kInputs][N], float (&out)[kOutputs][N]) const {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const float g = op.at(Order<order(kForm), Use::Value>(), in[0][i], 0.0f).value;
            out[0][i] = is_gated(kForm) ? g * in[kInputs - 1][i] : g;
        }
    }
};

// Inputs x, dy (, v); outputs dx (, dv) and, if kWithY, y. Sums the terms of the first kSums parameter
// gradients.
template <class Functor, Form kForm, int kSums, bool kWithY>
struct Backward {
    static constexpr int kInputs = is_gated(kForm) ? 3 : 2;
    static constexpr int kOutputs = (is_gated(kForm) ? 2 : 1) + kWithY;
    static constexpr int P = Functor::kParams;
    static constexpr Use kUse = is_gated(kForm) ? Use::All : Use::Derivatives;

    const Functor& op;
    Sum (&sums)[P];

    __device__ void mark() const { XACT_MARK(name_of<Functor>(), kSums, kWithY); }

    template <int N>
    __device__ void operator()(const float (&in)[kInputs][N], float (&out)[kOutputs][N]) const {
        TreeSum<N> terms[P];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const float dy = in[1][i];
            const float dg = is_gated(kForm) ? dy * in[kInputs - 1][i] : dy;
            const Point<P> g = op.at(Order<order(kForm), kUse>(), in[0][i], dg);
            // With the formula of the forward, so that y has its bits.
            const float value = op.at(Order<order(kForm), Use::Value>(), in[0][i], 0.0f).value;
            if (kWithY) out[kOutputs - 1][i] = is_gated(kForm) ? value * in[kInputs - 1][i] : value;
            if (is_gated(kForm)) out[kGated][i] = dy * g.value;
            out[0][i] = dg * g.slope;
#pragma unroll
            for (int p = 0; p < kSums; ++p) terms[p].add(i, g.terms[p]);
        }
#pragma unroll
        for (int p = 0; p < kSums; ++p) sums[p].add(terms[p].value());
    }

    // The place of dv among the outputs.
    static constexpr int kGated = is_gated(kForm) ? 1 : 0;
};

template <class T, Form kForm, class Functor>
__device__ inline void run_forward(const ActivationArgs& args, const Functor& op) {
    const Forward<Functor, kForm> compute{op};
    const Matrix* in[compute.kInputs];
    in[compute.kInputs - 1] = &args.v;
    in[0] = &args.x;
    const Matrix* const out[1] = {&args.y};
    const auto whole = [&](Spot spot, unsigned tiles) {
        whole_tiles<T>(in, out, spot, tiles, args.aligned, compute);
    };
    const auto any = [&](u64 tile) { any_tile<T>(args, in, out, tile, compute); };
    // A chunk is a tile.
    for (u64 tile = blockIdx.x; tile < args.chunks; tile += gridDim.x) {
        for_each_tile<T>(args, 1, [=] { return tile + 1; }, args.aligned != 0, whole, any);
    }
}

// The matrices of a backward, in the order of Backward.
template <class Compute, Form kForm>
struct Operands {
    const Matrix* in[Compute::kInputs];
    const Matrix* out[Compute::kOutputs];

    __device__ explicit Operands(const ActivationArgs& args) {
        in[Compute::kInputs - 1] = &args.v;
        in[0] = &args.x;
        in[1] = &args.dy;
        out[Compute::kOutputs - 1] = &args.y;
        out[Compute::kGated] = &args.dv;
        out[0] = &args.dx;
    }
};

// The chunks' sums of parameter p in the workspace: args.chunks pairs and, if the second stage has several
// blocks, a pair for each of at most XACT_FOLDS blocks, and a counter in place of a pair.
__device__ inline float2* partials_of(const ActivationArgs& args, int p) {
    const u64 pairs = args.chunks + (args.folds > 1 ? XACT_FOLDS + 1 : 0);
    return reinterpret_cast<float2*>(args.partials) + p * pairs;
}
__device__ inline unsigned* counter_of(const ActivationArgs& args, int p) {
    return reinterpret_cast<unsigned*>(partials_of(args, p) + args.chunks + XACT_FOLDS);
}

template <class T, Form kForm, class Functor, int P>
__device__ inline void run_backward(const ActivationArgs& args, const Functor& op,
                                    float2 (&scratch)[P][XACT_BLOCK / 32]) {
    using Usual = Backward<Functor, kForm, usual_sums<Functor>(), false>;
    using UsualWithY = Backward<Functor, kForm, usual_sums<Functor>(), true>;
    using All = Backward<Functor, kForm, P, true>;
    Sum sums[P];
    bool fast = args.aligned != 0;
#pragma unroll
    for (int p = usual_sums<Functor>(); p < P; ++p) fast = fast && args.dparams[p] == 0;
    const auto whole = [&](Spot spot, unsigned tiles) {
        if (args.y.ptr == 0) {
            const Operands<Usual, kForm> operands(args);
            whole_tiles<T>(operands.in, operands.out, spot, tiles, args.aligned, Usual{op, sums});
        } else {
            const Operands<UsualWithY, kForm> operands(args);
            whole_tiles<T>(operands.in, operands.out, spot, tiles, args.aligned, UsualWithY{op, sums});
        }
    };
    const auto any = [&](u64 tile) {
        const Operands<All, kForm> operands(args);
        any_tile<T>(args, operands.in, operands.out, tile, All{op, sums});
    };
    for (unsigned chunk = blockIdx.x; chunk < args.chunks; chunk += gridDim.x) {
        // The first long_chunks chunks have a tile more. The end is computed each time, from a number that
        // the compiler does not know to be the same, so that no registers keep it.
        const auto end = [&] {
            unsigned next = chunk + 1;
            asm volatile("" : "+r"(next));
            return static_cast<u64>(next) * args.tiles_per_chunk + min(next, args.long_chunks);
        };
        const unsigned tiles = args.tiles_per_chunk + (chunk < args.long_chunks);
        for_each_tile<T>(args, tiles, end, fast, whole, any);
        if (chunk != blockIdx.x) __syncthreads();  // thread 0 may still be reading scratch
#pragma unroll
        for (int p = 0; p < P; ++p) {
            if (args.dparams[p] == 0) continue;
            const Sum total = block_sum<XACT_BLOCK>(sums[p], scratch[p]);
            if (threadIdx.x == 0) {
                partials_of(args, p)[chunk] = make_float2(total.sum, total.comp);
                if (chunk == 0 && args.folds > 1) *counter_of(args, p) = 0;
            }
            sums[p] = Sum();
        }
    }
}

template <class Op, class T, Form kForm>
__device__ inline void forward(const ActivationArgs& args) {
    Op::template with<T>(args, [&](const auto& op) { run_forward<T, kForm>(args, op); });
}

// Writes dx (and dv), y if it has a buffer, and one partial Sum per parameter and chunk.
template <class Op, class T, Form kForm>
__device__ inline void backward(const ActivationArgs& args) {
    __shared__ float2 scratch[Op::kParams][XACT_BLOCK / 32];
    Op::template with<T>(args, [&](const auto& op) { run_backward<T, kForm>(args, op, scratch); });
}

// The second stage, of args.folds blocks for each parameter. A block adds its share of the partial sums, all
// read at once, and the block that is done last adds the sums of the blocks. The order depends on the number
// of chunks alone.
template <class Op, class T>
__device__ inline void dparams(const ActivationArgs& args) {
    constexpr int kEach = (XACT_MAX_CHUNKS + XACT_BLOCK * XACT_FOLDS - 1) / (XACT_BLOCK * XACT_FOLDS);
    __shared__ float2 scratch[XACT_BLOCK / 32];
    const unsigned folds = args.folds;
    const unsigned fold = blockIdx.x % folds;
#pragma unroll
    for (int p = 0; p < Op::kParams; ++p) {
        if (p != blockIdx.x / folds || args.dparams[p] == 0) continue;
        float2* partials = partials_of(args, p);
        float2 mine[kEach];
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
            const u64 chunk = (j * folds + fold) * XACT_BLOCK + threadIdx.x;
            mine[j] = chunk < args.chunks ? partials[chunk] : make_float2(0.0f, 0.0f);
        }
        Sum sum;
#pragma unroll
        for (int j = 0; j < kEach; ++j) sum.add(Sum(mine[j].x, mine[j].y));
        sum = block_sum<XACT_BLOCK>(sum, scratch);
        if (threadIdx.x != 0) return;
        if (folds > 1) {
            float2* of_folds = partials + args.chunks;
            of_folds[fold] = make_float2(sum.sum, sum.comp);
            __threadfence();
            const bool last = atomicAdd(counter_of(args, p), 1u) == folds - 1;
            __threadfence();
            if (!last) return;
            float2 all[XACT_FOLDS];
#pragma unroll
            for (int f = 0; f < XACT_FOLDS; ++f) all[f] = f < folds ? of_folds[f] : make_float2(0.0f, 0.0f);
            sum = Sum();
#pragma unroll
            for (int f = 0; f < XACT_FOLDS; ++f) sum.add(Sum(all[f].x, all[f].y));
        }
        Op::template with<T>(args, [&](const auto& op) {
            float* out = reinterpret_cast<float*>(args.dparams[p]);
            const float value = op.chain[p] * sum.value();
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
