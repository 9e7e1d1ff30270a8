#!/bin/sh
# cuda_kernels.sh LOG [ARCH]: one line per kernel from what `nvcc -Xptxas -v` wrote: registers, spilled bytes, static
# shared memory, of each architecture; fails when a kernel spills. With ARCH, sm_90, the table of bench/CUDA.md: what of
# a kernel an SM holds at once, by its registers (to a warp in units of 256, 16,384 to each quarter of an SM), shared
# memory (228 KiB, and 1 KiB more a block), 64 warps and 32 blocks.
awk -v only="$2" '
function least(a, b) { return a < b ? a : b }
function row(name, registers, static,   threads, warps, each, by_registers, by_shared, blocks, by) {
    threads = name in threads_of ? threads_of[name] : name ~ /^attention</ || name ~ /^attention_back/ ? 128 : 256
    warps = threads / 32; each = int((registers * 32 + 255) / 256) * 256
    by_registers = int(int(16384 / each) * 4 / warps); by_shared = int(233472 / (static + dynamic[name] + 1024))
    blocks = least(least(by_registers, by_shared), least(32, int(64 / warps)))
    by = blocks == int(64 / warps) ? "threads" : blocks == 32 ? "blocks" : blocks == by_registers ? "registers" : "shared memory"
    printf "| `%s` | %d | %s | %s | %d | %d | %d | %d %% | %s |\n", name, registers, static ? static : "",
        dynamic[name], threads, blocks, blocks * warps, blocks * warps * 100 / 64 + 0.5, by }
BEGIN { # dynamic bytes: heads of 64 and of 128, rotations of 2048, searches for 2x8g8 and 1x16g8 at beam 1
    n = split("mma<128 weight>=57344;mma<128 numbers>=73728;mma<64 weight>=28672;mma<64 numbers>=36864;rotate=32768;" \
        "attention<float 64>=34816;attention<bf16 64>=18432;attention<float 128>=42240;attention<bf16 128>=34816;" \
        "attention_back<float 64 queries>=52224;attention_back<float 64 keys>=52224;attention_back<bf16 64 queries>=27648;" \
        "attention_back<bf16 64 keys>=27648;attention_back<float 128 queries>=59136;attention_back<float 128 keys>=59136;" \
        "attention_back<bf16 128 queries>=52224;attention_back<bf16 128 keys>=52224;assign_books<staged>=19712;sweep<staged>=19712;sweep<from L2>=1280;" \
        "assign_books<from L2>=1280", part, ";")
    for (i = 1; i <= n; i++) { split(part[i], pair, "="); dynamic[pair[1]] = pair[2] }
    threads_of["places"] = 1024; threads_of["assign_points"] = 64
    threads_of["attention_back<float 128 queries>"] = threads_of["attention_back<float 128 keys>"] = 96
    yes["mma"] = yes["gemm"] = yes["gemv"] = "weight"; no["mma"] = no["gemm"] = no["gemv"] = "numbers"
    yes["attention_back"] = "keys"; no["attention_back"] = "queries"; yes["rope"] = "back"; no["rope"] = "forward"
    yes["assign_books"] = yes["sweep"] = "staged"; no["assign_books"] = no["sweep"] = "from L2"
    if (only) print "| kernel | registers | static bytes | dynamic bytes | threads | blocks/SM | warps/SM | occupancy | by |\n" \
        "|---|---|---|---|---|---|---|---|---|" }
/Compiling entry function/ { kernel = $0; sub(/.*function .*pvti_k_/, "", kernel); arch = $0
    sub(/.* for ./, "", arch); sub(/.$/, "", arch); sub(/..$/, "", kernel)
    name = kernel; sub(/[^a-z_].*/, "", name)
    if (match(kernel, /I[ft]?L[ib][0-9].*EE/)) { # what a template is of
        with = substr(kernel, RSTART + 1); sub(/EE.*/, "", with); sub(/^f/, "float ", with); sub(/^t/, "bf16 ", with)
        gsub(/Li/, "", with); sub(/Lb1/, yes[name], with); sub(/Lb0/, no[name], with); gsub(/E/, " ", with); name = name "<" with ">" } }
/bytes spill stores/ { spill = $0; sub(/ bytes spill stores.*/, "", spill); sub(/.*, */, "", spill) }
/Used [0-9]+ registers/ { registers = $0; sub(/.*Used /, "", registers); sub(/ registers.*/, "", registers); shared = 0
    if (match($0, /[0-9]+ bytes smem/)) shared = substr($0, RSTART, RLENGTH - 11)
    if (!only) printf "%-8s %-34s %3d registers %6d bytes of shared memory %4d spilled\n", arch, name, registers, shared, spill
    if (only == arch) row(name, registers, shared + 0)
    kernels++; spilled += spill > 0 }
END { printf "%d kernels, %d spill\n", kernels, spilled; exit spilled > 0 || kernels == 0 }' "$1"
