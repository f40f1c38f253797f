/* The part of the NVIDIA driver's library that finds GPUs; environment variables say what it answers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int number(const char *name, int otherwise)
{
    const char *value = getenv(name);
    return value ? atoi(value) : otherwise;
}

int cuDriverGetVersion(int *version) { *version = number("FAKE_CUDA", 13000); return 0; }
int cuInit(unsigned flags) { (void)flags; return number("FAKE_INIT", 0); }
int cuDeviceGetCount(int *count) { *count = number("FAKE_COUNT", 1); return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "Fake %d", device); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = (size_t)8 << 30; return 0; }

int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    int capability = number("FAKE_CAPABILITY", 86);
    (void)device;
    *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : -1;
    return 0;
}

int cuGetErrorString(int code, const char **text)
{
    *text = code == 803 ? "system has unsupported display driver / cuda driver combination" : NULL;
    return 0;
}
