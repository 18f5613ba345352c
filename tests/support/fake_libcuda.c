/* A double of CUDA's driver for tests. The GPU's memory is this process's own.

   Copies are lazy: they are carried out when somebody waits for their event or stream. So whoever fills a buffer again
   too early, or frees it, gets wrong bytes. What is still allocated is counted, and pinned buffers that are freed with
   bytes in them are, too. */

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 4096 };

struct copy {
    void *target;
    const void *source;
    size_t size;
};

struct stream {
    struct copy copies[MOST];
    size_t queued, done;
};

struct event {
    struct stream *stream;
    size_t place;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct { void *address; size_t size; } pinned[MOST];
static long outstanding, dirty, copied, contexts;
static char fails[64];
static long fails_after;
static _Thread_local void *current;

static int stale;
static char *snapshot;

void fake_stale(int on) { stale = on; }

long fake_outstanding(void) { return outstanding; }
long fake_dirty(void) { return dirty; }
long fake_copied(void) { return copied; }
long fake_contexts(void) { return contexts; }

void fake_fail(const char *name, long after)
{
    strncpy(fails, name, sizeof fails - 1);
    fails_after = after;
}

static int failing(const char *name)
{
    int found;
    pthread_mutex_lock(&lock);
    found = strcmp(fails, name) == 0 && fails_after-- == 0;
    pthread_mutex_unlock(&lock);
    return found;
}

static void count(long step)
{
    pthread_mutex_lock(&lock);
    outstanding += step;
    pthread_mutex_unlock(&lock);
}

static void carry_out(struct stream *stream, size_t until)
{
    for (; stream->done < until; stream->done++) {
        struct copy *next = &stream->copies[stream->done % MOST];
        memcpy(next->target, next->source, next->size);
        pthread_mutex_lock(&lock);
        copied += (long)next->size;
        pthread_mutex_unlock(&lock);
    }
}

int cuInit(unsigned flags) { return failing("cuInit") ? 100 : flags != 0; }

int cuGetErrorName(int code, const char **name)
{
    *name = code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_UNKNOWN";
    return 0;
}

int cuDeviceGet(int *device, int number)
{
    if (number > 0)
        return 101;
    *device = 7;
    return 0;
}

int cuDevicePrimaryCtxRetain(void **context, int device)
{
    if (device != 7)
        return 101;
    contexts++;
    *context = (void *)0x7000;
    return 0;
}

int cuDevicePrimaryCtxRelease_v2(int device)
{
    contexts--;
    return device != 7;
}

int cuCtxSetCurrent(void *context)
{
    current = context;
    return 0;
}

int cuCtxGetCurrent(void **context)
{
    *context = current;
    return 0;
}

int cuMemAlloc_v2(uint64_t *address, size_t size)
{
    if (!current)
        return 201;
    if (failing("cuMemAlloc_v2"))
        return 2;
    *address = (uint64_t)(uintptr_t)aligned_alloc(256, (size + 255) / 256 * 256);
    count(1);
    return 0;
}

int cuMemFree_v2(uint64_t address)
{
    if (!current)
        return 201;
    free((void *)(uintptr_t)address);
    count(-1);
    return 0;
}

int cuMemHostAlloc(void **address, size_t size, unsigned flags)
{
    if (!current || (flags != 1 && flags != 3))
        return 201;
    if (failing("cuMemHostAlloc"))
        return 2;
    *address = malloc(size);
    memset(*address, 0xaa, size);
    pthread_mutex_lock(&lock);
    for (int at = 0; at < MOST; at++)
        if (!pinned[at].address) {
            pinned[at].address = *address;
            pinned[at].size = flags == 1 ? size : 0; /* mapped memory is no staging buffer */
            break;
        }
    outstanding++;
    pthread_mutex_unlock(&lock);
    return 0;
}

int cuMemFreeHost(void *address)
{
    pthread_mutex_lock(&lock);
    for (int at = 0; at < MOST; at++)
        if (pinned[at].address == address) {
            for (size_t byte = 0; byte < pinned[at].size; byte++)
                if (((char *)address)[byte]) {
                    dirty++;
                    break;
                }
            pinned[at].address = NULL;
            break;
        }
    outstanding--;
    pthread_mutex_unlock(&lock);
    free(address);
    return 0;
}

int cuStreamCreate(struct stream **stream, unsigned flags)
{
    if (flags != 1 || failing("cuStreamCreate"))
        return 2;
    *stream = calloc(1, sizeof **stream);
    count(1);
    return 0;
}

int cuStreamDestroy_v2(struct stream *stream)
{
    free(stream);
    count(-1);
    return 0;
}

int cuStreamSynchronize(struct stream *stream)
{
    carry_out(stream, stream->queued);
    return failing("cuStreamSynchronize") ? 700 : 0;
}

int cuEventCreate(struct event **event, unsigned flags)
{
    if (flags != 2 || failing("cuEventCreate"))
        return 2;
    *event = calloc(1, sizeof **event);
    count(1);
    return 0;
}

int cuEventDestroy_v2(struct event *event)
{
    free(event);
    count(-1);
    return 0;
}

int cuEventRecord(struct event *event, struct stream *stream)
{
    event->stream = stream;
    event->place = stream->queued;
    return failing("cuEventRecord") ? 700 : 0;
}

int cuEventSynchronize(struct event *event)
{
    if (event->stream)
        carry_out(event->stream, event->place);
    return 0;
}

int cuMemcpyHtoDAsync_v2(uint64_t target, const void *source, size_t size, struct stream *stream)
{
    if (!current || failing("cuMemcpyHtoDAsync_v2") || stream->queued - stream->done >= MOST)
        return 700;
    stream->copies[stream->queued % MOST] = (struct copy){(void *)(uintptr_t)target, source, size};
    stream->queued++;
    return 0;
}

int cuMemcpyDtoH_v2(void *target, uint64_t source, size_t size)
{
    memcpy(target, (void *)(uintptr_t)source, size);
    return 0;
}

/* A stale driver shows the GPU what was in the memory at its first look. */
int cuMemHostGetDevicePointer_v2(uint64_t *address, void *host, unsigned flags)
{
    if (flags)
        return 1;
    *address = (uint64_t)(uintptr_t)host;
    return 0;
}

int cuMemcpyDtoD_v2(uint64_t target, uint64_t source, size_t size)
{
    if (failing("cuMemcpyDtoD_v2"))
        return 700;
    if (stale && !snapshot) {
        snapshot = malloc(size);
        memcpy(snapshot, (void *)(uintptr_t)source, size);
    }
    memcpy((void *)(uintptr_t)target, stale ? (void *)snapshot : (void *)(uintptr_t)source, size);
    return 0;
}

int cuCtxSynchronize(void) { return current ? 0 : 201; }
