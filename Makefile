# hsaqd: `make help` lists what there is.
# One object tree per build flavour (build/, build/asan/, …); every .c below a module's folder belongs to it.

PREFIX  ?= /usr/local
prefix   = $(PREFIX)
DESTDIR ?=
VERSION := $(shell cat VERSION)

# What the worker and its CUDA library, two files, have to agree on.
INTERFACE := $(shell cat kernels/backend.h kernels/tensor.h base/candidate.h | sha256sum | cut -c1-16)

FLAVOUR ?=
BUILD   := build$(if $(FLAVOUR),/$(FLAVOUR))
CC      ?= gcc
# Debian's own interpreter: the packages that tools/deps installs belong to it.
PYTHON  ?= $(firstword $(wildcard /usr/bin/python3) python3)

BASE_PKGS   := jansson libpcre2-8
DAEMON_PKGS := libmicrohttpd libuv sqlite3 nettle
WORKER_PKGS := libutf8proc libxxhash openblas
ALL_PKGS    := $(BASE_PKGS) $(DAEMON_PKGS) $(WORKER_PKGS)

WARNINGS := -Wall -Wextra -Wshadow -Wpointer-arith -Wstrict-prototypes -Wmissing-prototypes -Werror
# Sanitizers mislead gcc's flow analysis: their builds warn, the plain one is strict.
OPTIMIZE ?= -O2
# No -march: hot loops choose AVX2/AVX-512 at run time (kernels/cpu/simd.h), so one binary serves every x86-64 machine.
CFLAGS_ALL = -std=c17 -D_GNU_SOURCE $(OPTIMIZE) -g -fno-math-errno -pthread $(OPENMP) $(WARNINGS) $(SANITIZE) \
             $(if $(SANITIZE),-Wno-error) -I. \
             -DHSAQ_VERSION='"$(VERSION)"' -DHSAQ_INTERFACE='"$(INTERFACE)"' $(shell pkg-config --cflags $(ALL_PKGS) 2>/dev/null) $(CFLAGS)
OPENMP     ?= -fopenmp
LDFLAGS_ALL = -pthread $(OPENMP) $(SANITIZE) $(LDFLAGS)
BASE_LIBS   = $(shell pkg-config --libs $(BASE_PKGS)) -lm
DAEMON_LIBS = $(shell pkg-config --libs $(DAEMON_PKGS)) $(BASE_LIBS)
WORKER_LIBS = $(shell pkg-config --libs $(WORKER_PKGS)) $(BASE_LIBS)

# CUDA is built where its compiler is found, into a library that the worker loads when a GPU is asked for.
# CUDA_ARCHS: compute capabilities to compile for; "native" means the card in this machine. A build for development has
# one, which later cards translate; a release has them all: make CUDA_ARCHS='80 86 89 90 100 120'.
NVCC       ?= $(firstword $(wildcard /usr/local/cuda/bin/nvcc) $(shell command -v nvcc))
CUDA_ARCHS ?= $(if $(wildcard /dev/nvidia0),native,80)
CUDA_HOME   = $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
CUDA_CODE   = $(if $(filter native,$(CUDA_ARCHS)),-arch=native, \
                $(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$(a),code=sm_$(a)) \
                -gencode arch=compute_$(lastword $(CUDA_ARCHS)),code=compute_$(lastword $(CUDA_ARCHS)))
NVCCFLAGS   = -std=c++20 -O3 -lineinfo $(CUDA_CODE) -Xcompiler -fPIC,-fopenmp,-Wall,-Wextra,-Werror -I. \
              -DHSAQ_INTERFACE='"$(INTERFACE)"' $(NVCC_EXTRA)
CUDA_LIBS   = -L$(CUDA_HOME)/lib64 -lcublas -lcublasLt -lcusolver

# A module is a folder; its main file stays out of the library so that tests can link the rest.
sources = $(sort $(foreach d,$(1),$(wildcard $(d)/*.c)))
objects = $(patsubst %.c,$(BUILD)/%.o,$(1))
BASE_SRC   := $(call sources,base)
KERNEL_SRC := $(call sources,kernels kernels/cpu)
CUDA_SRC   := $(sort $(wildcard kernels/cuda/*.cu))
WORKER_SRC := $(filter-out worker/main.c,$(call sources,worker worker/model worker/pipeline worker/alloc worker/bench))
DAEMON_SRC := $(filter-out daemon/main.c,$(call sources,daemon daemon/http daemon/api daemon/store daemon/jobs))
UNIT_SRC   := $(call sources,tests/unit)
OPS_SRC    := $(sort $(wildcard tests/ops/test_*.c))
OPS_SHARED := $(filter-out $(OPS_SRC),$(call sources,tests/ops))
FUZZ_SRC   := $(call sources,tests/fuzz)
BENCH_SRC  := $(call sources,tests/bench)

PROGRAMS    := $(BUILD)/hsaqd $(BUILD)/hsaq-worker $(if $(NVCC),$(if $(SANITIZE),,$(BUILD)/libhsaq_cuda.so))
UNIT_TESTS  := $(patsubst tests/unit/%.c,$(BUILD)/tests/unit/%,$(UNIT_SRC))
OPS_TESTS   := $(patsubst tests/ops/%.c,$(BUILD)/tests/ops/%,$(OPS_SRC))
GOLDEN_TOOLS := $(patsubst tests/golden/%.c,$(BUILD)/tests/golden/%,$(call sources,tests/golden))
BENCHES     := $(patsubst tests/bench/%.c,$(BUILD)/tests/bench/%,$(BENCH_SRC))
LIBRARIES   := $(BUILD)/libhsaq_daemon.a $(BUILD)/libhsaq_worker.a $(BUILD)/libhsaq_kernels.a $(BUILD)/libhsaq_base.a

# Use the whole machine unless -j says otherwise.
ifeq ($(MAKELEVEL),0)
MAKEFLAGS += -j$(shell nproc)
endif

.DEFAULT_GOAL := all
.SECONDARY:
.DELETE_ON_ERROR:
.PHONY: all help programs tests c-tests

all: programs ## build hsaqd and hsaq-worker

help: ## this list
	@awk -F':.*## ' '/^[a-z_.-]+:.*## /{printf "  make %-21s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

programs: $(PROGRAMS)

$(BUILD)/libhsaq_base.a: $(call objects,$(BASE_SRC))
$(BUILD)/libhsaq_kernels.a: $(call objects,$(KERNEL_SRC))
$(BUILD)/libhsaq_worker.a: $(call objects,$(WORKER_SRC))
$(BUILD)/libhsaq_daemon.a: $(call objects,$(DAEMON_SRC)) $(BUILD)/embedded.o
$(BUILD)/%.a:
	@mkdir -p $(@D); rm -f $@
	$(QUIET_AR)ar rcs $@ $^

# Migrations and the API document are compiled in; so is what the daemon serves.
EMBEDDED := $(sort $(wildcard migrations/*.sql) $(wildcard api/openapi.yaml))
$(BUILD)/embedded.c: tools/embed $(EMBEDDED)
	@mkdir -p $(@D)
	$(QUIET_GEN)tools/embed $(EMBEDDED) >$@
$(BUILD)/embedded.o: $(BUILD)/embedded.c
	$(QUIET_CC)$(CC) $(CFLAGS_ALL) -c $< -o $@

.PHONY: packages
packages:
	@pkg-config --exists $(ALL_PKGS) || { echo "Packages are missing: make deps installs them." >&2; exit 1; }

$(BUILD)/%.o: %.c Makefile | packages
	@mkdir -p $(@D)
	$(QUIET_CC)$(CC) $(CFLAGS_ALL) -MMD -MP -c $< -o $@
$(BUILD)/%.cu.o: %.cu Makefile
	@mkdir -p $(@D)
	$(QUIET_NVCC)$(NVCC) $(NVCCFLAGS) -MMD -MP -MF $(@:.o=.d) -c $< -o $@
# Codes are the CPU's to the last bit: no contraction there either.
$(addprefix $(BUILD)/kernels/cuda/,quantize.cu.o range.cu.o scaled_error.cu.o): NVCC_EXTRA := -fmad=false
# What the library needs of ours is linked into it anew, position-independent.
$(BUILD)/pic/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(QUIET_CC)$(CC) $(filter-out $(SANITIZE),$(CFLAGS_ALL)) -fPIC -MMD -MP -c $< -o $@
$(BUILD)/libhsaq_cuda.so: $(CUDA_SRC:%=$(BUILD)/%.o) $(patsubst %.c,$(BUILD)/pic/%.o,base/err.c base/sizes.c base/utf8.c kernels/check.c kernels/columns.c)
	$(QUIET_LD)$(NVCC) -shared -cudart static -Xcompiler -fopenmp $^ $(CUDA_LIBS) -Xlinker -z,defs,-rpath,$(CUDA_HOME)/lib64 -o $@

# The numerics are worth the compile time; the service is not. No contraction: the same bits on every instruction set.
$(call objects,$(KERNEL_SRC)): OPTIMIZE := $(if $(SANITIZE),$(OPTIMIZE),-O3) -ffp-contract=off -fno-trapping-math

$(BUILD)/hsaqd: $(BUILD)/daemon/main.o $(BUILD)/libhsaq_daemon.a $(BUILD)/libhsaq_base.a
	$(QUIET_LD)$(CC) $(LDFLAGS_ALL) $^ $(DAEMON_LIBS) -o $@
$(BUILD)/hsaq-worker: $(BUILD)/worker/main.o $(BUILD)/libhsaq_worker.a $(BUILD)/libhsaq_kernels.a $(BUILD)/libhsaq_base.a
	$(QUIET_LD)$(CC) $(LDFLAGS_ALL) $^ $(WORKER_LIBS) -o $@

$(BUILD)/tests/unit/%: $(BUILD)/tests/unit/%.o $(BUILD)/tests/ops/reference.o $(LIBRARIES)
	$(QUIET_LD)$(CC) $(LDFLAGS_ALL) $^ -lcmocka $(DAEMON_LIBS) $(WORKER_LIBS) -o $@
$(BUILD)/tests/ops/%: $(BUILD)/tests/ops/%.o $(call objects,$(OPS_SHARED)) $(BUILD)/libhsaq_kernels.a $(BUILD)/libhsaq_base.a
	$(QUIET_LD)$(CC) $(LDFLAGS_ALL) $^ -lcmocka $(WORKER_LIBS) -o $@
$(BUILD)/tests/golden/%: $(BUILD)/tests/golden/%.o $(LIBRARIES)
	$(QUIET_LD)$(CC) $(LDFLAGS_ALL) $^ $(WORKER_LIBS) -o $@
$(BUILD)/tests/bench/%: $(BUILD)/tests/bench/%.o $(LIBRARIES)
	$(QUIET_LD)$(CC) $(LDFLAGS_ALL) $^ $(DAEMON_LIBS) $(WORKER_LIBS) -o $@

c-tests: $(UNIT_TESTS) $(OPS_TESTS) $(GOLDEN_TOOLS)
tests: programs c-tests ## build the programs and the C tests

ifeq ($(V),)
QUIET_CC = @echo "  CC   $@";
QUIET_NVCC = @echo "  NVCC $@";
QUIET_GEN = @echo "  GEN  $@";
QUIET_AR = @echo "  AR   $@";
QUIET_LD = @echo "  LD   $@";
endif

-include Makefile.dev
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
