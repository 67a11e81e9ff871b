// Runs CUDA C++ kernels on a CPU: one block after another, one fiber a CUDA thread.  For tests.
//
// build.py puts this header before the text of a `.cu` file, and a table of kernels behind it.
// A fiber runs until it waits at a barrier or ends; the scheduler, on the caller's stack, resumes
// the fibers in the order asked for and opens a barrier when everybody is there.  Whoever can never
// be let on (a barrier in a branch, a lane that its shuffle's mask names and that never comes) is
// an error with the line.
//
// Three builds find what no single run shows:
//   plain                         wrong results in one order of threads and blocks or another
//   -fsanitize=address,undefined  accesses out of bounds, misaligned packs, overflows
//   -fsanitize=thread             accesses of one element that no barrier orders.  ThreadSanitizer
//       sees fibers as threads, ordered by barriers alone; even and odd blocks (in the order they
//       run) have fibers and shared memory of their own and are not ordered at all, as on a GPU.
// Shared memory starts each block as 0xFF bytes, a NaN, so that reading before writing shows.
//
// Not imitated: the GPU's rounding (fma, -ftz=true), warps in lockstep, memory order beyond races.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <type_traits>
#include <utility>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
// the shim's own reads and writes are no accesses of the kernel
#define SIMT_OWN __attribute__((no_sanitize("thread"), noinline))
#else
#define SIMT_OWN inline
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

// --------------------------------------------------------------------------------- the language
#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)

struct dim3 { unsigned x, y, z; };

namespace simt {

// Of blocks, and of threads between two barriers.  AHEAD: a warp, at random, runs as far as it can
// before another one starts.
enum Order { FORWARD, REVERSE, SHUFFLE, AHEAD };

struct Launch {  // mirrored in build.py
    unsigned grid[3], block[3];
    unsigned long long shared;
    int order;
    unsigned seed;
    // what one thread is told instead of the truth: threadIdx, blockIdx, blockDim, gridDim
    int pretend;
    dim3 pretended[4];
};

// ------------------------------------------------------------------------------------ fibers
enum State { READY, AT_BLOCK_BARRIER, AT_WARP_BARRIER, DONE };
constexpr size_t STACK = 256 << 10, GUARD = 4 << 10;
constexpr unsigned WARP = 32, MOST = 1024;

struct Box { uint64_t words[2]; };  // what a shuffle carries; copied without memcpy, which the
                                    // sanitizers would take for an access of the kernel

struct Fiber {
    State state;
    dim3 index;
    unsigned lane;            // in the warp
    int line;                 // of the barrier where it waits
    unsigned mask, source;    // of the warp primitive: who takes part, whose value this lane gets
    Box given, got;
    bool vote;
    unsigned votes;
    char* stack;
    bool started;
#if defined(__x86_64__)
    void* stack_pointer;
#else
    ucontext_t context;
#endif
    void* fake_stack;         // AddressSanitizer's
    void* tsan;               // ThreadSanitizer's
};

#if defined(__SANITIZE_THREAD__)
constexpr int SETS = 2;  // even blocks, odd blocks
#else
constexpr int SETS = 1;
#endif
struct Shared;

// All there is.  The libraries of one process share one: fibers are dear to ThreadSanitizer.
struct Machine {
    Fiber pool[SETS][MOST];
    int set;                     // the block's that runs
    Fiber *fibers, *current;     // pool[set], the one that runs
    Fiber scheduler;             // the caller's own stack
    const void* scheduler_bottom;
    size_t scheduler_size;
    // addresses for ThreadSanitizer's happens-before: the launch; the end of a block and the next
    char order_begin, order_end[SETS][2];
    int generation[SETS];
    Launch launch;
    dim3 thread, block, block_size, grid_size;  // as the kernel sees them
    void (*kernel)(void**);
    void** arguments;
    Shared* all_shared;
    char* dynamic_memory[SETS];
    unsigned lead;               // the warp that runs ahead
    uint32_t random_state;
    char error[512];
};
static Machine* m;  // by its short name, since everything here is about it

SIMT_OWN dim3 thread_index() { return m->thread; }
SIMT_OWN dim3 block_index() { return m->block; }
SIMT_OWN dim3 block_dim() { return m->block_size; }
SIMT_OWN dim3 grid_dim() { return m->grid_size; }

#if defined(__x86_64__)
// Pushes the registers a function must keep, saves the stack pointer, takes another.
extern "C" __attribute__((visibility("hidden"))) void simt_switch(void** save, void* load);
asm(R"(.text
.p2align 4
.hidden simt_switch
.globl simt_switch
.type simt_switch,@function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
)");
SIMT_OWN void switch_stack(Fiber& from, Fiber& to) {
    simt_switch(&from.stack_pointer, to.stack_pointer);
}
SIMT_OWN void set_start(Fiber& f, void (*start)()) {
    uintptr_t top = (reinterpret_cast<uintptr_t>(f.stack) + STACK) & ~uintptr_t(15);
    uintptr_t* p = reinterpret_cast<uintptr_t*>(top);
    *--p = 0;                                    // no return address: start never returns
    *--p = reinterpret_cast<uintptr_t>(start);
    for (int i = 0; i < 6; ++i) *--p = 0;        // the registers that simt_switch pops
    f.stack_pointer = p;
}
#else
SIMT_OWN void switch_stack(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }
SIMT_OWN void set_start(Fiber& f, void (*start)()) {
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack;
    f.context.uc_stack.ss_size = STACK;
    f.context.uc_link = nullptr;
    makecontext(&f.context, start, 0);
}
#endif

// ThreadSanitizer's idea of who runs; 1: the switch itself orders nothing.
SIMT_OWN void become(Fiber& f) {
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(f.tsan, 1);
#endif
    (void)f;
}
SIMT_OWN void release(void* address) {
#if defined(__SANITIZE_THREAD__)
    __tsan_release(address);
#endif
    (void)address;
}
SIMT_OWN void acquire(void* address) {
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(address);
#endif
    (void)address;
}

SIMT_OWN void resume(Fiber& f) {
    m->current = &f;
    m->thread = m->launch.pretend ? m->launch.pretended[0] : f.index;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&m->scheduler.fake_stack, f.stack, STACK);
#endif
    become(f);
    switch_stack(m->scheduler, f);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(m->scheduler.fake_stack, nullptr, nullptr);
#endif
}

SIMT_OWN void yield() {  // back to the scheduler
    Fiber& f = *m->current;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&f.fake_stack, m->scheduler_bottom, m->scheduler_size);
#endif
    become(m->scheduler);
    switch_stack(f, m->scheduler);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(f.fake_stack, nullptr, nullptr);
#endif
}

SIMT_OWN void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &m->scheduler_bottom, &m->scheduler_size);
#endif
    for (;;) {  // one turn a block: a fiber is used again by the next one
        acquire(&m->order_begin);
        acquire(&m->order_end[m->set][~m->generation[m->set] & 1]);  // the set's block before
        m->kernel(m->arguments);
        release(&m->order_end[m->set][m->generation[m->set] & 1]);
        m->current->state = DONE;
        yield();
    }
}

SIMT_OWN void prepare(Fiber& f, unsigned i) {
    const unsigned* n = m->launch.block;
    f.state = READY;
    f.index = {i % n[0], i / n[0] % n[1], i / (n[0] * n[1])};
    f.lane = i % WARP;
    if (!f.stack) {
        void* memory = mmap(nullptr, STACK + GUARD, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) abort();
        mprotect(memory, GUARD, PROT_NONE);
        f.stack = static_cast<char*>(memory) + GUARD;
    }
    if (f.started) return;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(f.stack, STACK);
    f.fake_stack = nullptr;
#endif
#if defined(__SANITIZE_THREAD__)
    if (f.tsan) __tsan_destroy_fiber(f.tsan);
    f.tsan = __tsan_create_fiber(0);
#endif
    set_start(f, fiber_main);
    f.started = true;
}

// ------------------------------------------------------------------------------------ barriers
SIMT_OWN void block_barrier(int line) {
    m->current->state = AT_BLOCK_BARRIER;
    m->current->line = line;
    yield();
}

SIMT_OWN void warp_barrier(unsigned mask, int line) {
    m->current->state = AT_WARP_BARRIER;
    m->current->mask = mask;
    m->current->line = line;
    yield();
}

SIMT_OWN unsigned vote(unsigned mask, bool value, int line) {
    m->current->vote = value;
    warp_barrier(mask, line);
    return m->current->votes;
}

SIMT_OWN Box exchange_box(Box value, unsigned mask, unsigned source, int line) {
    m->current->given = value;
    m->current->source = source;
    warp_barrier(mask, line);
    return m->current->got;
}

template <class T> T exchange(unsigned mask, T value, unsigned source, int line) {
    static_assert(sizeof(T) <= sizeof(Box), "a shuffle of more than 16 bytes");
    Box box = {};
    memcpy(&box, &value, sizeof value);
    box = exchange_box(box, mask, source, line);
    memcpy(&value, &box, sizeof value);
    return value;
}
SIMT_OWN unsigned lane() { return m->current->lane; }
SIMT_OWN unsigned below(unsigned width, unsigned source) {  // within the segment, or the own lane
    unsigned first = lane() & ~(width - 1);
    return source < first + width && source >= first ? source : lane();
}

enum Verdict { NOBODY, SOMEBODY, WRONG };  // who is let on past a barrier

SIMT_OWN Verdict failed(const char* what, const Fiber& f, unsigned left) {
    snprintf(m->error, sizeof m->error,
             "%s: block (%u, %u, %u), thread (%u, %u, %u), line %d; %u threads have not ended",
             what, m->block.x, m->block.y, m->block.z, f.index.x, f.index.y, f.index.z, f.line,
             left);
    return WRONG;
}

// What each of them did before the barrier happened before what any of them does after it.
SIMT_OWN Verdict let_on(Fiber** members, unsigned count) {
    for (unsigned i = 0; i < count; ++i) members[i]->state = READY;
#if defined(__SANITIZE_THREAD__)
    void* meeting = malloc(8);  // a new address: no older order sticks to it
    for (unsigned i = 0; i < count; ++i) {
        become(*members[i]);
        release(meeting);
    }
    for (unsigned i = 0; i < count; ++i) {
        become(*members[i]);
        acquire(meeting);
    }
    become(m->scheduler);
    free(meeting);
#endif
    return SOMEBODY;
}

// All lanes that the mask of this one names, if they wait with that mask at that line.
SIMT_OWN Verdict open_warp(Fiber* warp, unsigned size, Fiber& first, unsigned left) {
    if (!(first.mask >> first.lane & 1))
        return failed("a warp primitive's mask leaves out the calling lane", first, left);
    Fiber* members[WARP];
    unsigned count = 0, votes = 0;
    for (unsigned i = 0; i < WARP; ++i) {
        if (!(first.mask >> i & 1)) continue;
        if (i >= size || warp[i].state == DONE)
            return failed("a warp primitive's mask names a lane that has ended", first, left);
        if (warp[i].state != AT_WARP_BARRIER || warp[i].mask != first.mask) return NOBODY;
        if (warp[i].line != first.line)
            return failed("lanes meet in different warp primitives", first, left);
        if (warp[i].vote) votes |= 1u << i;
        members[count++] = &warp[i];
    }
    for (unsigned i = 0; i < count; ++i) {
        Fiber& f = *members[i];
        bool there = f.source < WARP && (f.mask >> f.source & 1);
        // the value of a lane that does not take part is undefined
        f.got = there ? warp[f.source].given : Box{{~uint64_t(0), ~uint64_t(0)}};
        f.votes = votes;
    }
    return let_on(members, count);
}

SIMT_OWN Verdict open_warps(unsigned n, unsigned left) {
    Verdict verdict = NOBODY;
    for (unsigned i = 0; i < n; ++i) {
        if (m->fibers[i].state != AT_WARP_BARRIER) continue;
        unsigned start = i / WARP * WARP, size = n - start < WARP ? n - start : WARP;
        Verdict one = open_warp(m->fibers + start, size, m->fibers[i], left);
        if (one == WRONG) return WRONG;
        if (one == SOMEBODY) verdict = SOMEBODY;
    }
    return verdict;
}

SIMT_OWN Verdict open_block(unsigned n, unsigned left) {
    static Fiber* members[MOST];
    for (unsigned i = 0; i < n; ++i) {
        if (m->fibers[i].state != AT_BLOCK_BARRIER) return NOBODY;
        members[i] = &m->fibers[i];
    }
    for (unsigned i = 1; i < n; ++i) {
        if (m->fibers[i].line != m->fibers[0].line)
            return failed("threads meet in different __syncthreads", m->fibers[i], left);
    }
    return let_on(members, n);
}

// ------------------------------------------------------------------------------------ order
SIMT_OWN uint32_t random_word() {  // xorshift
    m->random_state ^= m->random_state << 13;
    m->random_state ^= m->random_state >> 17;
    return m->random_state ^= m->random_state << 5;
}
SIMT_OWN void arrange(unsigned* turn, unsigned n) {
    for (unsigned i = 0; i < n; ++i) turn[i] = m->launch.order == REVERSE ? n - 1 - i : i;
    for (unsigned i = n; m->launch.order >= SHUFFLE && i > 1; --i) {
        unsigned j = random_word() % i, kept = turn[j];
        turn[j] = turn[i - 1];
        turn[i - 1] = kept;
    }
}

// --------------------------------------------------------------------------------- shared memory
// Written byte by byte, unseen by ThreadSanitizer: the scheduler's memset would order the blocks.
SIMT_OWN void undefine(char* memory, size_t size) {
    for (volatile char* p = memory; p != memory + size; ++p) *p = char(0xFF);
}

// One __shared__ variable.  On the heap, of its exact size, so that AddressSanitizer has its red
// zones around it (GCC gives none to a static variable in a template).
struct Shared {
    size_t size;
    char* memory[SETS];
    Shared* next;
    SIMT_OWN void* get();
};

#if defined(__SANITIZE_THREAD__)  // to which malloc would be a write by the fiber that comes first
SIMT_OWN char* shared_memory(size_t size, int set) {
    alignas(16) static char memory[SETS][512 << 10];
    static size_t used[SETS];
    char* found = memory[set] + used[set];
    used[set] += (size + 15) & ~size_t(15);
    if (used[set] > sizeof memory[set]) abort();
    return found;
}
#else
inline char* shared_memory(size_t size, int) { return static_cast<char*>(malloc(size)); }
#endif

SIMT_OWN void* Shared::get() {
    if (!memory[0]) {
        for (int set = 0; set < SETS; ++set) {
            memory[set] = shared_memory(size, set);
            undefine(memory[set], size);
        }
        next = m->all_shared;
        m->all_shared = this;
    }
    return memory[m->set];
}

SIMT_OWN void undefine_shared() {
    for (Shared* s = m->all_shared; s; s = s->next) undefine(s->memory[m->set], s->size);
    undefine(m->dynamic_memory[m->set], m->launch.shared);
}
SIMT_OWN void* dynamic_shared() { return m->dynamic_memory[m->set]; }

// ------------------------------------------------------------------------------------ launching
// Let each fiber that can run do so up to its next barrier; only those of one warp where warps run
// ahead.  Whether any ran.
SIMT_OWN bool run_fibers(const unsigned* turn, unsigned n, unsigned& left) {
    bool ran = false, ahead = m->launch.order == AHEAD;
    for (unsigned k = 0; k < n; ++k) {
        Fiber& f = m->fibers[turn[k]];
        if (f.state != READY || (ahead && turn[k] / WARP != m->lead)) continue;
        ran = true;
        resume(f);
        left -= f.state == DONE;
    }
    return ran;
}

// Another warp that can run goes ahead.  Whether there is one.
SIMT_OWN bool change_lead(const unsigned* turn, unsigned n) {
    for (unsigned k = 0; k < n && m->launch.order == AHEAD; ++k) {
        if (m->fibers[turn[k]].state != READY) continue;
        m->lead = turn[k] / WARP;
        return true;
    }
    return false;
}

SIMT_OWN bool run_block(unsigned n) {
    static unsigned turn[MOST];
    undefine_shared();
    for (unsigned i = 0; i < n; ++i) prepare(m->fibers[i], i);
    ++m->generation[m->set];
    release(&m->order_begin);
    for (unsigned left = n; left;) {
        arrange(turn, n);
        bool ran = run_fibers(turn, n, left);
        Verdict warps = open_warps(n, left), block = warps == WRONG ? WRONG : open_block(n, left);
        if (block == WRONG) return false;
        if (!left || ran || warps == SOMEBODY || block == SOMEBODY || change_lead(turn, n)) continue;
        for (unsigned i = 0; i < n; ++i) {
            if (m->fibers[i].state == DONE) continue;
            failed("a barrier that not all threads reach", m->fibers[i], left);
            return false;
        }
    }
    return true;
}

SIMT_OWN void give_up() {  // fibers that hang at a barrier start anew next time
    for (unsigned i = 0; i < MOST; ++i) {
#if defined(__SANITIZE_THREAD__)
        if (m->fibers[i].tsan) {
            become(m->fibers[i]);
            release(&m->order_end[m->set][m->generation[m->set] & 1]);
        }
#endif
        m->fibers[i].started = false;
    }
    become(m->scheduler);
}

SIMT_OWN int run(void (*kernel)(void**), const Launch* launch, void** arguments) {
    m->launch = *launch;
    m->kernel = kernel;
    m->arguments = arguments;
    const unsigned *g = launch->grid, *b = launch->block;
    m->block_size = launch->pretend ? launch->pretended[2] : dim3{b[0], b[1], b[2]};
    m->grid_size = launch->pretend ? launch->pretended[3] : dim3{g[0], g[1], g[2]};
    m->random_state = launch->seed * 2654435761u | 1;
#if defined(__SANITIZE_THREAD__)
    m->scheduler.tsan = __tsan_get_current_fiber();
#endif
    unsigned blocks = g[0] * g[1] * g[2], ok = 1;
    unsigned* turn = static_cast<unsigned*>(malloc(blocks * sizeof(unsigned)));
    for (auto& memory : m->dynamic_memory) memory = static_cast<char*>(malloc(launch->shared));
    arrange(turn, blocks);
    for (unsigned k = 0; k < blocks && ok; ++k) {
        unsigned i = turn[k];
        m->block = {i % g[0], i / g[0] % g[1], i / (g[0] * g[1])};
        if (launch->pretend) m->block = launch->pretended[1];
        m->set = k % SETS;
        m->fibers = m->pool[m->set];
        ok = run_block(b[0] * b[1] * b[2]);
        if (!ok) give_up();
    }
    for (auto& ends : m->order_end) {
        acquire(&ends[0]);
        acquire(&ends[1]);
    }
    for (auto& memory : m->dynamic_memory) free(memory);
    free(turn);
    return ok ? 0 : 1;
}

// ----------------------------------------------------------------------------- table of kernels
// What a parameter is, in NumPy's letters: "u8" a pointer or an unsigned number of 8 bytes.
template <class A> constexpr char kind() {
    if (std::is_pointer<A>::value) return 'u';
    if (std::is_floating_point<A>::value) return 'f';
    if (std::is_integral<A>::value) return std::is_signed<A>::value ? 'i' : 'u';
    return 'V';
}

template <class F> struct Signature;
template <class... A> struct Signature<void (*)(A...)> {
    static constexpr int count = sizeof...(A);
    static constexpr char kinds[] = {kind<A>()..., '\0'};
    static constexpr int sizes[] = {int(sizeof(A))..., 0};
    template <class F, size_t... I>
    static void call(F kernel, void** arguments, std::index_sequence<I...>) {
        kernel(*static_cast<std::remove_cv_t<A>*>(arguments[I])...);
    }
};

template <auto kernel> SIMT_OWN void call(void** arguments) {
    typedef Signature<decltype(kernel)> S;
    S::call(kernel, arguments, std::make_index_sequence<S::count>{});
}

struct Kernel {  // mirrored in build.py
    const char* name;
    void (*call)(void**);
    int count;
    const char* kinds;
    const int* sizes;
};

}  // namespace simt

#define SIMT_KERNEL(...)                                                                      \
    simt::Kernel {                                                                            \
        #__VA_ARGS__, simt::call<&__VA_ARGS__>, simt::Signature<decltype(&__VA_ARGS__)>::count, \
            simt::Signature<decltype(&__VA_ARGS__)>::kinds,                                   \
            simt::Signature<decltype(&__VA_ARGS__)>::sizes                                    \
    }
#define SIMT_EXPORT extern "C" __attribute__((visibility("default")))
SIMT_EXPORT int simt_run(const simt::Kernel* kernel, const simt::Launch* launch, void** arguments) {
    return simt::run(kernel->call, launch, arguments);
}
SIMT_EXPORT const char* simt_error() { return simt::m->error; }
// Before the first run: the machine of another library, or null for a new one.
SIMT_EXPORT simt::Machine* simt_machine(simt::Machine* other) {
    void* own = other ? other : calloc(1, sizeof(simt::Machine));
    return simt::m = static_cast<simt::Machine*>(own);
}

// build.py writes these for `__shared__ T name[n];` and `extern __shared__ T name[];`
#define SIMT_SHARED(name, ...)                                        \
    static ::simt::Shared name##_memory = {sizeof(__VA_ARGS__), {}, nullptr}; \
    auto& name = *static_cast<std::add_pointer_t<__VA_ARGS__>>(name##_memory.get())
#define SIMT_DYNAMIC_SHARED(name, ...) \
    auto* name = static_cast<std::add_pointer_t<__VA_ARGS__>>(::simt::dynamic_shared())

#define threadIdx (::simt::thread_index())
#define blockIdx (::simt::block_index())
#define blockDim (::simt::block_dim())
#define gridDim (::simt::grid_dim())
#define warpSize 32

// ------------------------------------------------------------------------------ device functions
#define __syncthreads() ::simt::block_barrier(__LINE__)
#define __syncwarp(...) ::simt::warp_barrier(::simt::mask_or_all(__VA_ARGS__), __LINE__)
#define __shfl_sync(mask, value, source) \
    ::simt::exchange((mask), (value), (source) & 31u, __LINE__)
#define __shfl_down_sync(mask, value, delta) \
    ::simt::exchange((mask), (value), ::simt::below(32, ::simt::lane() + (delta)), __LINE__)
#define __shfl_up_sync(mask, value, delta) \
    ::simt::exchange((mask), (value), ::simt::below(32, ::simt::lane() - (delta)), __LINE__)
#define __shfl_xor_sync(mask, value, bits) \
    ::simt::exchange((mask), (value), ::simt::lane() ^ (bits), __LINE__)
#define __ballot_sync(mask, value) ::simt::vote((mask), (value), __LINE__)
#define __any_sync(mask, value) int(::simt::vote((mask), (value), __LINE__) != 0)
#define __all_sync(mask, value) int(::simt::vote((mask), (value), __LINE__) == (mask))
namespace simt {
inline unsigned mask_or_all(unsigned mask = 0xFFFFFFFFu) { return mask; }
}

template <class T> inline T __ldg(const T* x) { return *x; }
template <class T> SIMT_OWN T atomicAdd(T* x, T value) {
    T old = *x;
    *x = old + value;
    return old;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }

namespace simt {
template <class To, class From> inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
}
inline int __float_as_int(float x) { return simt::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return simt::bits<unsigned>(x); }
inline float __int_as_float(int x) { return simt::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return simt::bits<float>(x); }
inline long long __double_as_longlong(double x) { return simt::bits<long long>(x); }
inline double __longlong_as_double(long long x) { return simt::bits<double>(x); }

inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline void sincospi(double x, double* sine, double* cosine) {
    double quarter = rint(2.0 * x), angle = 3.14159265358979323846 * (x - 0.5 * quarter);
    double s = sin(angle), c = cos(angle);  // of what is left, in +-pi/4
    int turn = int(fmod(quarter, 4.0)) & 3;
    *sine = turn == 0 ? s : turn == 1 ? c : turn == 2 ? -s : -c;
    *cosine = turn == 0 ? c : turn == 1 ? -s : turn == 2 ? -c : s;
}
inline void sincospif(float x, float* sine, float* cosine) {
    double s, c;
    sincospi(double(x), &s, &c);
    *sine = float(s);
    *cosine = float(c);
}

// as CUDA's: of two floats, the one that is not a NaN
#define SIMT_MIN_MAX(T)                                         \
    inline T min(T a, T b) { return b < a ? b : a; }            \
    inline T max(T a, T b) { return a < b ? b : a; }
SIMT_MIN_MAX(int)
SIMT_MIN_MAX(unsigned)
SIMT_MIN_MAX(long)
SIMT_MIN_MAX(unsigned long)
SIMT_MIN_MAX(long long)
SIMT_MIN_MAX(unsigned long long)
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
