/* As much of NVIDIA's management library as the energy counter of one GPU needs; each reading is 1.5 J later. */
#include <string.h>

static unsigned long long millijoules = 4000;

int nvmlInitWithFlags(unsigned int flags) { return flags ? 2 : 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *address, void **device) {
  *device = &millijoules;
  return strcmp(address, "0000:01:00.0") ? 6 : 0; /* NVML_ERROR_NOT_FOUND */
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *energy) {
  if (device != &millijoules) return 2; /* NVML_ERROR_INVALID_ARGUMENT */
  *energy = millijoules;
  millijoules += 1500;
  return 0;
}
