// What a C++ program with kernels in it asks of CUDA's runtime, on the shim.  Included after shim.h;
// program() in build.py writes `kernel<<<grid, block>>>(arguments)` as SIMT_START.
#pragma once
#include <tuple>

typedef int cudaError_t;
enum { cudaSuccess = 0, cudaErrorLaunchFailure = 719 };

namespace simt {

static int launch_status = cudaSuccess;

template <class... P, class... A>
void start(const Kernel& kernel, void (*)(P...), unsigned grid, unsigned block, A... arguments) {
    static Machine* const machine = simt_machine(nullptr);
    (void)machine;
    std::tuple<std::remove_cv_t<P>...> values{static_cast<P>(arguments)...};
    Launch launch = {{grid, 1, 1}, {block, 1, 1}};
    std::apply([&](auto&... value) {
        void* addresses[] = {(void*)&value...};
        if (simt_run(&kernel, &launch, addresses)) launch_status = cudaErrorLaunchFailure;
    }, values);
    if (launch_status) fprintf(stderr, "%s: %s\n", kernel.name, simt_error());
}

}  // namespace simt

#define SIMT_START(grid, block, arguments, ...) \
    simt::start(SIMT_KERNEL(__VA_ARGS__), &__VA_ARGS__, grid, block, arguments)
#define SIMT_LIST(...) __VA_ARGS__

template <class T> cudaError_t cudaMallocManaged(T** array, size_t size) {
    *array = static_cast<T*>(malloc(size));
    return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() { return simt::launch_status; }
