// The commands of `fopru`: each takes its arguments, without its own name, and returns the exit code.
#pragma once

#include <string>
#include <vector>

namespace fopru::cli {

using Arguments = std::vector<std::string>;

int run_command(const Arguments& arguments);
int check_command(const Arguments& arguments);
int info_command(const Arguments& arguments);
int bench_command(const Arguments& arguments);

}  // namespace fopru::cli
