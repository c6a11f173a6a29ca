/* A Fluent Bit as far as the plugin sees it, in an executable that brings its own malloc, as Fluent Bit's packages do.
 *
 * No block it gives is aligned to more than QUANTUM bytes, so whatever relies on more fails in the first run and not in
 * one of twenty. Unless MEMALIGN is defined it brings no more than the four functions that a replacement of glibc's malloc
 * must, and ends the process when it is to free what it has not given: memory of a glibc function beside them.
 *
 *   host <plugin> <properties: a line key=value each> <file that each append is written to, its length before it>
 *
 * Not threaded. It stops when its standard input ends. */
#include <dlfcn.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#ifndef QUANTUM
#define QUANTUM 8
#endif

extern void *__libc_malloc(size_t);
extern void __libc_free(void *);

/* Before each block. */
struct mark {
    uint64_t given;
    uint64_t size;
    char *whole;
};
#define GIVEN 0x6d616c6c6f63ULL

static void die(const char *what)
{
    if (write(2, what, strlen(what)) < 0) {
        _exit(4);
    }
    _exit(3);
}

/* A block that lies `beside` bytes behind a multiple of `alignment`. */
static void *give(size_t size, size_t alignment, size_t beside)
{
    char *whole = __libc_malloc(sizeof(struct mark) + alignment + beside + size), *block;
    struct mark mark = {GIVEN, size, whole};
    if (whole == NULL) {
        return NULL;
    }
    block = whole + sizeof mark;
    block += -(uintptr_t)block % alignment + beside;
    memcpy(block - sizeof mark, &mark, sizeof mark);
    return block;
}

void *malloc(size_t size)
{
    return give(size, 2 * QUANTUM, QUANTUM);
}

#ifdef MEMALIGN
int posix_memalign(void **block, size_t alignment, size_t size)
{
    *block = give(size, alignment, 0);
    return *block == NULL ? 12 : 0;
}

void *memalign(size_t alignment, size_t size)
{
    return give(size, alignment, 0);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return give(size, alignment, 0);
}
#endif

static struct mark mark_of(const char *block)
{
    struct mark mark;
    memcpy(&mark, block - sizeof mark, sizeof mark);
    if (mark.given != GIVEN) {
        die("host: to free what malloc has not given\n");
    }
    return mark;
}

void free(void *pointer)
{
    char *block = pointer;
    if (block != NULL) {
        struct mark mark = mark_of(block);
        memset(block - sizeof mark, 0, sizeof mark);
        __libc_free(mark.whole);
    }
}

void *calloc(size_t count, size_t size)
{
    void *block;
    if (size != 0 && count > SIZE_MAX / size) {
        return NULL;
    }
    block = malloc(count * size);
    if (block != NULL) {
        memset(block, 0, count * size);
    }
    return block;
}

void *realloc(void *pointer, size_t size)
{
    void *moved = malloc(size);
    if (pointer != NULL && moved != NULL) {
        size_t before = mark_of(pointer).size;
        memcpy(moved, pointer, before < size ? before : size);
        free(pointer);
    }
    return moved;
}

struct definition {
    int type, proxy, flags;
    const char *name, *description;
    int event_type;
    void *config_map;
};

struct api {
    void *output_get_property;
    const char *(*input_get_property)(const char *, void *);
    void *output_get_cmt_instance;
    void *(*input_get_cmt_instance)(void *);
    void (*log_print)(int, const char *, int, const char *, ...);
    int (*input_log_check)(void *, int);
};

struct plugin {
    const char *name;
    struct api *api;
    void *instance;
    void *context;
};

static char properties[1 << 16];
static FILE *appended;

static const char *get_property(const char *key, void *instance)
{
    size_t length = strlen(key);
    const char *line = properties;
    (void)instance;
    for (; *line != '\0'; line += strlen(line) + 1) {
        if (strncmp(line, key, length) == 0 && line[length] == '=') {
            return line + length + 1;
        }
    }
    return NULL;
}

static void *get_metrics(void *instance)
{
    (void)instance;
    return NULL;
}

static void print(int level, const char *file, int line, const char *format, ...)
{
    va_list values;
    (void)file;
    (void)line;
    fprintf(stderr, "%d ", level);
    va_start(values, format);
    vfprintf(stderr, format, values);
    va_end(values);
    fputc('\n', stderr);
}

static int log_check(void *instance, int level)
{
    (void)instance;
    return level <= 3;
}

int flb_input_log_append(void *instance, const char *tag, size_t tag_len, const void *data, size_t size)
{
    (void)instance;
    (void)tag;
    (void)tag_len;
    uint64_t length = size;
    return fwrite(&length, sizeof length, 1, appended) == 1 && fwrite(data, 1, size, appended) == size
                   && fflush(appended) == 0
               ? 0
               : -1;
}

static void *find(void *library, const char *name)
{
    void *address = dlsym(library, name);
    if (address == NULL) {
        fprintf(stderr, "host: no %s\n", name);
        exit(2);
    }
    return address;
}

static int call(void *library, const char *name)
{
    return ((int (*)(int))find(library, name))(0);
}

int main(int argc, char **argv)
{
    struct api api = {NULL, get_property, NULL, get_metrics, print, log_check};
    struct definition definition = {0};
    struct plugin plugin = {"m365_audit", &api, &api, NULL};
    struct pollfd input = {0, POLLIN, 0};
    void *library, *data;
    size_t size, n;
    FILE *file;
    int (*collect)(void *, void **, size_t *);

    if (argc != 4 || (file = fopen(argv[2], "r")) == NULL || (appended = fopen(argv[3], "w")) == NULL) {
        die("host: wrong arguments\n");
    }
    size = fread(properties, 1, sizeof properties - 2, file);
    fclose(file);
    for (n = 0; n < size; n++) {
        properties[n] = properties[n] == '\n' ? '\0' : properties[n];
    }
    if ((uintptr_t)malloc(64) % (2 * QUANTUM) != QUANTUM) {
        die("host: its malloc is not the one in use\n");
    }
    prctl(PR_SET_NAME, "flb-pipeline", 0, 0, 0);
    library = dlopen(argv[1], RTLD_LAZY);
    if (library == NULL) {
        fprintf(stderr, "host: %s\n", dlerror());
        return 2;
    }
    call(library, "FLBPluginPreRegister");
    if (((int (*)(struct definition *))find(library, "FLBPluginRegister"))(&definition) == -1) {
        return 2;
    }
    if (((int (*)(struct plugin *))find(library, "FLBPluginInit"))(&plugin) <= 0) {
        return 1;
    }
    call(library, "FLBPluginInputPreRun");
    collect = (int (*)(void *, void **, size_t *))find(library, "FLBPluginInputCallbackCtx");
    while (poll(&input, 1, 10) == 0) {
        data = NULL;
        size = 0;
        collect(NULL, &data, &size);
        if (size != 0) {
            die("host: a buffer, though it exports its append function\n");
        }
    }
    call(library, "FLBPluginInputPause");
    call(library, "FLBPluginInputPreExit");
    call(library, "FLBPluginExit");
    ((void (*)(struct definition *))find(library, "FLBPluginUnregister"))(&definition);
    dlclose(library);
    return 0;
}
