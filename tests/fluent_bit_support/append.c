/* What a Fluent Bit executable exports and the plugin looks up. The test sets what becomes of it. */
#include <stddef.h>

int (*append_for_test)(void *, const char *, size_t, const void *, size_t);

int flb_input_log_append(void *instance, const char *tag, size_t tag_len, const void *data, size_t size)
{
    return append_for_test(instance, tag, tag_len, data, size);
}
