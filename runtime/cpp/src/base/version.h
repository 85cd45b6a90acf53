// The version of the library, that of runtime/version.py.
#pragma once

namespace fopru {

const char* library_version();  // "1.2.3", lives as long as the program

}  // namespace fopru
