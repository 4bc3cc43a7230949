#!/usr/bin/env bash
# Runs all tests and measurements of xact that need a GPU, on a machine with an NVIDIA driver and without Rust.
# `cargo xtask gpu-bundle` packs this script with the programs that it runs.
#
#   run.sh [--day 1|2] [--only PART,...] [--order PART,...] [--limit SECONDS] [--out FOLDER] [--stand-in]
#
#   --day       run half of the parts for a first day, in under 6 minutes: 1 for correctness and speed, 2 for comparisons
#   --only      run only these parts
#   --order     run these parts before the others
#   --limit     use the device for at most this number of seconds
#   --out       the folder for the results (default: results/ beside this script)
#   --stand-in  use the emulator instead of a device, which tests the bundle; it times nothing, and is slow
#
# The parts, in their order:
#   facts       clocks and power of the device
#   dump        every kernel entry; at the end of the run, when the device is no longer needed, the results are compared
#               with those of the emulator in the bundle
#   speed       the yardsticks, and the few most important rows
#   python      the Python package on the PyTorch of the machine: opcheck, torch.compile, CUDA graphs, streams
#   load        the time to load every kernel: as PTX, without and with the driver's cache of compiled code, and as the
#               machine code in the bundle
#   choices     clusters of eight blocks, persistent blocks, and both, compared with the choices of the launches
#   ncu         eight kernels under Nsight Compute
#   sanitizer   compute-sanitizer: memcheck of every entry, racecheck of the clusters
#   peers       PyTorch, Triton, Liger-Kernel and QuACK, compared with xact
#   geometries  other geometries of the kernels, if the bundle was packed with --tuning
#   suite       the tests of cross-entropy and of the activations
# With --only, also every-row, every-test and every-sanitizer, which run all rows, tests or sanitizers.
#
# The results are page.md, a summary that can be read in a minute, report.md, results.json, two plots, and failures.txt if
# anything failed. parts.tar.gz has the data for these, and the log of each step. A run that is ended early reports the
# results so far. The exit status is 1 if anything failed. A step that the machine cannot run is "not run", with the
# reason. The programs are unpacked under TMPDIR, and need about 250 MB; for torch.compile, its name must have no spaces.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
day_1='facts dump speed python load choices ncu sanitizer' day_2='peers geometries suite'
known="$day_1 $day_2 every-row every-test every-sanitizer"
day='' only='' first='' stand_in=0 limit='' out=$here/results

# The parts of a list with commas.
listed() {
    local part
    for part in ${1//,/ }; do
        [[ " $known " = *" $part "* ]] || { echo "no part $part: there are $known" >&2 && exit 2; }
    done
}
while [ $# -gt 0 ]; do
    case $1 in
        --day) day=${2:?} && shift ;;
        --only) listed "${2:?}" && only=${2//,/ } && shift ;;
        --order) listed "${2:?}" && first=${2//,/ } && shift ;;
        --stand-in) stand_in=1 ;;
        --limit) limit=${2:?} && shift ;;
        --out) out=${2:?} && shift ;;
        *) echo "unknown argument $1" >&2 && exit 2 ;;
    esac
    shift
done
[ -z "$day" ] || [ -z "$only" ] || { echo '--day and --only both select the parts: use one of them' >&2 && exit 2; }
parts_wanted=${only:-$day_1 $day_2}
case $day in
    '') ;;
    1) parts_wanted=$day_1 ;;
    2) parts_wanted=$day_2 ;;
    *) echo '--day takes 1 or 2' >&2 && exit 2 ;;
esac
# The limit of a day leaves time for the comparison and the report, which end within 6 minutes too.
[ -z "$day" ] || limit=${limit:-320}
# The emulator executes every instruction, so on two cores a suite takes minutes.
[ $stand_in = 0 ] || limit=${limit:-3600}
limit=${limit:-700}
[[ $limit =~ ^[0-9]+$ ]] || { echo "--limit takes a number of seconds, not $limit" >&2 && exit 2; }
# Leading zeros would make the number octal.
limit=$((10#$limit))
order=
for part in $first $parts_wanted; do
    [[ " $parts_wanted " != *" $part "* || " $order " = *" $part "* ]] || order+=" $part"
done

# Results of an earlier run are removed, so that they are not taken for results of this one.
mkdir -p "$out" && rm -rf "$out"/{page.md,report.md,results.json,shares.svg,roofline.svg,failures.txt,parts,parts.tar.gz} \
    "$out"/device.safetensors{,.gz} && mkdir -p "$out/parts/logs" 2>/dev/null || {
    echo "cannot write to $out: name another folder with --out" >&2
    exit 1
}

work=$(mktemp -d)
programs=$work/programs
# The parts are in the folder of the results, where they remain however this script ends.
parts=$out/parts steps=$out/parts/steps.tsv
: >"$steps"
report() {
    local status=0
    timeout -k 5 60 "$programs/gpu" report "$parts" "$out" || {
        status=1
        echo "no report: $out/parts.tar.gz has the data for it" >&2
    }
    # One file is easier to copy.
    timeout -k 5 20 tar -czf "$out/parts.tar.gz" -C "$out" parts && rm -rf "$parts"
    return $status
}
# A step is a separate process group, which a signal to this script does not reach.
ended() {
    trap '' INT TERM HUP
    [ -z "${running:-}" ] || { kill "$running" 2>/dev/null && wait "$running" 2>/dev/null; }
    line 'the run' FAILED $SECONDS 'a signal ended it early'
    report
    exit "$1"
}
trap 'rm -rf "$work"' EXIT
trap 'ended 130' INT
trap 'ended 143' TERM
trap 'ended 129' HUP
# Not every image has xz, but one with PyTorch has python3.
unpacked() {
    if command -v xz >/dev/null; then
        xz -dc "$1"
    else
        python3 -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), sys.stdout.buffer)' "$1"
    fi
}
unpacked "$here/programs.tar.xz" | tar -xf - -C "$work" || {
    echo "cannot unpack $here/programs.tar.xz: this needs tar, and xz or python3" >&2
    exit 1
}

if [ $stand_in = 1 ]; then
    export XACT_DEVICE=emulated
    unset XACT_REQUIRE_GPU
else
    export XACT_DEVICE=gpu XACT_REQUIRE_GPU=1
fi
# The driver's cache of compiled code: this run has its own, which is empty at the start.
export CUDA_CACHE_PATH=$work/cuda-cache

# line NAME OUTCOME SECONDS NOTE: adds a line to the summary.
failed=0
line() {
    [ "$2" != FAILED ] || { failed=1 && echo "== $1: $4" >>"$out/failures.txt"; }
    printf '%s\t%s\t%s\t%s\n' "$@" >>"$steps"
    printf '%-32s %-8s %4s s  %s\n' "$1" "$2" "$3" "$4"
}

# within SECONDS: prints the smaller of this and the seconds that are left for the part or until the limit.
ends=$limit
within() {
    local left=$((ends - SECONDS))
    echo $(($1 < left ? $1 : left))
}
part_takes() { ends=$((SECONDS + $(within "$1"))); }

not_run() { line "$1" 'not run' 0 "$2"; }

log_of() { echo "$parts/logs/${1//[^a-z0-9]/-}.log"; }

# note_of LOG: prints the lines of a log with results (for ncu, the figures of the headers), or else its last line.
results='^ *(test result|left out|checked|========= ERROR SUMMARY|(Duration|DRAM Throughput|Issue Slots Busy|Achieved Occupancy)  )'
note_of() {
    local note
    note=$(grep -aE "$results" "$1" | tr -s ' \n' ' ')
    [ -n "$note" ] || note=$(grep -av '^$' "$1" | tail -n 1)
    printf '%s' "$note" | tr '\t' ' '
}

# attempt NAME SECONDS COMMAND...: runs the command for at most this time, and sets `log`, `status`, `seconds` and `note`.
# It fails if there is no time for the command.
attempt() {
    local most start=$SECONDS
    log=$(log_of "$1") most=$(within "$2") seconds=0 status=1 note='no time left'
    : >"$log"
    [ "$most" -ge 5 ] || return 1
    shift 2
    # Without stdin, which may be the list that a part reads.
    timeout -k 5 "$most" "$@" </dev/null >"$log" 2>&1 &
    running=$!
    wait "$running"
    status=$?
    running=
    seconds=$((SECONDS - start))
    note=$(note_of "$log")
    if [ $status = 124 ] || [ $status = 137 ]; then
        note="stopped after $seconds s. $note"
    fi
    return 0
}

# judge NAME: adds the line of the last attempt.
judge() {
    if [ $status = 0 ]; then
        line "$1" passed "$seconds" "$note"
        return 0
    fi
    line "$1" FAILED "$seconds" "$note"
    tail -n 100 "$log" >>"$out/failures.txt"
    return 1
}

# step NAME SECONDS COMMAND...: runs the command and adds its line.
step() {
    attempt "$@"
    ! grep -Eq '^test result: .* [1-9][0-9]* ignored' "$log" || status=1
    judge "$1"
}

# probe NAME COMMAND...: whether a tool can observe the device. Sandboxes such as gVisor do not allow it. If not, the
# summary has the reason.
probe() {
    local name=$1 tool=$2 why
    shift
    if ! command -v "$tool" >/dev/null; then
        not_run "$name" "there is no $tool"
        return 1
    fi
    if [ $stand_in = 1 ]; then
        not_run "$name" 'the stand-in is no device'
        return 1
    fi
    attempt "probe $name" 40 "$@" || { judge "$name" || return; }
    # Some tools end with 0 although they observed nothing.
    why=$(grep -aiE 'not supported|failed to init|no kernels were profiled|ERR_NVGPUCTRPERM|unable to|internal .*error' "$log" |
        head -n 1 | sed 's/^[= ]*//')
    if [ -n "$why" ] || { [ $status != 0 ] && ! grep -q 'ERROR SUMMARY: [1-9]' "$log"; }; then
        line "$name" 'not run' "$seconds" "$tool does not work here: ${why:-$note}"
        return 1
    fi
}

{
    date -u '+%Y-%m-%d %H:%M UTC'
    if command -v nvidia-smi >/dev/null; then
        timeout -k 5 10 nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit --format=csv
    else
        echo 'no nvidia-smi'
    fi
    cat "$here/version.txt"
} >"$parts/machine.txt" 2>&1
cat "$parts/machine.txt"

run_facts() {
    if command -v nvidia-smi >/dev/null; then
        step 'facts' 10 nvidia-smi -q -d CLOCK,POWER && cp "$log" "$parts/facts.txt"
    else
        not_run 'facts' 'there is no nvidia-smi'
    fi
}

run_load() {
    part_takes 60
    # The second step finds the compiled code of the first in the cache.
    step 'load PTX cold' 30 "$programs/gpu" load --ptx
    step 'load PTX warm' 15 "$programs/gpu" load --ptx
    step 'load machine code' 30 "$programs/gpu" load
}

# The results of the device are kept for inspection if they are not compared here.
device=$out/device.safetensors
run_dump() { step 'dump of the device' 60 "$programs/gpu" dump "$device"; }
# The comparison runs even if the dump reports wrong results.
compare() {
    [ -f "$device" ] || return
    ends=$((SECONDS + 30))
    if step 'emulator and device' 30 "$programs/gpu" compare "$work/emulated.safetensors" "$device" \
        --json "$parts/compare.json"; then
        rm "$device"
    else
        timeout -k 5 20 gzip -f "$device"
    fi
}

# speed_of NAME SECONDS ARGUMENT...: times rows; the results name the rows that would begin too late.
speed_of() {
    local name=$1 most
    most=$(within "$2")
    shift 2
    step "$name" "$most" "$programs/gpu" --json "$parts/speed.json" --seconds $((most > 10 ? most - 10 : 0)) "$@"
}
run_speed() {
    if [ $stand_in = 1 ]; then
        step 'speed' "$limit" "$programs/gpu" --smoke
    else
        speed_of 'speed' 60 --quick
    fi
}
run_every-row() {
    if [ $stand_in = 1 ]; then
        not_run 'every row' 'the speed of a stand-in has them all'
    else
        speed_of 'every row' 240
    fi
}

# The choices of launches, by name; the results are within the same bounds.
run_choices() {
    local name arguments
    [ $stand_in = 1 ] || part_takes 45
    while read -r name arguments; do
        # The arguments are separate words.
        # shellcheck disable=SC2086
        if [ $stand_in = 1 ]; then
            step "choice $name" 60 "$programs/gpu" --choices $arguments --smoke
        else
            step "choice $name" 15 "$programs/gpu" --choices $arguments --json "$parts/choice-$name.json"
        fi
    done <<<'present
cluster-8 --cluster 8
resident --resident
resident-cluster-8 --resident --cluster 8'
}

# The kernels for ncu, each with the row that launches it.
profiles='xielu_forward_bf16 xielu plain forward bf16 20480x8192
xielu_backward_bf16 xielu plain backward bf16 20480x8192
xielu_backward_bf16 xielu compat backward bf16 20480x8192
xgelu_forward_bf16 xgelu plain forward bf16 20480x8192
xsilu_gated1_forward_bf16 xsilu gated1 forward bf16 8192x32768
xsilu_gated1_backward_bf16 xsilu gated1 backward bf16 8192x32768
cross_entropy_stats_bf16 cross_entropy plain forward bf16 16384x131072
cross_entropy_cluster_bf16 cross_entropy plain fused bf16 8192x128256'
# Reads the counters of a kernel's second launch, because the device may not be warm in the first.
counters() {
    local kernel=$1 section sections=()
    shift
    for section in SpeedOfLight ComputeWorkloadAnalysis MemoryWorkloadAnalysis SchedulerStats WarpStateStats Occupancy; do
        sections+=(--section "$section")
    done
    # Without all details, many reasons for stalls are missing.
    ncu_command=(ncu --clock-control none --print-details all "${sections[@]}" --kernel-name "regex:^$kernel\$" --launch-skip 1 --launch-count 1
        "$programs/gpu" profile "$@")
}
run_ncu() {
    local kernel row name ncu_command works=0
    [ $stand_in = 1 ] || part_takes 110
    read -r kernel row <<<"$profiles"
    counters "$kernel" --smoke "$row"
    probe 'ncu' "${ncu_command[@]}" && works=1
    [ $works = 1 ] || [ $stand_in = 1 ] || return
    while read -r kernel row; do
        name="ncu ${row% bf16*}"
        if [ $stand_in = 1 ]; then
            step "${name/ncu/launch}" 60 "$programs/gpu" profile --smoke "$row"
            continue
        fi
        counters "$kernel" "$row"
        attempt "$name" 30 "${ncu_command[@]}"
        if [ $status = 0 ] && grep -qi 'no kernels were profiled' "$log"; then
            line "$name" 'not run' "$seconds" "$kernel is not launched here"
            continue
        fi
        # ncu may end with 0 although it counted nothing.
        [ $status != 0 ] || grep -q 'DRAM Throughput' "$log" || status=1
        judge "$name"
        { echo "== $row" && cat "$log"; } >>"$parts/ncu.txt"
    done <<<"$profiles"
}

# sanitize TOOL SECONDS COMMAND...: runs the command under a tool of compute-sanitizer; an error that it finds is a failure.
sanitize() {
    local name=$1 most=$2
    shift 2
    step "$name" "$most" compute-sanitizer --tool "${name%% *}" --error-exitcode 1 "$@"
}
can_sanitize() {
    probe 'compute-sanitizer' compute-sanitizer --tool memcheck --error-exitcode 1 "$programs/gpu" profile --smoke \
        'goldfish hash64 mask i32'
}
# Rows that clusters share, in which blocks wait for each other.
clusters='cross_entropy/f32/fused/plain, shared rows'
run_sanitizer() {
    can_sanitize || return
    # Every entry, with few of the comparison's inputs.
    sanitize memcheck 70 "$programs/gpu" dump --small "$work/sanitized.safetensors"
    sanitize racecheck 50 "$programs/gpu" dump --small --only "$clusters" "$work/sanitized.safetensors"
}
run_every-sanitizer() {
    local tool
    can_sanitize || return
    for tool in memcheck racecheck initcheck synccheck; do
        sanitize "$tool" 90 "$programs/gpu" dump --small "$work/sanitized.safetensors"
    done
    # Offsets, pitches and lengths around every boundary.
    sanitize 'memcheck places' 60 "$programs/cross_entropy" places
    sanitize 'memcheck lengths' 60 "$programs/activations" lengths_and_alignments
}

# needs_torch NAME: whether python3 has PyTorch, and PyTorch finds a GPU; the log `python` lists the packages.
needs_torch() {
    attempt "probe $1" 60 python3 -c '
import torch
print("torch", flush=True)
if torch.cuda.is_available(): print("gpu", flush=True)
import triton
print("triton")' || { judge "$1" || return; }
    python=$log
    if ! grep -qx torch "$python"; then
        line "$1" 'not run' "$seconds" "python3 has no torch: $note"
        return 1
    fi
    if [ $stand_in = 0 ] && ! grep -qx gpu "$python"; then
        line "$1" 'not run' "$seconds" 'torch finds no GPU'
        return 1
    fi
    export TORCHINDUCTOR_CACHE_DIR=$work/inductor TRITON_CACHE_DIR=$work/triton
}

run_python() {
    local python arguments=()
    if [ $stand_in = 1 ]; then
        arguments=(--device cpu)
    else
        part_takes 90
    fi
    needs_torch 'python' || return
    # A wheel is a zip file, which a Python without pip can unpack.
    local unpack=(-m zipfile -e "$here"/python/*.whl "$work/package")
    if timeout -k 5 20 python3 -m pip --version >/dev/null 2>&1; then
        unpack=(-m pip install --quiet --no-index --no-deps --target "$work/package" "$here"/python/*.whl)
    fi
    step 'wheel' 30 python3 "${unpack[@]}" || return
    PYTHONPATH=$work/package${PYTHONPATH:+:$PYTHONPATH} step 'python' "$limit" python3 "$here/python/device.py" "${arguments[@]}"
}

run_peers() {
    local python
    needs_torch 'peers' || return
    if compgen -G "$here/wheels/*.whl" >/dev/null; then
        step 'wheels of peers' 30 python3 -m pip install --quiet --no-index --no-deps --target "$work/site" \
            "$here"/wheels/*.whl
    fi
    [ $stand_in = 0 ] || export TRITON_INTERPRET=1
    if grep -qx triton "$python"; then
        step 'peer in Triton' 60 python3 "$here/triton_peer.py"
    else
        not_run 'peer in Triton' 'python3 has no triton'
    fi
    local ours most
    ours=("$programs/gpu" --peers)
    timeout 10 "${ours[@]}" --list >"$work/rows.json"
    most=$(within $([ $stand_in = 1 ] && echo "$limit" || echo 130))
    # A row that has begun may take half a minute, if it is a compiler's first, and our rows follow.
    local arguments=(--rows "$work/rows.json" --out "$parts" --site "$work/site" --seconds $((most > 50 ? most - 50 : 0)))
    if [ $stand_in = 1 ]; then
        arguments+=(--smoke)
    else
        arguments+=(--ours "$(printf '%q ' "${ours[@]}" --seconds 15 --json) {}")
    fi
    step 'peers' "$most" python3 "$here/torch_gpu.py" "${arguments[@]}"
}

run_geometries() {
    local folder name
    if ! compgen -G "$programs/tuning/*/gpu" >/dev/null; then
        not_run 'geometries' 'the bundle was packed without --tuning'
        return
    fi
    for folder in "$programs"/tuning/*/; do
        name=$(basename "$folder")
        if [ $stand_in = 1 ]; then
            step "geometry $name" 120 "$folder/gpu" --representative --smoke
        else
            step "geometry $name" 30 "$folder/gpu" --representative --json "$parts/tuning-$name.json"
        fi
    done
}

tests() {
    local name most=240
    [ $stand_in = 0 ] || most=$limit
    for name in "$@"; do
        step "suite $name" "$most" "$programs/$name"
    done
}
run_suite() { tests cross_entropy activations; }
run_every-test() { tests $(cat "$programs/tests.txt"); }

if CUDA_CACHE_DISABLE=1 step 'device' 60 "$programs/gpu" --smoke --op goldfish; then
    for part in $order; do
        ends=$limit
        "run_$part"
    done
    compare
else
    tail -n 3 "$log"
fi

# The report is not a `step`, because it contains all steps. The output ends with the page.
echo
report || failed=1
exit $failed
