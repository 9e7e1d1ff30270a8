#!/bin/sh
# cuda_kernels.sh LOG: one line per kernel from what `nvcc -Xptxas -v` wrote: registers, spilled bytes, static shared
# memory, of each architecture; fails when a kernel spills.
awk '
/Compiling entry function/ { kernel = $0; sub(/.*function .*pvti_k_/, "", kernel); arch = $0
    sub(/.* for ./, "", arch); sub(/.$/, "", arch); sub(/..$/, "", kernel); split(kernel, word, /[^a-z0-9_]/)
    name = substr(word[1], 1); if (match(kernel, /ILi[0-9]+E/)) name = name "<" substr(kernel, RSTART + 3, RLENGTH - 4) ">"
    if (match(kernel, /Lb[01]E/)) name = name (substr(kernel, RSTART + 2, 1) == "1" ? "<weight>" : "<numbers>") }
/bytes spill stores/ { spill = $0; sub(/ bytes spill stores.*/, "", spill); sub(/.*, */, "", spill) }
/Used [0-9]+ registers/ { registers = $0; sub(/.*Used /, "", registers); sub(/ registers.*/, "", registers); shared = 0
    if (match($0, /[0-9]+ bytes smem/)) shared = substr($0, RSTART, RLENGTH - 11)
    printf "%-8s %-28s %3d registers %6d bytes of shared memory %4d spilled\n", arch, name, registers, shared, spill
    kernels++; spilled += spill > 0 }
END { printf "%d kernels, %d spill\n", kernels, spilled; exit spilled > 0 || kernels == 0 }' "$1"
