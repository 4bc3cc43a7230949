#!/usr/bin/env bash
# Everything that a GPU can tell about xact, on a machine with an NVIDIA driver and without Rust. `cargo xtask
# gpu-bundle` packs this script with the programs that it runs.
#
#   run.sh [--quick] [--tuning] [--limit SECONDS] [--out FOLDER] [--stand-in]
#
#   --quick     in under 3 minutes, not 9: fewer rows, one round of peers, one sanitizer
#   --tuning    time every geometry in the bundle, and nothing else
#   --limit     begin nothing that does not fit into this many seconds
#   --out       where the results go (results/ beside this script)
#   --stand-in  the emulator in the device's place: shows that the bundle works; times nothing, and takes its time
#
# Writes report.md, results.json, two plots, and failures.txt if anything failed. Exit status 1 if anything failed; a
# step that the machine has no means for is "not run" and says why. The programs are unpacked under TMPDIR, in which
# torch.compile does not take spaces.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
quick=0 tuning=0 stand_in=0 limit='' out=$here/results
while [ $# -gt 0 ]; do
    case $1 in
        --quick) quick=1 ;;
        --tuning) tuning=1 ;;
        --stand-in) stand_in=1 ;;
        --limit) limit=${2:?} && shift ;;
        --out) out=${2:?} && shift ;;
        *) echo "unknown argument $1" >&2 && exit 2 ;;
    esac
    shift
done
# The emulator executes every instruction: on two cores the suite takes it a quarter of an hour.
[ -n "$limit" ] || limit=$([ $stand_in = 1 ] && echo 3600 || { [ $quick = 1 ] && echo 170 || echo 530; })

# What an earlier run left would be taken for this one's.
mkdir -p "$out" && rm -f "$out"/{report.md,results.json,share_of_copy.svg,roofline.svg,failures.txt} &&
    : 2>/dev/null >"$out/failures.txt" && rm "$out/failures.txt" || {
    echo "cannot write to $out: name another folder with --out" >&2
    exit 1
}

work=$(mktemp -d)
background=()
cleanup() {
    local status=$? pid
    # A background process that is stopped before it has begun comes here too.
    [ "$BASHPID" = $$ ] || return
    for pid in ${background[@]+"${background[@]}"} ${running:-}; do kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null; done
    rm -rf "$work"
    exit $status
}
trap cleanup EXIT
# A step is a process group of its own, which no signal to this script reaches.
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir -p "$work/parts" "$work/logs"
parts=$work/parts steps=$work/parts/steps.tsv
: >"$steps"
tar -xzf "$here/programs.tar.gz" -C "$work" || exit 1
programs=$work/programs

if [ $stand_in = 1 ]; then
    export XACT_DEVICE=emulated
    unset XACT_REQUIRE_GPU
else
    export XACT_DEVICE=gpu XACT_REQUIRE_GPU=1
fi

# A line of the summary: name, outcome, seconds, note.
failed=0
line() {
    [ "$2" != FAILED ] || { failed=1 && echo "== $1: $4" >>"$out/failures.txt"; }
    printf '%s\t%s\t%s\t%s\n' "$@" >>"$steps"
    printf '%-28s %-8s %4s s  %s\n' "$1" "$2" "$3" "$4"
}

# So many seconds, or those that are left.
within() {
    local left=$((limit - SECONDS))
    echo $(($1 < left ? $1 : left))
}

not_run() { line "$1" 'not run' 0 "$2"; }

# step NAME SECONDS COMMAND...: runs it for at most so long. The note is what it says of its results, or its last line.
step() {
    local name=$1 most log=$work/logs/${1// /-}.log start=$SECONDS status note
    most=$(within "$2")
    shift 2
    if [ "$most" -lt 5 ]; then
        line "$name" FAILED 0 'no time left'
        return 1
    fi
    timeout -k 5 "$most" "$@" >"$log" 2>&1 &
    running=$!
    wait "$running"
    status=$?
    running=
    note=$(grep -E '^(test result|left out|========= ERROR SUMMARY)' "$log" | tr '\n' ' ')
    [ -n "$note" ] || note=$(grep -v '^$' "$log" | tail -n 1)
    note=$(printf '%s' "$note" | tr '\t' ' ' | cut -c 1-160)
    if [ $status = 124 ] || [ $status = 137 ]; then
        note="stopped after $((SECONDS - start)) s. $note"
    elif [ $status = 0 ] && grep -Eq '^test result: .* [1-9][0-9]* ignored' "$log"; then
        status=1
    fi
    if [ $status = 0 ]; then
        line "$name" passed $((SECONDS - start)) "$note"
        return 0
    fi
    line "$name" FAILED $((SECONDS - start)) "$note"
    tail -n 100 "$log" >>"$out/failures.txt"
    return 1
}

{
    date -u '+%Y-%m-%d %H:%M UTC'
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit --format=csv
    else
        echo 'no nvidia-smi'
    fi
    cat "$here/version.txt"
} >"$parts/machine.txt" 2>&1
cat "$parts/machine.txt"

# Samples the SM clock until the bench ends.
clocks() {
    command -v nvidia-smi >/dev/null || return 0
    nvidia-smi --query-gpu=clocks.sm --format=csv,noheader,nounits -lms 250 >"$parts/clocks.csv" 2>/dev/null &
    clock_pid=$!
    background+=("$clock_pid")
}
no_clocks() {
    [ -z "${clock_pid:-}" ] || kill "$clock_pid" 2>/dev/null
    clock_pid=
}

suite() {
    local name most=240
    [ $stand_in = 0 ] || most=$limit
    for name in $(cat "$programs/tests.txt"); do
        step "suite $name" "$most" "$programs/$name"
    done
}

comparison() {
    local said
    if wait "$emulated_pid"; then
        step 'dump of the device' 60 "$programs/gpu" dump "$work/device.safetensors" &&
            step 'emulator and device' 60 "$programs/gpu" compare "$work/emulated.safetensors" \
                "$work/device.safetensors" --json "$parts/compare.json"
    else
        said=$(tail -n 1 "$work/logs/emulated.log" | tr '\t' ' ')
        line 'dump of the emulator' FAILED 0 "${said:-it says nothing}"
    fi
}

speed() {
    if [ $stand_in = 1 ]; then
        step 'speed' "$limit" "$programs/gpu" --smoke
        return
    fi
    local most
    most=$(within $([ $quick = 1 ] && echo 45 || echo 210))
    # Rows that would begin too late are named as such.
    local arguments=(--json "$parts/speed.json" --seconds $((most > 10 ? most - 10 : 0)))
    [ $quick = 0 ] || arguments+=(--quick)
    clocks
    step 'speed' "$most" "$programs/gpu" "${arguments[@]}"
    no_clocks
}

peers() {
    if ! python3 -c 'import torch' 2>/dev/null; then
        not_run 'peers' 'python3 has no torch'
        return
    fi
    if compgen -G "$here/wheels/*.whl" >/dev/null; then
        step 'wheels of peers' 60 python3 -m pip install --quiet --no-index --no-deps --target "$work/site" \
            "$here"/wheels/*.whl
    fi
    export TORCHINDUCTOR_CACHE_DIR=$work/inductor TRITON_CACHE_DIR=$work/triton
    [ $stand_in = 0 ] || export TRITON_INTERPRET=1
    if python3 -c 'import triton' 2>/dev/null; then
        step 'peer in Triton' 60 python3 "$here/triton_peer.py"
    else
        not_run 'peer in Triton' 'python3 has no triton'
    fi
    local ours most
    ours=("$programs/gpu" --peers)
    [ $quick = 0 ] || ours+=(--quick)
    "${ours[@]}" --list >"$work/rows.json"
    most=$(within $([ $quick = 1 ] && echo 75 || echo 150))
    [ $stand_in = 0 ] || most=$(within "$limit")
    # A row that has begun may take half a minute: a compiler's first.
    local arguments=(--rows "$work/rows.json" --out "$parts" --site "$work/site" --seconds $((most > 35 ? most - 35 : 0)))
    if [ $stand_in = 1 ]; then
        arguments+=(--smoke --rounds 1)
    else
        arguments+=(--rounds $([ $quick = 1 ] && echo 1 || echo 3))
        arguments+=(--ours "$(printf '%q ' "${ours[@]}" --json) {}")
    fi
    step 'peers' "$most" python3 "$here/torch_gpu.py" "${arguments[@]}"
}

sanitizers() {
    local tool
    if ! command -v compute-sanitizer >/dev/null; then
        not_run 'compute-sanitizer' 'it is not installed'
        return
    fi
    for tool in memcheck racecheck initcheck synccheck; do
        # Every entry, on few of the comparison's inputs.
        step "$tool" 90 compute-sanitizer --tool "$tool" --error-exitcode 1 \
            "$programs/gpu" dump --small "$work/$tool.safetensors"
        [ $quick = 0 ] || return
    done
    # Offsets, pitches and lengths around every boundary.
    step 'memcheck places' 60 compute-sanitizer --tool memcheck --error-exitcode 1 "$programs/cross_entropy" places
    step 'memcheck lengths' 60 compute-sanitizer --tool memcheck --error-exitcode 1 "$programs/activations" \
        lengths_and_alignments
}

geometries() {
    local folder name
    if ! compgen -G "$programs/tuning/*/gpu" >/dev/null; then
        line 'tuning' FAILED 0 'the bundle was packed without --tuning'
        return
    fi
    clocks
    for folder in "$programs"/tuning/*/; do
        name=$(basename "$folder")
        if [ $stand_in = 1 ]; then
            step "geometry $name" 120 "$folder/gpu" --quick --smoke
        else
            step "geometry $name" 120 "$folder/gpu" --quick --json "$parts/tuning-$name.json"
        fi
    done
    no_clocks
}

if ! step 'device' 60 "$programs/gpu" --smoke --op goldfish; then
    tail -n 3 "$work/logs/device.log" 2>/dev/null
elif [ $tuning = 1 ]; then
    geometries
else
    # On the CPU, while the device is busy with the suite. For 0 seconds would be for ever.
    timeout -k 5 $(($(within "$limit") + 1)) env -u XACT_REQUIRE_GPU XACT_DEVICE=emulated "$programs/gpu" dump \
        "$work/emulated.safetensors" >"$work/logs/emulated.log" 2>&1 &
    emulated_pid=$!
    background+=("$emulated_pid")
    suite
    comparison
    speed
    peers
    sanitizers
fi

# Not by way of `step`: the summary holds every step.
"$programs/gpu" report "$parts" "$out" || exit 1
exit $failed
