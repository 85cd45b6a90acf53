// Column scores on a GPU: correct against the CPU reference, and timed beside the form that holds P. Prints one JSON object.
// Usage: column_score_bench [repeats [heads,tokens,head_dim ...]]; the shapes default to the three of docs/kernels.md.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "column_score.h"
#include "column_score_reference.h"
#include "unfused.cuh"

namespace {

void must(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
    std::exit(1);
  }
}

void must(FopruStatus status) {
  if (status != FOPRU_OK) {
    std::fprintf(stderr, "fopru_column_score: %s\n", fopru_column_score_status_string(status));
    std::exit(1);
  }
}

// Device memory for its lifetime.
template <class T>
class Device {
 public:
  explicit Device(std::size_t count) { must(cudaMalloc(reinterpret_cast<void**>(&data_), count * sizeof(T)), "cudaMalloc"); }
  explicit Device(const std::vector<T>& host) : Device(host.size()) {
    must(cudaMemcpy(data_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice), "copy to the device");
  }
  ~Device() { cudaFree(data_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  T* get() const { return data_; }
  std::vector<T> host(std::size_t count) const {
    std::vector<T> values(count);
    must(cudaMemcpy(values.data(), data_, count * sizeof(T), cudaMemcpyDeviceToHost), "copy to the host");
    return values;
  }

 private:
  T* data_ = nullptr;
};

struct Shape {
  int heads, tokens, head_dim;  // one image
  std::size_t values() const {
    return static_cast<std::size_t>(heads) * static_cast<std::size_t>(tokens) * static_cast<std::size_t>(head_dim);
  }
  std::size_t rows() const { return static_cast<std::size_t>(heads) * static_cast<std::size_t>(tokens); }
};

std::vector<float> random_values(std::size_t count, unsigned int seed) {
  std::vector<float> values(count);
  unsigned int state = seed;
  for (float& value : values) {
    state = state * 1664525U + 1013904223U;
    value = (static_cast<float>(state >> 8) / 8388608.0F - 1.0F) * 2.5F;
  }
  return values;
}

template <class T, class Convert>
std::vector<T> converted(const std::vector<float>& values, Convert convert) {
  std::vector<T> result;
  result.reserve(values.size());
  for (const float value : values) {
    result.push_back(convert(value));
  }
  return result;
}

FopruColumnScoreArgs args_for(const Shape& shape, FopruDtype dtype, const void* q, const void* k) {
  FopruColumnScoreArgs args;
  args.dtype = dtype;
  args.images = 1;
  args.heads = shape.heads;
  args.tokens = shape.tokens;
  args.head_dim = shape.head_dim;
  args.query_end = shape.tokens;
  args.scale = 1.0F / std::sqrt(static_cast<float>(shape.head_dim));
  const std::int64_t per_head = static_cast<std::int64_t>(shape.tokens) * shape.head_dim;
  args.q = {q, per_head * shape.heads, per_head, shape.head_dim};
  args.k = {k, per_head * shape.heads, per_head, shape.head_dim};
  return args;
}

std::vector<float> kernel_scores(FopruColumnScoreArgs args) {
  const std::size_t bytes = fopru_column_score_workspace_bytes(1, args.heads, args.tokens, 0);
  const Device<char> workspace(bytes);
  const Device<float> scores(static_cast<std::size_t>(args.tokens));
  args.workspace = workspace.get();
  args.workspace_bytes = bytes;
  args.scores = scores.get();
  must(fopru_column_score(&args, nullptr));
  must(cudaDeviceSynchronize(), "fused kernels");
  return scores.host(static_cast<std::size_t>(args.tokens));
}

double worst_of_uniform(const std::vector<float>& got, const std::vector<float>& want) {
  double worst = 0.0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double difference = std::fabs(static_cast<double>(got[i]) - want[i]) * static_cast<double>(got.size());
    worst = difference <= worst ? worst : difference;  // NaN becomes the worst
  }
  return worst;
}

// Kernel against reference; two heads at most, because the reference is one thread in double precision.
template <class T, class Convert>
double error_of(Shape shape, FopruDtype dtype, Convert convert) {
  shape.heads = std::min(shape.heads, 2);
  const std::vector<T> q = converted<T>(random_values(shape.values(), 1), convert);
  const std::vector<T> k = converted<T>(random_values(shape.values(), 2), convert);
  const Device<T> device_q(q);
  const Device<T> device_k(k);
  const FopruColumnScoreArgs on_device = args_for(shape, dtype, device_q.get(), device_k.get());
  const std::vector<float> got = kernel_scores(on_device);
  if (kernel_scores(on_device) != got) {
    std::fprintf(stderr, "two runs on equal inputs differ\n");
    std::exit(1);
  }
  FopruColumnScoreArgs args = args_for(shape, dtype, q.data(), k.data());
  std::vector<float> want(got.size());
  std::vector<float4> workspace(shape.rows());  // float4 for its alignment
  args.workspace = workspace.data();
  args.workspace_bytes = workspace.size() * sizeof(float4);
  args.scores = want.data();
  must(fopru_column_score_reference(&args, nullptr));
  return worst_of_uniform(got, want);
}

struct Variant {
  const char* name;
  std::function<void()> run;
  std::vector<float> milliseconds;
};

// Every variant once per round, so that clocks and neighbours disturb all alike.
void time_interleaved(std::vector<Variant>& variants, int repeats) {
  cudaEvent_t start = nullptr;
  cudaEvent_t stop = nullptr;
  must(cudaEventCreate(&start), "event");
  must(cudaEventCreate(&stop), "event");
  for (int round = -3; round < repeats; ++round) {  // three rounds to warm up
    for (Variant& variant : variants) {
      must(cudaEventRecord(start, nullptr), "event");
      variant.run();
      must(cudaEventRecord(stop, nullptr), "event");
      must(cudaEventSynchronize(stop), variant.name);
      float elapsed = 0.0F;
      must(cudaEventElapsedTime(&elapsed, start, stop), "event");
      if (round >= 0) {
        variant.milliseconds.push_back(elapsed);
      }
    }
  }
  for (Variant& variant : variants) {
    std::sort(variant.milliseconds.begin(), variant.milliseconds.end());
  }
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
}

int attribute(cudaDeviceAttr which) {
  int value = 0;
  must(cudaDeviceGetAttribute(&value, which, 0), "device attribute");
  return value;
}

// Dense float16 multiply-adds per clock and multiprocessor, from published peak rates; 0 where unknown here.
double multiply_adds_per_clock(int capability) {
  return capability == 80 || capability == 87   ? 1024.0
         : capability == 86 || capability == 89 ? 512.0
         : capability == 90                     ? 2048.0
                                                : 0.0;
}

void print_device() {
  cudaDeviceProp properties;
  must(cudaGetDeviceProperties(&properties, 0), "device");
  int driver = 0;
  int runtime = 0;
  must(cudaDriverGetVersion(&driver), "driver");
  must(cudaRuntimeGetVersion(&runtime), "runtime");
  std::printf("{\n  \"device\": \"%s\", \"compute_capability\": \"%d.%d\", \"multiprocessors\": %d,\n", properties.name,
              properties.major, properties.minor, attribute(cudaDevAttrMultiProcessorCount));
  std::printf("  \"driver\": %d, \"runtime\": %d, \"clock_khz\": %d, \"memory_clock_khz\": %d, \"bus_bits\": %d,\n", driver,
              runtime, attribute(cudaDevAttrClockRate), attribute(cudaDevAttrMemoryClockRate),
              attribute(cudaDevAttrGlobalMemoryBusWidth));
}

// Two data transfers a clock, as in every DDR and HBM. Infinite, printed as null, where the driver does not say.
double bytes_per_microsecond() {
  return 2.0 * attribute(cudaDevAttrMemoryClockRate) * attribute(cudaDevAttrGlobalMemoryBusWidth) / 8.0 / 1000.0;
}

void print_floor(const char* name, double work, double per_microsecond) {
  if (per_microsecond > 0.0) {
    std::printf(", \"%s\": %.3f", name, work / per_microsecond);
  } else {
    std::printf(", \"%s\": null", name);
  }
}

void print_floors(const Shape& s) {
  const double bytes = 2.0 * 2.0 * static_cast<double>(s.values()) + 4.0 * s.tokens;  // Q, K in float16; scores
  const double multiply_adds = 2.0 * static_cast<double>(s.values()) * s.tokens;      // QK^T in either pass
  const int capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor);
  const double clocks =
      static_cast<double>(attribute(cudaDevAttrMultiProcessorCount)) * attribute(cudaDevAttrClockRate) / 1000.0;
  std::printf("     \"bytes\": %.0f, \"multiply_adds\": %.0f, \"exponentials\": %.0f", bytes, multiply_adds,
              2.0 * static_cast<double>(s.rows()) * s.tokens);
  print_floor("floor_memory_us", bytes, bytes_per_microsecond());
  print_floor("floor_multiply_add_us", multiply_adds, clocks * multiply_adds_per_clock(capability));
  std::printf(",\n");
}

void measure(const Shape& s, int repeats, bool last) {
  std::printf("    {\"heads\": %d, \"tokens\": %d, \"head_dim\": %d,\n     \"max_error_times_tokens\": {", s.heads, s.tokens,
              s.head_dim);
  std::printf("\"float32\": %.3g, ", error_of<float>(s, FOPRU_FLOAT32, [](float value) { return value; }));
  std::printf("\"float16\": %.3g, ", error_of<__half>(s, FOPRU_FLOAT16, [](float value) { return __float2half(value); }));
  std::printf("\"bfloat16\": %.3g",
              error_of<__nv_bfloat16>(s, FOPRU_BFLOAT16, [](float value) { return __float2bfloat16(value); }));

  const auto half = [](float value) { return __float2half(value); };
  const Device<__half> q(converted<__half>(random_values(s.values(), 1), half));
  const Device<__half> k(converted<__half>(random_values(s.values(), 2), half));
  const std::size_t bytes = fopru_column_score_workspace_bytes(1, s.heads, s.tokens, 0);
  const Device<char> workspace(bytes);
  const Device<float> scores(static_cast<std::size_t>(s.tokens));
  FopruColumnScoreArgs fused = args_for(s, FOPRU_FLOAT16, q.get(), k.get());
  fused.workspace = workspace.get();
  fused.workspace_bytes = bytes;
  fused.scores = scores.get();
  FopruColumnScoreArgs given = fused;  // the log-sum-exp that the fused call leaves in the second half of its workspace
  const Device<float> lse(s.rows());
  must(fopru_column_score(&fused, nullptr));
  must(cudaMemcpy(lse.get(), workspace.get() + bytes / 2, bytes / 2, cudaMemcpyDeviceToDevice), "log-sum-exp");
  given.lse = lse.get();
  given.lse_stride_head = s.tokens;
  given.lse_stride_image = static_cast<std::int64_t>(s.rows());

  const Device<float> p(s.rows() * static_cast<std::size_t>(s.tokens));
  const Device<float> partial(s.rows() * bench::kSlices);
  const Device<float> unfused_scores(static_cast<std::size_t>(s.tokens));
  const bench::Unfused unfused{q.get(), k.get(),  p.get(),    partial.get(), unfused_scores.get(),
                               s.heads, s.tokens, s.head_dim, fused.scale};
  std::vector<Variant> variants = {{"fused", [&] { must(fopru_column_score(&fused, nullptr)); }, {}},
                                   {"fused_lse_given", [&] { must(fopru_column_score(&given, nullptr)); }, {}},
                                   {"unfused", [&] { must(bench::run_unfused(unfused), "unfused kernels"); }, {}}};
  time_interleaved(variants, repeats);
  const std::size_t tokens = static_cast<std::size_t>(s.tokens);
  std::printf("},\n     \"unfused_against_fused_times_tokens\": %.3g,\n",
              worst_of_uniform(unfused_scores.host(tokens), scores.host(tokens)));
  std::printf("     \"workspace_bytes\": %zu, \"p_bytes\": %zu,\n", bytes, s.rows() * tokens * sizeof(float));
  print_floors(s);
  std::printf("     \"microseconds\": {");
  for (const Variant& v : variants) {
    std::printf("%s\"%s\": {\"median\": %.2f, \"least\": %.2f}", &v == variants.data() ? "" : ", ", v.name,
                1000.0 * v.milliseconds[v.milliseconds.size() / 2], 1000.0 * v.milliseconds.front());
  }
  std::printf("}}%s\n", last ? "" : ",");
}

}  // namespace

int main(int count, char** words) {
  const int repeats = count > 1 ? std::atoi(words[1]) : 50;
  std::vector<Shape> shapes;
  for (int i = 2; i < count; ++i) {
    Shape shape = {};
    if (std::sscanf(words[i], "%d,%d,%d", &shape.heads, &shape.tokens, &shape.head_dim) != 3) {
      std::fprintf(stderr, "%s: a shape is heads,tokens,head_dim\n", words[i]);
      return 2;
    }
    shapes.push_back(shape);
  }
  if (repeats < 1) {
    std::fprintf(stderr, "repeats must be at least 1\n");
    return 2;
  }
  if (shapes.empty()) {
    shapes = {{16, 577, 64}, {16, 729, 72}, {16, 4096, 80}};  // CLIP ViT-L/14-336, SigLIP so400m/384, 4096 patches
  }
  print_device();
  std::printf("  \"repeats\": %d, \"shapes\": [\n", repeats);
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    measure(shapes[i], repeats, i + 1 == shapes.size());
  }
  std::printf("  ]\n}\n");
  return 0;
}
