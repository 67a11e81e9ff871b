// The fused Bernoulli ELBO in a C++ program: one launch gives the value and all gradients.
//
//     nvcc -std=c++17 -I kernels/tinyvae_kernels examples/04_elbo_in_cpp.cu -o elbo && ./elbo
#include <cmath>
#include <cstdio>

#include "elbo.cu"

float* filled(long long n, float value) {
    float* array;
    cudaMallocManaged(&array, n * sizeof(float));
    for (long long i = 0; i < n; ++i) array[i] = value;
    return array;
}

int main() {
    const long long B = 4, D = 784, Z = 20;  // rows, pixels, latents
    float *logits = filled(B * D, 0), *x = filled(B * D, 1), *dlogits = filled(B * D, NAN);
    float *mu = filled(B * Z, 1), *logvar = filled(B * Z, 0);
    float *dmu = filled(B * Z, NAN), *dlogvar = filled(B * Z, NAN);
    float *dout = filled(B, -1.0f / B);  // the gradient of the loss, -mean(elbo)
    float *nll = filled(B, NAN), *kl = filled(B, NAN), *elbo = filled(B, NAN);

    // 4 floats at once: rows of 784 floats start at multiples of 16 bytes (else use <float, 1>)
    tinyvae::bernoulli_elbo<float, 4><<<B, 256>>>(logits, x, dout, nll, dlogits, mu, logvar, kl,
                                                  dmu, dlogvar, elbo, 1.0f, -INFINITY, B, D, Z);
    if (cudaDeviceSynchronize() != cudaSuccess) return puts("the launch failed"), 1;

    // logits of 0: log 2 a pixel; mu of 1, logvar of 0: half a nat a latent
    double expected = -double(D) * std::log(2.0) - 0.5 * double(Z);
    std::printf("elbo %.3f, by hand %.3f; dlogits %.4f, by hand %.4f\n", elbo[0], expected,
                dlogits[0], -0.5 / double(B));
    return std::fabs(elbo[0] - expected) > 1e-2 || std::fabs(dlogits[0] + 0.5 / double(B)) > 1e-6;
}
