// Libraries that this program was built with, or finds.
#pragma once

#include <string>

#include "base/json.h"

namespace fopru::cli {

Json libraries_json();
std::string libraries_text();  // lines for people

}  // namespace fopru::cli
