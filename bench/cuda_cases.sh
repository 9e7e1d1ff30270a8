#!/bin/sh
# cuda_cases.sh TEST: runs tests/test_cuda and makes the table of bench/CUDA.md: of each op how many comparisons with the
# processor there are, what difference is allowed, relative to the largest number of a result, and the largest one seen.
PVTUNE_CASES=1 "$1" | awk -F '\t' '
$1 == "case" { name = $2; sub(/:.*/, "", name); if (!(name in n)) order[++names] = name
    n[name]++; if ($3 > seen[name] + 0) seen[name] = $3; if ($4 > allowed[name] + 0) allowed[name] = $4 }
END { print "| op | comparisons | allowed | largest seen |\n|---|---|---|---|"
    for (i = 1; i <= names; i++) { k = order[i]; total += n[k]
        printf "| %s | %d | %s | %s |\n", k, n[k], allowed[k] + 0 ? allowed[k] : "none", allowed[k] + 0 ? seen[k] + 0 : "0" }
    printf "%d comparisons\n", total }'
