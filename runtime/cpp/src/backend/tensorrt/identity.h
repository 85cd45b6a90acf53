// What this device is: an engine runs on the GPU, TensorRT and JetPack that it was built with, and no other.
// `runtime/tensorrt/identity.py`.
#pragma once

#include <optional>
#include <string>

namespace fopru {

struct EngineIdentity {
    std::string gpu;                     // short name in lower case, e.g. "orin"
    int sm = 0;                          // compute capability as one number, e.g. 87
    std::string tensorrt;                // x.y.z
    std::optional<std::string> jetpack;  // none where it is no Jetson

    std::string tag() const;   // name of the folder of its engines, e.g. "orin-sm87-trt10.3.0-jp6.2"
    std::string text() const;  // "orin (SM87), TensorRT 10.3.0, JetPack 6.2"
    bool operator==(const EngineIdentity& other) const;
};

// JetPack version from the text of /etc/nv_tegra_release; "l4t35.4" and the like where unknown, none where it
// is no Jetson's.
std::optional<std::string> jetpack_of(const std::string& release);

// From what CUDA and TensorRT say, and from files of the kernel under `root`, "/" but in tests: a Tegra chip
// is known by its device tree.
EngineIdentity identity_of(const std::string& gpu, int sm, const std::string& tensorrt,
                           const std::string& root = "/");

}  // namespace fopru
