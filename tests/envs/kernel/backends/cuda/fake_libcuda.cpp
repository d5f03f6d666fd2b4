// A driver without a GPU: modules are libraries whose path FAKE_MODULE names, a launch calls their function `launch_…`.
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#define API extern "C" __attribute__((visibility("default")))

static thread_local void* current = nullptr;  // a thread has no context until one is made its own

API void fake_use(void* context) { current = context; }  // as torch does with a device
API int cuDeviceGet(int* device, int index) { *device = index; return 0; }
API int cuDevicePrimaryCtxRetain(void** context, int device) { *context = (char*)7 + device; return 0; }
API int cuCtxSetCurrent(void* context) { current = context; return 0; }
API int cuInit(unsigned) { return 0; }
API int cuDriverGetVersion(int* version) { *version = 13000; return 0; }
API int cuModuleLoadData(void** module, const void* image) {
  if (memcmp(image, "\x7f" "ELF", 4) != 0) return 200;  // CUDA_ERROR_INVALID_IMAGE
  *module = dlopen(getenv("FAKE_MODULE"), RTLD_NOW);
  return *module ? 0 : 209;
}
API int cuModuleGetFunction(void** function, void* module, const char* name) {
  char full[200] = "launch_";
  *function = dlsym(module, strncat(full, name, 150));
  return *function ? 0 : 500;  // CUDA_ERROR_NOT_FOUND
}
API int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned ty, unsigned tz,
                       unsigned shared, void* stream, void** arguments, void** extra) {
  if (!current) return 201;  // CUDA_ERROR_INVALID_CONTEXT
  if (stream != current) return 400;  // CUDA_ERROR_INVALID_HANDLE: a stream of another context
  if (y != 1 || z != 1 || ty != 1 || tz != 1 || shared || extra) return 1;  // INVALID_VALUE
  ((void (*)(unsigned, unsigned, void**))function)(x, threads, arguments);
  return 0;
}
API int cuGetProcAddress_v2(const char* name, void** function, int, unsigned long long, int* status) {
  *function = dlsym(RTLD_DEFAULT, name);
  if (!*function) {  // loaded by itself, its names are not the process's
    Dl_info here;
    dladdr((void*)cuInit, &here);
    *function = dlsym(dlopen(here.dli_fname, RTLD_NOW), name);
  }
  if (status) *status = *function ? 0 : 1;
  return *function ? 0 : 500;
}
API int cuGetProcAddress(const char* name, void** function, int version, unsigned long long flags) {
  return cuGetProcAddress_v2(name, function, version, flags, nullptr);
}
