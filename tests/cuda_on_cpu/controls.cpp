// What a test may turn: the order in which threads run, when copies happen, and which launch the pretended driver refuses.
#include "controls.h"

#include "fibers.h"

extern "C" {

void cuda_on_cpu_schedule(int schedule) {
  cuda_on_cpu::falling_order = (schedule & 1) != 0;
  cuda_on_cpu::early_copies = (schedule & 2) != 0;
}

void cuda_on_cpu_refuse_after(int launches) { cuda_on_cpu::launches_until_failure = launches; }

}  // extern "C"
