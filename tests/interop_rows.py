"""What the scripts of `make interop` have in common: SCRIPT PVTUNE WORK …, the program, a folder to work in, and the report."""
import os
import subprocess
import sys

pvtune, work = sys.argv[1:3]


def row(peer, name, check, good, figure=""):
    print("%-12s  %-34s  %-40s  %-6s  %s" % (peer, name, check, "ok" if good else "FAILED", figure), flush=True)


def path(name):
    return os.path.join(work, name)


def run(*arguments):
    result = subprocess.run([pvtune, *arguments, "--quiet"], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError("pvtune %s: %s" % (" ".join(arguments), result.stderr.strip()))
    return result.stdout
