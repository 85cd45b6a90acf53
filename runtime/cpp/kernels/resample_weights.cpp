// Compiled with -ffp-contract=off: a fused multiply-add would round differently from Pillow on x86.
#include "resample_weights.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace fopru {
namespace {

constexpr double kPi = 3.14159265358979323846;

double sinc(double x) { return x == 0.0 ? 1.0 : std::sin(x * kPi) / (x * kPi); }

double lanczos(double x) { return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

double bilinear(double x) { return std::abs(x) < 1.0 ? 1.0 - std::abs(x) : 0.0; }

double bicubic(double x) {
  constexpr double kA = -0.5;
  x = std::abs(x);
  if (x < 1.0) {
    return ((kA + 2.0) * x - (kA + 3.0)) * x * x + 1;
  }
  return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * kA : 0.0;
}

double box(double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }

double hamming(double x) {
  x = std::abs(x);
  if (x == 0.0) {
    return 1.0;
  }
  if (x >= 1.0) {
    return 0.0;
  }
  x *= kPi;
  return std::sin(x) / x * (0.54F + 0.46F * std::cos(x));  // constants of single precision, as Pillow has them
}

struct Filter {
  double (*weight)(double);
  double support;
};

Filter filter_of(int code) {
  switch (code) {
    case 1:
      return {lanczos, 3.0};
    case 2:
      return {bilinear, 1.0};
    case 3:
      return {bicubic, 2.0};
    case 4:
      return {box, 0.5};
    case 5:
      return {hamming, 1.0};
    default:
      throw std::invalid_argument("no resampling filter has this code");
  }
}

double stretch(int from, int to) { return std::max(static_cast<double>(from) / to, 1.0); }

int taps_of(double support) { return static_cast<int>(std::ceil(support)) * 2 + 1; }

// The inputs of one output, before their weights.
struct Window {
  double center;
  int first;
  int count;
};

Window window_of(const ResampleAxis& axis, int output, double support) {
  const double center = (axis.begin + output + 0.5) * (static_cast<double>(axis.from) / axis.to);
  const int first = std::max(static_cast<int>(center - support + 0.5), 0);
  const int end = std::min(static_cast<int>(center + support + 0.5), axis.from);
  return {center, first, std::min(end - first, taps_of(support))};
}

void check_axis(const ResampleAxis& axis) {
  if (axis.from < 1 || axis.to < 1) {
    throw std::invalid_argument("a side has no samples");
  }
  if (axis.begin < 0 || axis.outputs < 1 || axis.outputs > axis.to - axis.begin) {
    throw std::invalid_argument("outputs lie outside the resized side");
  }
}

std::int32_t fixed(double weight) {
  const double scaled = weight * (1 << kResampleBits);
  return static_cast<std::int32_t>(weight < 0 ? scaled - 0.5 : scaled + 0.5);
}

}  // namespace

bool rows_first(PictureSize from, PictureSize to) {
  return to.height < from.height &&
         from.height - to.height > 2 * (static_cast<std::int64_t>(from.width) - to.width);
}

int resample_taps(int from, int to, int filter) {
  check_axis({from, to, 0, to});
  return taps_of(filter_of(filter).support * stretch(from, to));
}

ResampleSpan resample_span(const ResampleAxis& axis, int filter) {
  check_axis(axis);
  const double support = filter_of(filter).support * stretch(axis.from, axis.to);
  const Window last = window_of(axis, axis.outputs - 1, support);
  return {window_of(axis, 0, support).first, last.first + last.count};
}

ResampleWeights resample_weights(const ResampleAxis& axis, int filter) {
  check_axis(axis);
  const Filter shape = filter_of(filter);
  const double support = shape.support * stretch(axis.from, axis.to);
  const double narrowing = 1.0 / stretch(axis.from, axis.to);
  const auto outputs = static_cast<std::size_t>(axis.outputs);
  const auto taps = static_cast<std::size_t>(taps_of(support));
  ResampleWeights weights;
  weights.taps = taps_of(support);
  weights.first.resize(outputs);
  weights.count.resize(outputs);
  weights.values.resize(outputs * taps);
  std::vector<double> exact(taps);
  for (std::size_t x = 0; x < outputs; ++x) {
    const Window window = window_of(axis, static_cast<int>(x), support);
    double total = 0.0;
    for (int i = 0; i < window.count; ++i) {
      const double weight = shape.weight((i + window.first - window.center + 0.5) * narrowing);
      exact[static_cast<std::size_t>(i)] = weight;
      total += weight;
    }
    for (int i = 0; i < window.count; ++i) {
      const double weight = exact[static_cast<std::size_t>(i)];
      weights.values[x * taps + static_cast<std::size_t>(i)] = fixed(total != 0.0 ? weight / total : weight);
    }
    weights.first[x] = window.first;
    weights.count[x] = window.count;
  }
  return weights;
}

}  // namespace fopru
