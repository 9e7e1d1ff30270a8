# cuda.sh test|bench [large]: called by `make test-cuda` and `make bench-cuda`. Builds for the GPU that is there, holds
# every op against the processor; test: also under compute-sanitizer; bench: then times them, and other software where
# python3 has it, in one table, and reads Nsight's counters of the largest kernels, where ncu is there and may. Ends with
# one line where nvcc or a GPU is missing. BUILD, MAKE, NVCC, CUDA_ARCH as in the Makefile; `large` adds a
# TinyLlama-shaped tuning step (12 GB). All of it fits into SECONDS_IN_ALL, 580: other software gets what our own rows left,
# less a minute and a half for the counters; so one call of ten minutes ends with its table.
what=${1:-bench}
begun=$(date +%s)
left() { # so many seconds, less $1; at least one
    n=$((${SECONDS_IN_ALL:-580} - $(date +%s) + begun - $1))
    echo $((n > 1 ? n : 1))
}
if [ -z "$NVCC" ]; then
    echo "make $what-cuda: no nvcc, neither in PATH nor in CUDA_HOME: install the CUDA toolkit"
    exit 1
fi
if ! nvidia-smi -L >/dev/null 2>&1; then
    echo "make $what-cuda: no GPU that nvidia-smi can see: nothing was tested or timed"
    exit 1
fi
[ "$CUDA_ARCH" = all ] && CUDA_ARCH=native
quiet() { "$@" >"$BUILD/cuda.log" 2>&1 || { cat "$BUILD/cuda.log"; exit 1; }; }
mkdir -p "$BUILD"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
quiet "$MAKE" --no-print-directory -j"$(nproc)" BUILD="$BUILD" NVCC="$NVCC" CUDA_ARCH="$CUDA_ARCH" "$BUILD/tests/test_cuda_gpu" "$BUILD/bench_cuda"
"$BUILD/tests/test_cuda_gpu" || exit 1
if [ "$what" = test ]; then
    sanitizer=$(command -v compute-sanitizer || echo "$(dirname "$NVCC")/compute-sanitizer")
    [ -x "$sanitizer" ] || { echo "no compute-sanitizer here: not run"; exit 0; }
    for tool in memcheck racecheck; do
        echo "compute-sanitizer --tool $tool"
        PVTUNE_QUICK=1 "$sanitizer" --tool $tool --error-exitcode 1 "$BUILD/tests/test_cuda_gpu" || exit 1
    done
    exit 0
fi
echo "built and compared in $(($(date +%s) - begun)) s"
"$BUILD/bench_cuda" $2 >"$BUILD/cuda.rows" || { cat "$BUILD/cuda.rows"; exit 1; }
timeout "$(left 90)" python3 bench/cuda_peers.py $2 >"$BUILD/cuda.peers" || echo "peers: out of time, or not there"
awk -F '\t' '
FILENAME == ARGV[1] { ms[$1, ++n[$1]] = $3; who[$1, n[$1]] = $2; next }
FNR == 1 { printf "%-44s %12s %24s  %s\n", "what", "ms", "rate", "others: ms, and how many times as long as ours" }
{ printf "%-44s %12.4f %12.1f %-11s", $1, $2, $3, $4
  for (i = 1; i <= n[$1]; i++) printf "  %s: %.4f, %.2f", who[$1, i], ms[$1, i], ms[$1, i] / $2
  printf "\n" }' "$BUILD/cuda.peers" "$BUILD/cuda.rows"

counters=$(command -v ncu || echo "$(dirname "$NVCC")/ncu")
[ -x "$counters" ] || { echo "no Nsight Compute (ncu) here: no counters"; exit 0; }
peak=avg.pct_of_peak_sustained
timeout "$(left 5)" "$counters" --csv --page raw --kernel-name 'regex:pvti_k_(mma|attention)' --launch-count 24 --metrics \
    "sm__throughput.${peak}_elapsed,sm__inst_executed_pipe_tensor.${peak}_active,l1tex__throughput.${peak}_active,\
lts__throughput.${peak}_elapsed,dram__throughput.${peak}_elapsed,sm__warps_active.${peak}_active" \
    "$BUILD/bench_cuda" counters >"$BUILD/cuda.counters" 2>&1 || { tail -2 "$BUILD/cuda.counters"; exit 0; }
grep '^"' "$BUILD/cuda.counters" | awk -F '","' '
NR == 1 { for (i = NF - 5; i <= NF; i++) { name = $i; sub(/\..*/, "", name); printf "%s%s", name, i < NF ? ", " : " in % of the peak:\n" } }
NR > 2 { sub(/"$/, "", $NF); printf "%-60.60s", $5; for (i = NF - 5; i <= NF; i++) printf " %6.1f", $i; printf "\n" }'
