#!/bin/sh
# man.sh PROGRAM: the manual page of build/pvtune, made of what it says itself, in roff, on stdout.
# What the help has in two columns becomes .TP, its headings .SS, the rest stays as it is.
program=$1
version=$("$program" --version) || exit 1
page() {
    sed 's/\\/\\e/g; s/-/\\-/g' | awk '
        /^$/ { next }
        /^usage: / { print ".B " substr($0, 8); print ".PP"; next }
        /^  pvtune / { # an example, or three blanks and what it does
            line = substr($0, 3)
            if (!match(line, /   +/)) RSTART = length(line) + 1
            print ".PP\n.B " substr(line, 1, RSTART - 1) "\n.br\n\\&" substr(line, RSTART + RLENGTH)
            next
        }
        /^  / {
            line = substr($0, 3)
            if (!match(line, /  +/)) match(line, /^[^ ]+( [A-Z,]+)? /) # a name too long for its column
            print ".TP\n.B \"" substr(line, 1, RSTART > 1 ? RSTART - 1 : RLENGTH - 1) "\""
            print "\\&" substr(line, RSTART + RLENGTH)
            next
        }
        /^[A-Z]/ { print ".SS \"" $0 "\""; next }
        { print ".PP\n\\&" $0 }'
}
about=$("$program" --help | sed -n '1s/^pvtune //p')
verbs=$("$program" --help | sed -n '/^usage:/,/^  pvtune help/s/^  \([a-z]*\)  .*/\1/p')
printf '.TH PVTUNE 1 "" "%s" "User Commands"\n.ad l\n.SH NAME\npvtune \\- %s\n' "$version" "${about%.}"
echo '.SH SYNOPSIS'
"$program" --help | sed -n '/^usage:/,/^  lab/p' | page
for verb in $verbs; do
    printf '.SH PVTUNE %s\n' "$(printf %s "$verb" | tr a-z A-Z)"
    "$program" help "$verb" | page
done
printf '.SH EXIT STATUS\n0 done, 1 failed, 2 wrong usage.\n'
