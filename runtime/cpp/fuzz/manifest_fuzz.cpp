// bundle.json: parsed, decoded and checked; then every layout is asked for plans of a few sizes.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "base/json.h"
#include "bundle/manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        const std::string_view text(reinterpret_cast<const char*>(data), size);
        const fopru::Manifest manifest = fopru::read_manifest(fopru::parse_json(text, "bundle.json"));
        const int sizes[][2] = {{1, 1}, {480, 640}, {3000, 20}, {7, 4000}};
        for (const auto& [height, width] : sizes) {
            try {
                const fopru::ImagePlan plan = manifest.layout->plan(height, width);
                for (const fopru::Unit& unit : plan.units) unit.valid_indices();
            } catch (const fopru::ImageError&) {
            }
        }
    } catch (const fopru::Error&) {
    }
    return 0;
}
