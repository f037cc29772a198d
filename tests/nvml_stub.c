/* NVML with the ABI of nvml.h, played back from a text file: $NVML_STUB_SCRIPT.
 *
 * A line is a key and its readings, `power 100000 error:3 250000`. Each call takes the next reading and the last one
 * repeats. `error:N` is NVML's error N; what has no line is NVML_ERROR_NOT_SUPPORTED. `0x` numbers are fine.
 *
 *   init, handle      ok, or an error
 *   uuid, name, driver  texts; a handle is given for this uuid only
 *   used              bytes, of a device of 80 GB
 *   sm_clock, memory_clock (MHz), temperature, temperature_v (degrees), power (mW), energy (mJ)
 *   reasons, old_reasons  masks of clock event reasons, under today's name and the one before driver 535
 *   power_limit (mW), ecc (0 or 1), app_clock, max_clock (MHz, of the SM)
 *   violation_power, violation_heat  nanoseconds for which the clocks were held down
 *   compute, graphics   processes as `pid=bytes,pid=none`, or `nobody`
 *
 * Plain C that is also C++, for machines with g++ alone. Not for two threads at the same moment.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    ARGUMENT_VERSION_MISMATCH = 25, MAX_KEYS = 30, MAX_READINGS = 2000, CLOCK_SM = 1, CLOCK_MEM = 2,
    APP_CLOCK_TARGET = 1, POLICY_POWER = 0, POLICY_THERMAL = 1, POLICY_COUNT = 12
};

typedef int nvmlReturn_t;
typedef void *nvmlDevice_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct { unsigned int version; unsigned int sensorType; int temperature; } nvmlTemperature_t;
typedef struct {
    unsigned int pid;
    unsigned long long usedGpuMemory;
    unsigned int gpuInstanceId, computeInstanceId;
} nvmlProcessInfo_t;

typedef struct { unsigned long long referenceTime, violationTime; } nvmlViolationTime_t;

static struct { char *key, *readings[MAX_READINGS]; int count, at; } lines[MAX_KEYS];
static int line_count, initialized, device;
static char text[1 << 20];

static void load_script(void)
{
    FILE *file = fopen(getenv("NVML_STUB_SCRIPT"), "r");
    char *line, *word, *lines_left, *words_left;
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    for (line = strtok_r(text, "\n", &lines_left); line; line = strtok_r(NULL, "\n", &lines_left)) {
        lines[line_count].key = strtok_r(line, " ", &words_left);
        while ((word = strtok_r(NULL, " ", &words_left)))
            lines[line_count].readings[lines[line_count].count++] = word;
        line_count++;
    }
}

static nvmlReturn_t next(const char *key, char **reading)
{
    for (int i = 0; i < line_count; i++) {
        if (strcmp(lines[i].key, key))
            continue;
        *reading = lines[i].readings[lines[i].at];
        lines[i].at += lines[i].at < lines[i].count - 1;
        return strncmp(*reading, "error:", 6) ? SUCCESS : atoi(*reading + 6);
    }
    return NOT_SUPPORTED;
}

static nvmlReturn_t number(const char *key, nvmlDevice_t handle, unsigned long long *value)
{
    char *reading;
    nvmlReturn_t result;
    if (!initialized)
        return UNINITIALIZED;
    if (handle != &device)
        return INVALID_ARGUMENT;
    result = next(key, &reading);
    if (result == SUCCESS)
        *value = strtoull(reading, NULL, 0);
    return result;
}

static nvmlReturn_t small_number(const char *key, nvmlDevice_t handle, unsigned int *value)
{
    unsigned long long wide = 0;
    nvmlReturn_t result = number(key, handle, &wide);
    if (result == SUCCESS)
        *value = (unsigned int)wide;
    return result;
}

static nvmlReturn_t copy(const char *key, char *to, unsigned int length)
{
    char *reading;
    nvmlReturn_t result = initialized ? next(key, &reading) : UNINITIALIZED;
    if (result == SUCCESS)
        snprintf(to, length, "%s", reading);
    return result;
}

/* Asked twice: without a place for the answer, to learn its size, and again with one. */
static nvmlReturn_t processes(const char *key, nvmlDevice_t handle, unsigned int *count, nvmlProcessInfo_t *infos)
{
    static char *listed;
    unsigned int found = 0;
    if (!initialized)
        return UNINITIALIZED;
    if (handle != &device)
        return INVALID_ARGUMENT;
    if (!infos) {
        nvmlReturn_t result = next(key, &listed);
        if (result != SUCCESS || !strcmp(listed, "nobody"))
            return result;
    }
    for (char *at = listed; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL, found++) {
        if (found >= *count)
            continue;
        char *used = strchr(at, '=') + 1;
        infos[found].pid = (unsigned int)strtoul(at, NULL, 10);
        infos[found].usedGpuMemory = strncmp(used, "none", 4) ? strtoull(used, NULL, 10) : ~0ULL;
        infos[found].gpuInstanceId = infos[found].computeInstanceId = ~0U;
    }
    nvmlReturn_t result = found > *count ? INSUFFICIENT_SIZE : SUCCESS;
    *count = found;
    return result;
}

nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
    char *reading;
    nvmlReturn_t result;
    (void)flags;
    if (!line_count)
        load_script();
    result = next("init", &reading);
    initialized += result == SUCCESS;
    return result;
}

nvmlReturn_t nvmlShutdown(void)
{
    if (!initialized)
        return UNINITIALIZED;
    initialized--;
    return SUCCESS;
}

const char *nvmlErrorString(nvmlReturn_t result)
{
    (void)result;
    return "an error of the stub";
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length) { return copy("driver", version, length); }

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *handle)
{
    char *known, *reading;
    nvmlReturn_t result = initialized ? next("uuid", &known) : UNINITIALIZED;
    if (result == SUCCESS && strcmp(uuid, known))
        return NOT_FOUND;
    if (result == SUCCESS)
        result = next("handle", &reading);
    if (result == SUCCESS)
        *handle = &device;
    return result;
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t handle, char *name, unsigned int length)
{
    return handle == &device ? copy("name", name, length) : INVALID_ARGUMENT;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t handle, char *uuid, unsigned int length)
{
    return handle == &device ? copy("uuid", uuid, length) : INVALID_ARGUMENT;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t handle, nvmlMemory_t *memory)
{
    nvmlReturn_t result = number("used", handle, &memory->used);
    memory->total = 80000000000ULL;
    memory->free = memory->total - memory->used;
    return result;
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t handle, unsigned int type, unsigned int *clock)
{
    if (type != CLOCK_SM && type != CLOCK_MEM)
        return INVALID_ARGUMENT;
    return small_number(type == CLOCK_SM ? "sm_clock" : "memory_clock", handle, clock);
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t handle, unsigned int sensor, unsigned int *degrees)
{
    return sensor == 0 ? small_number("temperature", handle, degrees) : INVALID_ARGUMENT;
}

nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t handle, nvmlTemperature_t *temperature)
{
    if (temperature->version != (sizeof *temperature | 1 << 24))
        return ARGUMENT_VERSION_MISMATCH;
    return temperature->sensorType == 0 ? small_number("temperature_v", handle, (unsigned int *)&temperature->temperature)
                                        : INVALID_ARGUMENT;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t handle, unsigned int *milliwatts)
{
    return small_number("power", handle, milliwatts);
}

nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t handle, unsigned long long *millijoules)
{
    return number("energy", handle, millijoules);
}

nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t handle, unsigned long long *mask)
{
    return number("reasons", handle, mask);
}

nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t handle, unsigned long long *mask)
{
    return number("old_reasons", handle, mask);
}

nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t handle, unsigned int *milliwatts)
{
    return small_number("power_limit", handle, milliwatts);
}

nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t handle, unsigned int *current, unsigned int *pending)
{
    nvmlReturn_t result = small_number("ecc", handle, current);
    *pending = *current;
    return result;
}

nvmlReturn_t nvmlDeviceGetClock(nvmlDevice_t handle, unsigned int type, unsigned int id, unsigned int *clock)
{
    return type == CLOCK_SM && id == APP_CLOCK_TARGET ? small_number("app_clock", handle, clock) : INVALID_ARGUMENT;
}

nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t handle, unsigned int type, unsigned int *clock)
{
    return type == CLOCK_SM ? small_number("max_clock", handle, clock) : INVALID_ARGUMENT;
}

nvmlReturn_t nvmlDeviceGetViolationStatus(nvmlDevice_t handle, unsigned int policy, nvmlViolationTime_t *time)
{
    if (policy >= POLICY_COUNT)
        return INVALID_ARGUMENT;
    return number(policy == POLICY_POWER ? "violation_power" : policy == POLICY_THERMAL ? "violation_heat" : "none", handle,
                  &time->violationTime);
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t handle, unsigned int *count, nvmlProcessInfo_t *infos)
{
    return processes("compute", handle, count, infos);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t handle, unsigned int *count, nvmlProcessInfo_t *infos)
{
    return processes("graphics", handle, count, infos);
}

#ifdef __cplusplus
}
#endif
