// Cross-entropy over long rows of logits, with label smoothing, z-loss, softcap, weights and Goldfish.
//
// Per row, with z the (capped) logits, t the label, V the number of classes, w the weight:
//
//   lse  = log Σ_j e^(z_j)
//   loss = w·[ (1−ε)·(lse − z_t) + ε·(lse − mean_j z_j) + λ·lse² ]
//   dz_j = g·[ (1 + 2λ·lse)·p_j − ε/V − (1−ε)·1(j = t) ]·cap'(z_j),   g = w·dloss/normalizer
//
// With e_j and s = Σ_j e_j relative to a power of two (softmax.cuh), the target's e_t is kept apart:
//
//   rest = Σ_{j≠t} e_j    s = rest + e_t    p_j = e_j/s    1 − p_t = rest/s
//   lse − z_t = log s − (z_t − n·ln 2), or log1p(rest/e_t) where p_t > ½, and then lse = z_t + (lse − z_t)
//   dz_t = g·[ 2λ·lse·p_t − rest/s + ε − ε/V ]·cap'(z_t)
//
// so that a confident row keeps the digits of 1 − p_t, in its loss and in its gradient.
//
// Kernels, each a grid of blocks that stride over their items:
//   stats     a part of a row -> RowStats                                            one read
//   gradient  RowStats of the parts of a row (or of the ranks) -> dlogits            one read, one write
//   fused     both, a whole row per block; if it fits into shared memory             one read, one write
//   cluster   both, a row per cluster, whose blocks keep its parts (sm_90)           one read, one write
//   finish    RowStats -> loss, lse, z-loss, argmax of each row; sums over a chunk of rows
//   totals    the sums of all chunks -> Summary
// If finish counts the finished chunks, the block that finishes the last chunk also does the work of totals.
// The parts of a row and the chunks depend on the shape alone, and all sums run in a fixed order.
//
// Special values: a −inf logit has p = 0, also with a softcap. A row with only −inf, with a NaN or with +inf
// gives NaN in loss and gradient. A masked row (label is ignore_index, weight is 0, or dropped) is not read;
// its loss is 0 and its gradient exactly 0. A label that is not a class gives NaN in its row, which is not
// read.
#include "args.cuh"
#include "../common/cluster.cuh"
#include "../common/reduce.cuh"
#include "../common/rows.cuh"
#include "../common/softmax.cuh"
#include "goldfish.cuh"
#include "ids.cuh"

namespace xact {

using Args = CrossEntropyArgs;
using u64 = unsigned long long;

constexpr unsigned kNoClass = 0xffffffffu;

// The status of a row: masked by its label or weight; dropped by Goldfish; a label that is not a class; kept.
enum class Fate { Masked, Dropped, Bad, Kept };

struct Target {
    Fate fate;
    bool ignored;  // by its label
    float weight;
    u64 label;         // if it is a class
    long long column;  // of this rank; -1 if it is another's
};

// kLanes as in goldfish_drops.
template <int kLanes>
__device__ inline Target target_of(const Args& args, u64 row) {
    const long long label = read_label(args.labels, args.label_type, row);
    Target t{Fate::Masked, label == args.ignore_index, 1.0f, static_cast<u64>(label), -1};
    if (t.ignored) return t;
    if (args.weights != 0) t.weight = reinterpret_cast<const float*>(args.weights)[row];
    if (t.weight == 0.0f) return t;
    t.fate = Fate::Bad;
    if (label < 0 || t.label >= args.classes) return t;
    t.fate = goldfish_drops<kLanes>(args.goldfish, row) ? Fate::Dropped : Fate::Kept;
    const u64 column = t.label - args.first_class;
    if (column < args.cols) t.column = column;
    return t;
}

// A row of logits, as a matrix of one row. The part of the row that a thread takes depends on the address
// alone, so rows with and without groups give the same bits.
template <class T>
__device__ inline Matrix row_of(const LogitsMatrix& logits, u64 row) {
    u64 offset = row * logits.pitch;
    if (logits.group_rows != 0) {
        const u64 group = row / logits.group_rows;
        offset = group * logits.group_pitch + (row - group * logits.group_rows) * logits.pitch;
    }
    return {logits.ptr + offset * sizeof(T), 0};
}

// The same to be read, and what else lies over its packs.
template <class T>
__device__ inline Row<T> logits_row(const Args& args, u64 row) {
    const Matrix matrix = row_of<T>(args.logits, row);
    return Row<T>(matrix, 0, Row<T>::phase(matrix, 0));
}

// Whether the logits of a row are needed for its loss.
__device__ inline bool has_loss(const Args& args, Fate fate) {
    return fate == Fate::Kept || (fate == Fate::Dropped && args.with_dropped);
}

// The logits after the softcap, or unchanged if there is none.
template <bool kCap>
struct Cap {
    float cap;
    float two_over_cap;

    __device__ explicit Cap(const Args& args) : cap(args.softcap), two_over_cap(2.0f / args.softcap) {}
    // A softcap leaves −inf as it is.
    __device__ float operator()(float z) const { return kCap && z != -INFINITY ? bounded(z) : z; }
    // The gradient uses this for −inf too, with the slope 0.
    __device__ float bounded(float z) const { return kCap ? Softcap(z, cap, two_over_cap).value : z; }
    __device__ float slope(float z) const { return kCap ? Softcap(z, cap, two_over_cap).slope : 1.0f; }
};

// Packs that a thread has in flight. With a softcap the kernel is bound by arithmetic, and one pack makes it
// smaller.
template <bool kCap>
constexpr int kBatch = kCap ? 1 : XACT_ROW_PACKS;

// The largest element of some packs, ignoring NaN.
template <int K>
__device__ inline float max_of(const Pack<float> (&packs)[K]) {
    float m = -INFINITY;
#pragma unroll
    for (int k = 0; k < K; ++k) {
        float v[4];
        packs[k].unpack(v);
#pragma unroll
        for (int i = 0; i < 4; ++i) m = fmaxf(m, v[i]);
    }
    return m;
}
template <class Two, class T, int K>
__device__ inline float max_of_pairs(const Pack<T> (&packs)[K]) {
    Two m = *reinterpret_cast<const Two*>(&packs[0].v4[0]);
#pragma unroll
    for (int i = 1; i < 4 * K; ++i) {
        m = __hmax2(m, *reinterpret_cast<const Two*>(&packs[i / 4].v4[i % 4]));
    }
    return fmaxf(to_float(m.x), to_float(m.y));
}
template <int K>
__device__ inline float max_of(const Pack<__half> (&packs)[K]) {
    return max_of_pairs<__half2>(packs);
}
template <int K>
__device__ inline float max_of(const Pack<__nv_bfloat16> (&packs)[K]) {
    return max_of_pairs<__nv_bfloat162>(packs);
}

__device__ inline RowStats no_stats() { return {-INFINITY, 0.0f, -INFINITY, 0.0f, kNoClass}; }

// The statistics of the elements of one thread. The target is kept out of them: its exponential is not
// summed. If the other exponentials were relative to the target, they would be rounded with an exponent of 30
// in a row with p near 1.
template <class T, bool kCap>
struct Stats {
    static constexpr int N = Pack<T>::N;
    // When an exponent exceeds this, the sum is rescaled to a larger power of two. With real logits this
    // happens a few times in a row. Exponents below 4 have a rounding error of 2^-24·1.4.
    static constexpr float kHeadroom = 4.0f;
    static constexpr int kNowhere = 0x7fffffff;

    const Row<T>& in;
    Pack<T>* kept;  // the buffer that keeps the packs of the row, or null
    long long column;
    Cap<kCap> cap;
    bool with_sum;

    float max = -INFINITY;
    // A batch begins at this pack and holds the first element equal to max. (There are fewer than 2^32
    // classes, so at most 2^30 packs of them.)
    int where = kNowhere;
    Base base;
    Sum rest;
    Sum sum;
    float target = -INFINITY;

    __device__ Stats(const Args& args, const Row<T>& in, Pack<T>* kept, long long column)
        : in(in),
          kept(kept),
          column(column),
          cap(args),
          with_sum(args.label_smoothing != 0.0f),
          base(cap(-INFINITY)) {}

    __device__ Pack<T> load(long long, long long first) const { return in.load_aligned(first); }

    // Records a maximum, and rescales the sum if its exponent is too large.
    __device__ void see(float z, long long pack) {
        // The head of a row is met after the packs that follow it.
        if (z == max) where = min(where, static_cast<int>(pack));
        if (!(z > max)) return;
        max = z;
        where = static_cast<int>(pack);
        const float capped = cap(z);
        if (base.exponent(capped) > kHeadroom) {
            const Base to(capped);
            rest = Sum(rebased(rest.sum, base, to), rebased(rest.comp, base, to));
            base = to;
        }
    }

    template <bool kApart, int K>
    __device__ void batch(const Pack<T> (&packs)[K], long long pack, long long first) {
        // Which of the pack's is the target, if one is.
        const long long ahead = column - first;
        const int apart = kApart && ahead >= 0 && ahead < N ? static_cast<int>(ahead) : -1;
        if (kApart) {
            Pack<T> others[1] = {packs[0]};
#pragma unroll
            for (int i = 0; i < N; ++i) {
                if (i == apart) from_float(-INFINITY, reinterpret_cast<T*>(&others[0])[i]);
            }
            see(max_of(others), pack);
        } else {
            see(max_of(packs), pack);
        }
        TreeSum<K> exps, logits;
#pragma unroll
        for (int k = 0; k < K; ++k) {
            if (kept != nullptr) kept[pack + k * XACT_BLOCK] = packs[k];
            float z[N];
            packs[k].unpack(z);
            TreeSum<N> of_exps, of_logits;
#pragma unroll
            for (int i = 0; i < N; ++i) {
                const float capped = cap(z[i]);
                float e = base.exp(capped);
                if (kApart && i == apart) {
                    target = z[i];
                    e = 0.0f;
                }
                of_exps.add(i, e);
                of_logits.add(i, capped);
            }
            exps.add(k, of_exps.value());
            logits.add(k, of_logits.value());
        }
        rest.add(exps.value());
        if (with_sum) sum.add(logits.value());
    }

    __device__ void element(long long at) {
        const T value = in.base[at];
        if (kept != nullptr) reinterpret_cast<T*>(kept)[at + in.skew] = value;
        const float z = to_float(value);
        const float capped = cap(z);
        if (with_sum) sum.add(capped);
        if (at == column) {
            target = z;
            // It may be the first of nothing but −inf.
            if (z == -INFINITY) see(z, (at + in.skew) / N);
        } else {
            see(z, (at + in.skew) / N);
            rest.add(base.exp(capped));
        }
    }

    // The first element equal to max among the thread's.
    __device__ long long argmax(Part part, long long cols) const {
#pragma unroll 1
        for (int k = 0; k < kBatch<kCap>; ++k) {
            const long long pack = static_cast<long long>(where) + k * XACT_BLOCK;
#pragma unroll 1
            for (int i = 0; i < N && pack < part.end; ++i) {
                const long long at = pack * N - in.skew + i;
                if (at < 0 || at >= cols) continue;
                const T z = kept != nullptr ? reinterpret_cast<const T*>(kept)[at + in.skew] : in.base[at];
                if (to_float(z) == max) return at;
            }
        }
        return -1;
    }
};

// The values that the threads of a block exchange.
struct Scratch {
    float max[XACT_BLOCK / 32];
    unsigned argmax[XACT_BLOCK / 32];
    float2 sum[XACT_BLOCK / 32];
    float target;
};

// The stats of a part of a row, from those of the threads of a block; thread 0 receives them.
template <class T, bool kCap>
__device__ inline RowStats block_stats(const Args& args, Stats<T, kCap>& mine, Part part, Scratch& scratch) {
    constexpr unsigned kAll = 0xffffffffu;
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    float max = fmaxf(mine.max, mine.target);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) max = fmaxf(max, __shfl_xor_sync(kAll, max, offset));
    if (lane == 0) scratch.max[warp] = max;
    if (threadIdx.x == 0) scratch.target = -INFINITY;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < XACT_BLOCK / 32; ++w) max = fmaxf(max, scratch.max[w]);
    // Only the thread that read the target has one. The target may be NaN.
    if (mine.target != -INFINITY) scratch.target = mine.target;
    if (args.with_argmax) {
        unsigned first = kNoClass;
        if (mine.max == max) {
            const long long at = mine.argmax(part, args.cols);
            if (at >= 0) first = static_cast<unsigned>(args.first_class + at);
        }
        if (mine.target == max && mine.target != -INFINITY) {
            first = min(first, static_cast<unsigned>(args.first_class + mine.column));
        }
        first = __reduce_min_sync(kAll, first);
        if (lane == 0) scratch.argmax[warp] = first;
    }
    const Base base(mine.cap(max));
    const Sum rest = block_sum<XACT_BLOCK>(
        Sum(rebased(mine.rest.sum, mine.base, base), rebased(mine.rest.comp, mine.base, base)), scratch.sum);
    RowStats stats{max, rest.value(), scratch.target, 0.0f, kNoClass};
    if (mine.with_sum) {
        __syncthreads();  // thread 0 may still be reading scratch.sum
        stats.sum = block_sum<XACT_BLOCK>(mine.sum, scratch.sum).value();
    }
    if (args.with_argmax) {
#pragma unroll
        for (int w = 0; w < XACT_BLOCK / 32; ++w) stats.argmax = min(stats.argmax, scratch.argmax[w]);
    }
    return stats;
}

// The stats of a row from those of its parts, in their order; part_at(p) are those of part p.
template <bool kCap, class PartAt>
__device__ inline RowStats merged(const Args& args, u64 count, PartAt part_at) {
    RowStats all = part_at(0);
    for (u64 p = 1; p < count; ++p) {
        const RowStats& part = part_at(p);
        if (part.max > all.max || (part.max == all.max && part.argmax < all.argmax)) {
            all.argmax = part.argmax;
        }
        all.max = fmaxf(all.max, part.max);
        // The target may be NaN.
        if (part.target != -INFINITY) all.target = part.target;
    }
    const Cap<kCap> cap(args);
    const Base base(cap(all.max));
    Sum rest, sum;
    for (u64 p = 0; p < count; ++p) {
        const RowStats& part = part_at(p);
        rest.add(rebased(part.rest, Base(cap(part.max)), base));
        sum.add(part.sum);
    }
    all.rest = rest.value();
    all.sum = sum.value();
    return all;
}

// From the parts that other blocks or ranks have written to memory.
template <bool kCap>
__device__ inline RowStats merged(const Args& args, u64 row) {
    const RowStats* parts = reinterpret_cast<const RowStats*>(args.parts) + row;
    return merged<kCap>(args, args.part_count,
                        [&](u64 p) -> const RowStats& { return parts[p * args.rows]; });
}

// The values that the formulas of a row share.
struct RowLoss {
    Base base;
    float target;    // z_t, capped
    float exponent;  // that of e_t
    float e_target;  // e_t
    float rest;
    float s;

    template <bool kCap>
    __device__ RowLoss(const Cap<kCap>& cap, const RowStats& stats)
        : base(cap(stats.max)), target(cap(stats.target)), exponent(base.exponent(target)), rest(stats.rest) {
        e_target = exp2_near(exponent);
        s = rest + e_target;
    }

    // log Σ e^z. The relative error of s, up to 2 ulp of 1, becomes an absolute one.
    __device__ float lse() const { return base.natural(logf(s)); }

    // lse − z_t, and lse from it where it has more digits.
    __device__ float surprise(float& lse) const {
        if (e_target > rest) {
            // The exponents were computed with a rounded log2 e. In a row with p very near 1 this is the
            // largest error of the gap between the target and the other logits.
            constexpr float kOfLog2e = 1.33499e-08f;  // log2 e / 1.44269504f − 1
            const float ratio = rest / e_target;
            const float value = log1pf(fmaf(ratio, fmaxf(logf(ratio), -200.0f) * kOfLog2e, ratio));
            lse = target + value;
            return value;
        }
        constexpr float kLn2 = 0.693147182f;
        lse = this->lse();
        return fmaf(-kLn2, exponent, logf(s));
    }
};

// The constants of a row's gradient:  dz_j = (e_j·k − offset)·cap'(z_j).
struct RowGradient {
    Base base;
    float k;
    float offset;
    float target;  // dz_t without cap'
};

// The scalars that the gradient of a row reads from memory. One thread needs them.
struct Upstream {
    float dloss = 1.0f;
    float normalizer = 1.0f;

    __device__ void load(const Args& args, u64 row, Fate fate) {
        if (threadIdx.x != 0 || fate != Fate::Kept) return;
        if (args.dloss != 0) {
            dloss =
                reinterpret_cast<const float*>(args.dloss)[static_cast<long long>(row) * args.dloss_stride];
        }
        if (args.normalizer != 0) normalizer = *reinterpret_cast<const float*>(args.normalizer);
    }
};

template <bool kCap>
__device__ inline RowGradient row_gradient(const Args& args, float weight, const Upstream& upstream,
                                           const RowStats& stats) {
    const float g = weight * upstream.dloss / upstream.normalizer;
    const RowLoss loss(Cap<kCap>(args), stats);
    const float two_lambda_lse = args.z_loss != 0.0f ? 2.0f * args.z_loss * loss.lse() : 0.0f;
    const float per_class = args.label_smoothing / static_cast<float>(args.classes);
    RowGradient out;
    out.base = loss.base;
    out.k = g * (1.0f + two_lambda_lse) / loss.s;
    out.offset = g * per_class;
    float target = -loss.rest / loss.s;
    if (args.z_loss != 0.0f) target = fmaf(two_lambda_lse, loss.e_target / loss.s, target);
    if (args.label_smoothing != 0.0f) target += args.label_smoothing - per_class;
    out.target = g * target;
    return out;
}

// Turns the logits of a part of a row into their gradients.
template <class T, bool kCap, bool kInPlace>
struct Gradient {
    static constexpr int N = Pack<T>::N;

    const Row<T>& in;
    const Row<T>& out;
    const Pack<T>* kept;  // the packs of the row, or null
    long long column;
    Cap<kCap> cap;
    RowGradient row;

    __device__ Pack<T> load(long long pack, long long first) const {
        return kept != nullptr ? kept[pack] : in.load_aligned(first);
    }

    __device__ float of(float z) const {
        const float d = fmaf(row.base.exp(cap.bounded(z)), row.k, -row.offset);
        return kCap ? d * cap.slope(z) : d;
    }

    __device__ float of_target(float z) const { return row.target * cap.slope(z); }

    template <bool kApart, int K>
    __device__ void batch(const Pack<T> (&packs)[K], long long, long long first) const {
#pragma unroll
        for (int k = 0; k < K; ++k) {
            float z[N], d[N];
            packs[k].unpack(z);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                d[i] = of(z[i]);
                if (kApart && first + i == column) d[i] = of_target(z[i]);
            }
            const long long at = first + static_cast<long long>(k) * XACT_BLOCK * N;
            if (kInPlace) {
                out.store_aligned(at, Pack<T>(d));
            } else {
                out.store(at, Pack<T>(d));
            }
        }
    }

    __device__ void element(long long at) const {
        const T value = kept != nullptr ? reinterpret_cast<const T*>(kept)[at + in.skew] : in.base[at];
        const float z = to_float(value);
        from_float(at == column ? of_target(z) : of(z), out.base[at]);
    }
};

// Writes the gradient of a part of a row that is read.
template <class T, bool kCap, bool kInPlace>
__device__ inline void write_gradient(const Args& args, const Row<T>& in, const Row<T>& out,
                                      const Pack<T>* kept, long long column, Part part,
                                      const RowGradient& row) {
    Gradient<T, kCap, kInPlace> gradient{in, out, kept, column, Cap<kCap>(args), row};
    walk<T, kBatch<kCap>>(part, in.skew, args.cols, column, gradient);
    fill(out, part, args.cols, args.padded_cols, 0.0f);
}

// Writes the gradient of a part of a row that is not read: 0, or NaN for a label that is not a class.
template <class T>
__device__ inline void write_unread(const Args& args, const Row<T>& out, Part part, Fate fate) {
    fill(out, part, 0, args.cols, fate == Fate::Bad ? NAN : 0.0f);
    fill(out, part, args.cols, args.padded_cols, 0.0f);
}

// By one thread of the kernel that comes before finish.
__device__ inline void no_chunk_is_done(const Args& args) {
    if (args.chunks_done != 0 && blockIdx.x == 0 && threadIdx.x == 0) {
        *reinterpret_cast<unsigned*>(args.chunks_done) = 0;
    }
}

// Calls body(row, split) for the block's items.
template <class Body>
__device__ inline void for_each_item(const Args& args, Body body) {
    for (u64 item = blockIdx.x; item < args.rows * args.splits; item += gridDim.x) {
        const u64 row = args.splits == 1 ? item : item / args.splits;
        body(row, item - row * args.splits);
        __syncthreads();  // what the body shares may still be read
    }
}

// The stats of a part of a row, in thread 0. meanwhile() is called when the part has been read and before the
// threads wait for each other, so that its memory accesses overlap with that wait.
template <class T, bool kCap, class Meanwhile>
__device__ inline RowStats stats_of(const Args& args, const Row<T>& in, Pack<T>* kept, long long column,
                                    Part part, Scratch& scratch, Meanwhile meanwhile) {
    Stats<T, kCap> mine(args, in, kept, column);
    walk<T, kBatch<kCap>>(part, in.skew, args.cols, column, mine);
    meanwhile();
    return block_stats(args, mine, part, scratch);
}

template <bool kValue>
struct Is {
    static constexpr bool value = kValue;
};

// f with the variant of the formulas that the call has, once for the code around it.
template <class F>
__device__ inline void with_cap(const Args& args, F f) {
    if (args.softcap != 0.0f) {
        f(Is<true>());
    } else {
        f(Is<false>());
    }
}

template <class T>
__device__ inline void stats(const Args& args, Scratch& scratch) {
    no_chunk_is_done(args);
    for_each_item(args, [&](u64 row, u64 split) {
        RowStats stats = no_stats();
        const Target target = target_of<32>(args, row);
        if (has_loss(args, target.fate)) {
            const Row<T> in = logits_row<T>(args, row);
            const Part part = part_of(packs<T>(args.cols, in.skew), split, args.packs_per_split);
            with_cap(args, [&](auto cap) {
                stats = stats_of<T, cap.value>(args, in, nullptr, target.column, part, scratch, [] {});
            });
        }
        if (threadIdx.x == 0) reinterpret_cast<RowStats*>(args.stats)[split * args.rows + row] = stats;
    });
}

template <class T>
__device__ inline void gradient(const Args& args, RowGradient& shared) {
    for_each_item(args, [&](u64 row, u64 split) {
        const Row<T> in = logits_row<T>(args, row);
        const Row<T> out(row_of<T>(args.dlogits, row), 0, in.skew * sizeof(T));
        const Part part = part_of(packs<T>(args.padded_cols, in.skew), split, args.packs_per_split);
        const Target target = target_of<32>(args, row);
        if (target.fate != Fate::Kept) return write_unread(args, out, part, target.fate);
        with_cap(args, [&](auto cap) {
            if (threadIdx.x == 0) {
                Upstream upstream;
                upstream.load(args, row, target.fate);
                shared = row_gradient<cap.value>(args, target.weight, upstream, merged<cap.value>(args, row));
            }
            __syncthreads();
            write_gradient<T, cap.value, false>(args, in, out, nullptr, target.column, part, shared);
        });
    });
}

template <class T>
__device__ inline void fused(const Args& args, Scratch& scratch, RowGradient& shared, Pack<T>* chip) {
    no_chunk_is_done(args);
    Pack<T>* kept = args.on_chip ? chip : nullptr;
    for_each_item(args, [&](u64 row, u64) {
        const Row<T> logits = logits_row<T>(args, row);
        const Part part{0, packs<T>(args.padded_cols, logits.skew)};
        const Target target = target_of<32>(args, row);
        RowStats stats = no_stats();
        with_cap(args, [&](auto cap) {
            constexpr bool kCap = cap.value;
            Upstream upstream;
            if (has_loss(args, target.fate)) {
                stats = stats_of<T, kCap>(args, logits, kept, target.column, part, scratch,
                                          [&] { upstream.load(args, row, target.fate); });
            }
            // Where the row was read, block_stats had its last barrier after the last read.
            if (target.fate != Fate::Kept) return write_unread(args, logits, part, target.fate);
            if (threadIdx.x == 0) shared = row_gradient<kCap>(args, target.weight, upstream, stats);
            __syncthreads();
            write_gradient<T, kCap, true>(args, logits, logits, kept, target.column, part, shared);
        });
        if (threadIdx.x == 0) reinterpret_cast<RowStats*>(args.stats)[row] = stats;
    });
}

#if __CUDA_ARCH__ >= 900
// The exchange of row stats between the blocks of a cluster. The rows that are read alternate between two
// sets of slots, so that no cluster barrier is needed between rows: a lane that sends its stats of one row
// has already used the stats of the previous row, so its peer may overwrite those with the stats of the next
// row.
struct Exchange {
    struct alignas(16) Slot {
        RowStats stats;
    };

    Slot slots[2][XACT_MAX_CLUSTER];  // by the rank of who sent it
    Mbarrier sent[2];                 // a phase is a row

    // Called by one thread, before an arrival at the cluster barrier.
    __device__ void init() {
        sent[0].init();
        sent[1].init();
    }

    // Called by the first warp for each row that is read; `turn` counts these rows. Lane p sends the stats of
    // lane 0 to the block of rank p and receives the stats of that block. Afterwards thread 0 of every block
    // has the stats of the row. All blocks merge the same stats in the same order, so they have the same
    // bits.
    template <bool kCap>
    __device__ RowStats all(const Args& args, const RowStats& mine, unsigned turn) {
        static_assert(sizeof(RowStats) == sizeof(uint4) + sizeof(unsigned), "what is sent is all of it");
        static_assert(XACT_MAX_CLUSTER <= 32, "a lane for each");
        constexpr unsigned kAll = 0xffffffffu;
        const unsigned lane = threadIdx.x;
        const unsigned rank = cluster_rank();
        const unsigned size = cluster_size();
        Slot(&slots)[XACT_MAX_CLUSTER] = this->slots[turn % 2];
        Mbarrier& sent = this->sent[turn % 2];
        const uint4 most = make_uint4(__shfl_sync(kAll, __float_as_uint(mine.max), 0),
                                      __shfl_sync(kAll, __float_as_uint(mine.rest), 0),
                                      __shfl_sync(kAll, __float_as_uint(mine.target), 0),
                                      __shfl_sync(kAll, __float_as_uint(mine.sum), 0));
        const unsigned argmax = __shfl_sync(kAll, mine.argmax, 0);
        if (lane == 0) sent.expect(size * sizeof(RowStats));
        if (lane < size) {
            const unsigned slot = peer_address(&slots[rank], lane);
            const unsigned mbarrier = peer_address(&sent, lane);
            store_async(slot, most, mbarrier);
            store_async(slot + sizeof(most), argmax, mbarrier);
        }
        sent.wait(turn / 2 % 2);
        __syncwarp();
        RowStats part = no_stats();
        if (lane < size) part = slots[lane].stats;
        return merged<kCap>(args, size, part);
    }

  private:
    // merged() of the parts in the first lanes. The lanes do everything in parallel but the sums.
    template <bool kCap>
    __device__ static RowStats merged(const Args& args, unsigned count, const RowStats& part) {
        constexpr unsigned kAll = 0xffffffffu;
        RowStats all = part;
#pragma unroll
        for (int offset = XACT_MAX_CLUSTER / 2; offset > 0; offset /= 2) {
            all.max = fmaxf(all.max, __shfl_xor_sync(kAll, all.max, offset));
        }
        all.argmax = __reduce_min_sync(kAll, part.max == all.max ? part.argmax : kNoClass);
        // The target may be NaN.
        const unsigned targets = __ballot_sync(kAll, part.target != -INFINITY);
        all.target = __shfl_sync(kAll, part.target, targets == 0 ? 0 : 31 - __clz(targets));
        const Cap<kCap> cap(args);
        const float rebased = xact::rebased(part.rest, Base(cap(part.max)), Base(cap(all.max)));
        Sum rest, sum;
#pragma unroll
        for (unsigned p = 0; p < XACT_MAX_CLUSTER; ++p) {
            if (p >= count) break;
            rest.add(__shfl_sync(kAll, rebased, p));
            sum.add(__shfl_sync(kAll, part.sum, p));
        }
        all.rest = rest.value();
        all.sum = sum.value();
        return all;
    }
};

// A block keeps a part of the row. The blocks pass the cluster barrier before the first exchange, so that all
// mbarriers are initialised, and after the last, so that no block returns while a peer still needs it.
template <class T>
__device__ inline void cluster(const Args& args, Scratch& scratch, RowGradient& shared, Exchange& exchange,
                               Pack<T>* chip) {
    no_chunk_is_done(args);
    if (threadIdx.x == 0) exchange.init();
    cluster_arrive();
    unsigned turn = 0;
    for (u64 row = cluster_id(); row < args.rows; row += clusters()) {
        const Row<T> logits = logits_row<T>(args, row);
        const Part part =
            part_of(packs<T>(args.padded_cols, logits.skew), cluster_rank(), args.packs_per_split);
        const Target target = target_of<32>(args, row);
        RowStats stats = no_stats();
        with_cap(args, [&](auto cap) {
            constexpr bool kCap = cap.value;
            Pack<T>* kept = chip - part.begin;  // so that a pack has the same number here as in the row
            __builtin_assume(kept != nullptr);
            // All blocks of the cluster compute the same result.
            if (has_loss(args, target.fate)) {
                Upstream upstream;
                stats = stats_of<T, kCap>(args, logits, kept, target.column, part, scratch,
                                          [&] { upstream.load(args, row, target.fate); });
                if (turn == 0) cluster_wait();
                if (threadIdx.x < 32) {
                    stats = exchange.all<kCap>(args, stats, turn);
                    if (threadIdx.x == 0) shared = row_gradient<kCap>(args, target.weight, upstream, stats);
                }
                ++turn;
                __syncthreads();
            }
            if (target.fate != Fate::Kept) return write_unread(args, logits, part, target.fate);
            write_gradient<T, kCap, true>(args, logits, logits, kept, target.column, part, shared);
        });
        if (cluster_rank() == 0 && threadIdx.x == 0) reinterpret_cast<RowStats*>(args.stats)[row] = stats;
    }
    if (turn == 0) cluster_wait();
    cluster_arrive();
    cluster_wait();
}
#endif

using Totals = CrossEntropyTotals;

__device__ inline void add(float (&to)[2], const Sum& value) {
    Sum sum(to[0], to[1]);
    sum.add(value);
    to[0] = sum.sum;
    to[1] = sum.comp;
}

__device__ inline Sum sum_of(const float (&pair)[2]) { return Sum(pair[0], pair[1]); }

__device__ inline void add(Totals& to, const Totals& other) {
    add(to.loss, sum_of(other.loss));
    add(to.z_loss, sum_of(other.z_loss));
    add(to.weight, sum_of(other.weight));
    add(to.dropped_loss, sum_of(other.dropped_loss));
    to.labels += other.labels;
    to.kept += other.kept;
    to.dropped += other.dropped;
    to.correct += other.correct;
    to.bad_row = min(to.bad_row, other.bad_row);
    to.nan_row = min(to.nan_row, other.nan_row);
}

__device__ inline Totals no_totals() { return {{}, {}, {}, {}, 0, 0, 0, 0, ~0ull, ~0ull}; }

// The totals of all threads of the block, as a tree of fixed shape; thread 0 receives them.
__device__ inline Totals block_totals(const Totals& mine, Totals* scratch) {
    scratch[threadIdx.x] = mine;
    for (unsigned half = XACT_BLOCK / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) add(scratch[threadIdx.x], scratch[threadIdx.x + half]);
    }
    return threadIdx.x == 0 ? scratch[0] : mine;
}

template <class T>
__device__ inline void write_at(u64 buffer, u64 row, T value) {
    if (buffer != 0) reinterpret_cast<T*>(buffer)[row] = value;
}

// One row: its outputs, and its part of the totals. Without parts there is only the counting.
__device__ inline void finish_row(const Args& args, u64 row, Totals& totals) {
    const Target target = target_of<1>(args, row);
    const bool read = args.part_count != 0 && has_loss(args, target.fate);
    RowStats stats = no_stats();
    float lse = 0.0f, value = 0.0f, z_value = 0.0f;
    if (read) {
        with_cap(args, [&](auto cap) {
            stats = merged<cap.value>(args, row);
            const RowLoss loss(Cap<cap.value>(args), stats);
            value = loss.surprise(lse);
        });
        if (args.label_smoothing != 0.0f) {
            const float mean = stats.sum / static_cast<float>(args.classes);
            // This is not computed as a difference to value, because both are infinite for a target of −inf.
            value = fmaf(args.label_smoothing, lse - mean, (1.0f - args.label_smoothing) * value);
        }
        value *= target.weight;
        if (args.z_loss != 0.0f) z_value = target.weight * (args.z_loss * lse * lse);
        value += z_value;
    }
    if (target.fate == Fate::Bad) lse = value = z_value = NAN;
    if (args.part_count != 0) {
        const bool dropped = target.fate == Fate::Dropped;
        write_at(args.stats, row, stats);
        write_at(args.loss, row, dropped ? 0.0f : value);
        write_at(args.z_loss_out, row, dropped ? 0.0f : z_value);
        write_at(args.lse, row, lse);
        write_at(args.argmax, row, static_cast<int>(stats.argmax));
    }
    totals.labels += !target.ignored;
    if (target.fate == Fate::Masked) return;
    if (target.fate == Fate::Dropped) {
        totals.dropped += 1;
        add(totals.dropped_loss, Sum(value));
        return;
    }
    totals.kept += 1;
    add(totals.loss, Sum(value));
    add(totals.z_loss, Sum(z_value));
    add(totals.weight, Sum(target.weight));
    if (target.fate == Fate::Bad) {
        totals.bad_row = min(totals.bad_row, row);
        return;
    }
    if (isnan(value)) totals.nan_row = min(totals.nan_row, row);
    if (stats.argmax == target.label) totals.correct += 1;
}

__device__ inline void totals(const Args& args, Totals* scratch) {
    Totals mine = no_totals();
    const Totals* chunks = reinterpret_cast<const Totals*>(args.totals);
    for (u64 chunk = threadIdx.x; chunk < args.chunks; chunk += XACT_BLOCK) add(mine, chunks[chunk]);
    const Totals all = block_totals(mine, scratch);
    if (threadIdx.x != 0) return;
    CrossEntropySummary out;
    out.loss = sum_of(all.loss).value();
    out.z_loss = sum_of(all.z_loss).value();
    out.weight = sum_of(all.weight).value();
    out.dropped_loss = sum_of(all.dropped_loss).value();
    out.labels = all.labels;
    out.kept = all.kept;
    out.dropped = all.dropped;
    out.correct = all.correct;
    out.bad_row = all.bad_row;
    out.nan_row = all.nan_row;
    out.normalizer = 1.0f;
    if (args.normalize_by == NORMALIZE_BY_KEPT) out.normalizer = static_cast<float>(all.kept);
    if (args.normalize_by == NORMALIZE_BY_LABELS) out.normalizer = static_cast<float>(all.labels);
    if (args.normalize_by == NORMALIZE_BY_WEIGHT) out.normalizer = out.weight;
    if (args.normalize_by == NORMALIZE_BY_EXTERNAL) {
        out.normalizer = *reinterpret_cast<const float*>(args.normalizer);
    }
    out.mean = all.kept != 0 ? out.loss / out.normalizer : args.empty_is_nan ? NAN : 0.0f;
    *reinterpret_cast<CrossEntropySummary*>(args.summary) = out;
}

// Whether this block has finished the last chunk. It then sees the totals of all chunks.
__device__ inline bool is_last_chunk(const Args& args) {
    if (args.summary == 0) return false;
    if (args.chunks == 1) return true;
    if (args.chunks_done == 0) return false;
    __shared__ bool last;
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicAdd(reinterpret_cast<unsigned*>(args.chunks_done), 1u) == args.chunks - 1;
        __threadfence();
    }
    __syncthreads();
    return last;
}

__device__ inline void finish(const Args& args, Totals* scratch) {
    for (u64 chunk = blockIdx.x; chunk < args.chunks; chunk += gridDim.x) {
        const u64 begin = chunk * args.rows_per_chunk;
        u64 end = begin + args.rows_per_chunk;
        if (end > args.rows) end = args.rows;
        Totals mine = no_totals();
        for (u64 row = begin + threadIdx.x; row < end; row += XACT_BLOCK) finish_row(args, row, mine);
        const Totals all = block_totals(mine, scratch);
        if (threadIdx.x == 0) reinterpret_cast<Totals*>(args.totals)[chunk] = all;
        const bool last = is_last_chunk(args);
        __syncthreads();  // scratch may still be read
        if (last) totals(args, scratch);
    }
}

}  // namespace xact

#define XACT_ENTRY(name)                                                          \
    extern "C" __global__ void __launch_bounds__(XACT_BLOCK, XACT_BLOCKS_OF_ROWS) \
        name(const __grid_constant__ xact::CrossEntropyArgs args)

#define XACT_CROSS_ENTROPY(suffix, T)                                                  \
    XACT_ENTRY(cross_entropy_stats_##suffix) {                                         \
        __shared__ xact::Scratch scratch;                                              \
        xact::stats<T>(args, scratch);                                                 \
    }                                                                                  \
    XACT_ENTRY(cross_entropy_gradient_##suffix) {                                      \
        __shared__ xact::RowGradient shared;                                           \
        xact::gradient<T>(args, shared);                                               \
    }                                                                                  \
    XACT_ENTRY(cross_entropy_fused_##suffix) {                                         \
        extern __shared__ uint4 chip[];                                                \
        __shared__ xact::Scratch scratch;                                              \
        __shared__ xact::RowGradient shared;                                           \
        xact::fused<T>(args, scratch, shared, reinterpret_cast<xact::Pack<T>*>(chip)); \
    }

XACT_CROSS_ENTROPY(f32, float)
XACT_CROSS_ENTROPY(f16, __half)
XACT_CROSS_ENTROPY(bf16, __nv_bfloat16)

#if __CUDA_ARCH__ >= 900
#define XACT_CROSS_ENTROPY_CLUSTER(suffix, T)                                                      \
    XACT_ENTRY(cross_entropy_cluster_##suffix) {                                                   \
        extern __shared__ uint4 chip[];                                                            \
        __shared__ xact::Scratch scratch;                                                          \
        __shared__ xact::RowGradient shared;                                                       \
        __shared__ xact::Exchange exchange;                                                        \
        xact::cluster<T>(args, scratch, shared, exchange, reinterpret_cast<xact::Pack<T>*>(chip)); \
    }

XACT_CROSS_ENTROPY_CLUSTER(f32, float)
XACT_CROSS_ENTROPY_CLUSTER(f16, __half)
XACT_CROSS_ENTROPY_CLUSTER(bf16, __nv_bfloat16)
#endif

XACT_ENTRY(cross_entropy_finish) {
    __shared__ xact::Totals scratch[XACT_BLOCK];
    xact::finish(args, scratch);
}

XACT_ENTRY(cross_entropy_totals) {
    __shared__ xact::Totals scratch[XACT_BLOCK];
    xact::totals(args, scratch);
}
