/* A module for the tests: commands that no command table has. It declares the little of the module interface that it
 * uses, since Debian has no package with the header. */

#include <stddef.h>

typedef struct Ctx Ctx;
typedef struct Text Text;
typedef struct Reply Reply;
typedef int Command(Ctx *, Text **, int);

static int (*get_api)(const char *, void *);
static int (*set_attributes)(Ctx *, const char *, int, int);
static int (*create_command)(Ctx *, const char *, Command *, const char *, int, int, int);
static Reply *(*call)(Ctx *, const char *, const char *, ...);
static int (*reply_with)(Ctx *, Reply *);
static int (*reply_simple)(Ctx *, const char *);
static int (*wrong_arity)(Ctx *);
static void *(*block_client)(Ctx *, Command *, Command *, void (*)(Ctx *, void *), long long);

/* PROBE.SET note key value */
static int set(Ctx *ctx, Text **argv, int argc) {
    if (argc != 4) return wrong_arity(ctx);
    return reply_with(ctx, call(ctx, "SET", "!ss", argv[2], argv[3]));
}

/* PROBE.HIDDEN key value: writes a key that it declares to nobody. */
static int hidden(Ctx *ctx, Text **argv, int argc) {
    if (argc != 3) return wrong_arity(ctx);
    return reply_with(ctx, call(ctx, "SET", "!ss", argv[1], argv[2]));
}

static int waited(Ctx *ctx, Text **argv, int argc) {
    (void)argv, (void)argc;
    return reply_simple(ctx, "WAITED");
}

/* PROBE.WAIT: answers after three seconds, and holds up its connection until then. */
static int wait_long(Ctx *ctx, Text **argv, int argc) {
    (void)argv, (void)argc;
    block_client(ctx, waited, waited, NULL, 3000);
    return 0;
}

int RedisModule_OnLoad(Ctx *ctx, Text **argv, int argc) {
    (void)argv, (void)argc;
    get_api = *(int (**)(const char *, void *))ctx;
    if (get_api("RedisModule_SetModuleAttribs", &set_attributes) || get_api("RedisModule_CreateCommand", &create_command) ||
        get_api("RedisModule_Call", &call) || get_api("RedisModule_ReplyWithCallReply", &reply_with) ||
        get_api("RedisModule_ReplyWithSimpleString", &reply_simple) || get_api("RedisModule_WrongArity", &wrong_arity) ||
        get_api("RedisModule_BlockClient", &block_client))
        return 1;
    set_attributes(ctx, "probe", 1, 1);
    return create_command(ctx, "probe.set", set, "write deny-oom", 2, 2, 1) ||
           create_command(ctx, "probe.hidden", hidden, "write deny-oom", 0, 0, 0) ||
           create_command(ctx, "probe.wait", wait_long, "readonly blocking", 0, 0, 0);
}
