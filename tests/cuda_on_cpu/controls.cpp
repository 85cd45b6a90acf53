// What a test may turn: the order in which threads run, and which launch the pretended driver refuses.
#include "fibers.h"

extern "C" {

void cuda_on_cpu_fall(int falling) { cuda_on_cpu::falling_order = falling != 0; }

// The launch after `launches` successful ones fails; -1 lets every one pass.
void cuda_on_cpu_refuse_after(int launches) { cuda_on_cpu::launches_until_failure = launches; }

}  // extern "C"
