// The layouts by their `kind`; a new one is a file, a line here and one in layout.cpp.
#pragma once

#include <memory>
#include <string>

#include "base/json.h"
#include "layout/layout.h"

namespace fopru {

// `where` is the place of the object, for messages. All throw BundleError.
std::unique_ptr<const Layout> make_single(const Json& json, const std::string& where);
std::unique_ptr<const Layout> make_anyres(const Json& json, const std::string& where);
std::unique_ptr<const Layout> make_split(const Json& json, const std::string& where);
std::unique_ptr<const Layout> make_native(const Json& json, const std::string& where);
std::unique_ptr<const Layout> make_aspect(const Json& json, const std::string& where);

}  // namespace fopru
