# The head of a script that counts its checks, sourced from the repository's root: a directory "$work" that goes in
# the end, check, skip and finish, which prints the line that others add up.
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
passed=0 failed=0 skipped=0

check() { # check NAME COMMAND...
    name=$1
    shift
    if "$@" >"$work/log" 2>&1; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "failed: $name"
        tail -n 25 "$work/log"
    fi
}
skip() { skipped=$((skipped + 1)) && echo "skipped: $*"; }
have() { command -v "$1" >/dev/null 2>&1; }
finish() {
    echo "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" = 0 ]
    exit
}
