// What a careless addon does: the native half of story-handles.js. Node-API only, so that one build serves every Node.js.
#include <node_api.h>
#include <stdlib.h>
#include <string.h>

// libuv, as Node.js exports it; the handle is larger than any libuv's uv_prepare_t.
extern int uv_run(void *loop, int mode);
enum { RUN_ONCE = 1 };

static unsigned long pending;

static napi_value first(napi_env env, napi_callback_info info) {
    size_t n = 1;
    napi_value value = NULL;
    napi_get_cb_info(env, info, &n, &value, NULL, NULL);
    return value;
}

// A: a reference to its argument that is never deleted.
__attribute__((noinline)) static napi_value keep(napi_env env, napi_callback_info info) {
    napi_ref reference;
    napi_create_reference(env, first(env, info), 1, &reference);
    return NULL;
}

// A's healthy twin: deleted as soon as it was used.
static napi_value use(napi_env env, napi_callback_info info) {
    napi_ref reference;
    napi_create_reference(env, first(env, info), 1, &reference);
    napi_delete_reference(env, reference);
    return NULL;
}

// B: an event loop of its own within one call, as addons that wait for JavaScript have it. Nobody opens a scope for the handles
// that are made between its turns: they live until the call ends. With a scope each time, its healthy twin.
static napi_value spin(napi_env env, napi_callback_info info, int scoped) {
    napi_value callback = first(env, info), undefined;
    void *loop;
    napi_get_undefined(env, &undefined);
    napi_get_uv_event_loop(env, (struct uv_loop_s **)&loop);
    for (;;) {
        napi_handle_scope turn, scope;
        uv_run(loop, RUN_ONCE);
        napi_open_handle_scope(env, &turn);
        napi_value result;
        napi_status status = napi_call_function(env, undefined, callback, 0, NULL, &result);
        bool go_on = false;
        if (status == napi_ok) {
            napi_get_value_bool(env, result, &go_on);
        }
        napi_close_handle_scope(env, turn);
        if (!go_on) {
            return NULL;
        }
        if (scoped) {
            napi_open_handle_scope(env, &scope);
        }
        for (; pending > 0; pending--) {
            napi_value answer;
            for (int i = 0; i < 10; i++) {
                napi_create_object(env, &answer);
            }
        }
        if (scoped) {
            napi_close_handle_scope(env, scope);
        }
    }
}

__attribute__((noinline)) static napi_value spin_unscoped(napi_env env, napi_callback_info info) {
    return spin(env, info, 0);
}

static napi_value spin_scoped(napi_env env, napi_callback_info info) {
    return spin(env, info, 1);
}

static napi_value touch(napi_env env, napi_callback_info info) {
    (void)env;
    (void)info;
    pending++;
    return NULL;
}

// C: memory that is written to, and forgotten.
__attribute__((noinline)) static void *allocate(size_t bytes) {
    volatile char *memory = malloc(bytes);
    for (size_t i = 0; memory != NULL && i < bytes; i += 512) {
        memory[i] = 1;
    }
    return (void *)memory;
}

static unsigned bytes_of(napi_env env, napi_callback_info info) {
    unsigned bytes = 0;
    napi_get_value_uint32(env, first(env, info), &bytes);
    return bytes;
}

__attribute__((noinline)) static napi_value forget(napi_env env, napi_callback_info info) {
    allocate(bytes_of(env, info));
    return NULL;
}

static napi_value borrow(napi_env env, napi_callback_info info) {
    free(allocate(bytes_of(env, info)));
    return NULL;
}

static napi_value init(napi_env env, napi_value exports) {
    const struct { const char *name; napi_callback callback; } functions[] = {
        {"keep", keep}, {"use", use}, {"spin", spin_unscoped}, {"spinScoped", spin_scoped}, {"touch", touch},
        {"forget", forget}, {"borrow", borrow},
    };
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
        napi_value function;
        napi_create_function(env, functions[i].name, NAPI_AUTO_LENGTH, functions[i].callback, NULL, &function);
        napi_set_named_property(env, exports, functions[i].name, function);
    }
    return exports;
}

NAPI_MODULE(story_handles, init)
