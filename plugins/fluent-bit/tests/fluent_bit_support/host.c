/* What a Fluent Bit executable exports and the plugin looks up. The test sets what becomes of it. */
#include <stddef.h>
#include <stdlib.h>

int (*append_for_test)(void *, const char *, size_t, const void *, size_t);
/* Without an engine a thread has no scheduler. */
void *scheduler_for_test;
int (*create_timer_for_test)(void *, int, int, void (*)(void *, void *), void *, void **);
int (*set_collector_for_test)(void *, int (*)(void *, void *, void *), int, void *);
int (*start_collector_for_test)(int, void *);

int flb_input_log_append(void *instance, const char *tag, size_t tag_len, const void *data, size_t size)
{
    return append_for_test(instance, tag, tag_len, data, size);
}

void *flb_sched_ctx_get(void)
{
    return scheduler_for_test;
}

int flb_sched_timer_cb_create(void *scheduler, int type, int milliseconds, void (*callback)(void *, void *), void *data,
                              void **timer)
{
    return create_timer_for_test(scheduler, type, milliseconds, callback, data, timer);
}

int flb_input_set_collector_event(void *instance, int (*callback)(void *, void *, void *), int descriptor, void *config)
{
    return set_collector_for_test(instance, callback, descriptor, config);
}

int flb_input_collector_start(int collector, void *instance)
{
    return start_collector_for_test(collector, instance);
}

/* A host with metrics: what it counts of the input, as a page of them. */
char *(*encode_for_test)(void *, int);

void flb_metrics_create(void)
{
}

char *cmt_encode_prometheus_create(void *cmt, int add_timestamp)
{
    return encode_for_test != NULL ? encode_for_test(cmt, add_timestamp) : NULL;
}

void cmt_encode_prometheus_destroy(char *page)
{
    free(page);
}
