/* Stands in for libcuda.so.1: one device whose memory is the host's. NVIDIA's cuda.h declares every function, so a
   definition that differs from the real driver's does not compile. */
#include <cuda.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef void (*Work)(void);
static Work nodes[16];
static int count, capturing, live;

/* For the tests: what a stream does, and how many things have not been given back. */
int standin_is_capturing(void) { return capturing; }
void standin_add_node(Work work) { nodes[count++] = work; }
int standin_live(void) { return live; }

CUresult cuInit(unsigned int flags) { return flags ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { *version = 13000; return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { *device = ordinal; return CUDA_SUCCESS; }
CUresult cuDeviceGetName(char *name, int size, CUdevice device) { (void)device; strncpy(name, "Stand-in GPU", size); return CUDA_SUCCESS; }
CUresult cuDeviceGetPCIBusId(char *address, int size, CUdevice device) { (void)device; strncpy(address, "0000:01:00.0", size); return CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  (void)device;
  if (attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) *value = 8;
  else if (attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR) *value = 9;
  else return CUDA_ERROR_INVALID_VALUE;
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) { (void)device; *context = (CUcontext)&live; return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext context) { return context == (CUcontext)&live ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT; }
CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : "invalid value";
  return CUDA_SUCCESS;
}
CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t size) {
  if (size > ((size_t)1 << 40)) return CUDA_ERROR_OUT_OF_MEMORY;
  *pointer = (CUdeviceptr)malloc(size);
  live++;
  return CUDA_SUCCESS;
}
CUresult cuMemFree_v2(CUdeviceptr pointer) { free((void *)pointer); live--; return CUDA_SUCCESS; }
CUresult cuMemHostAlloc(void **pointer, size_t size, unsigned int flags) { (void)flags; *pointer = calloc(1, size); live++; return CUDA_SUCCESS; }
CUresult cuMemFreeHost(void *pointer) { free(pointer); live--; return CUDA_SUCCESS; }
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t size, CUstream stream) { (void)stream; memcpy((void *)to, from, size); return CUDA_SUCCESS; }
CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t size, CUstream stream) { (void)stream; memcpy(to, (void *)from, size); return CUDA_SUCCESS; }
CUresult cuStreamCreate(CUstream *stream, unsigned int flags) { *stream = (CUstream)&nodes; live++; return flags == CU_STREAM_NON_BLOCKING ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE; }
CUresult cuStreamDestroy_v2(CUstream stream) { (void)stream; live--; return CUDA_SUCCESS; }
CUresult cuStreamSynchronize(CUstream stream) { return stream == (CUstream)&nodes ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE; }
CUresult cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode mode) {
  (void)stream;
  if (mode != CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) return CUDA_ERROR_INVALID_VALUE;
  capturing = 1, count = 0;
  return CUDA_SUCCESS;
}
typedef struct { Work nodes[16]; int count; } Recorded;
CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
  (void)stream;
  Recorded *recorded = malloc(sizeof *recorded);
  memcpy(recorded->nodes, nodes, sizeof nodes);
  recorded->count = count, capturing = 0;
  *graph = (CUgraph)recorded;
  live++;
  return CUDA_SUCCESS;
}
CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags) {
  (void)flags;
  Recorded *copy = malloc(sizeof *copy);
  memcpy(copy, graph, sizeof *copy);
  *exec = (CUgraphExec)copy;
  live++;
  return CUDA_SUCCESS;
}
CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream) {
  (void)stream;
  Recorded *recorded = (Recorded *)exec;
  for (int i = 0; i < recorded->count; i++) recorded->nodes[i]();
  return CUDA_SUCCESS;
}
CUresult cuGraphDestroy(CUgraph graph) { free(graph); live--; return CUDA_SUCCESS; }
CUresult cuGraphExecDestroy(CUgraphExec exec) { free(exec); live--; return CUDA_SUCCESS; }
CUresult cuEventCreate(CUevent *event, unsigned int flags) { (void)flags; *event = calloc(1, sizeof(struct timespec)); live++; return CUDA_SUCCESS; }
CUresult cuEventDestroy_v2(CUevent event) { free(event); live--; return CUDA_SUCCESS; }
CUresult cuEventRecord(CUevent event, CUstream stream) { (void)stream; clock_gettime(CLOCK_MONOTONIC, (struct timespec *)event); return CUDA_SUCCESS; }
CUresult cuEventSynchronize(CUevent event) { (void)event; return CUDA_SUCCESS; }
#undef cuEventElapsedTime
CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
  struct timespec *a = (struct timespec *)start, *b = (struct timespec *)end;
  *milliseconds = (b->tv_sec - a->tv_sec) * 1e3f + (b->tv_nsec - a->tv_nsec) * 1e-6f;
  return CUDA_SUCCESS;
}
