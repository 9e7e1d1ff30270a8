#!/bin/sh
# together.sh TEST...: the source of one program of several tests that each hold the implementation, so that it is
# compiled once for all of them. The program's first argument names the test to run, the rest are the test's own.
for test; do
    printf '#define main %s_main\n#include "tests/%s.c"\n#undef main\n' "$test" "$test"
done
cat <<'END'
int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";
END
for test; do
    # most take no arguments
    arguments=$(grep -q '^int main(int argc' "tests/$test.c" && echo 'argc - 1, argv + 1')
    printf '    if (strcmp(name, "%s") == 0) return %s_main(%s);\n' "$test" "$test" "$arguments"
done
cat <<'END'
    fprintf(stderr, "there is no test \"%s\" in this program\n", name);
    return 2;
}
END
