/* hiredis on the sidecar's socket: a line for each step; a mismatch ends it with an error. */

#include <hiredis/hiredis.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fail(const char *what, const redisReply *reply) {
    fprintf(stderr, "%s: type %d, %s, %lld\n", what, reply ? reply->type : 0,
            reply && reply->str ? reply->str : "no text", reply ? reply->integer : 0);
    exit(1);
}

static redisContext *connected(void) {
    redisContext *context = redisConnectUnix(getenv("CADDY_SOCKET"));
    if (context == NULL || context->err) {
        fprintf(stderr, "connect: %s\n", context ? context->errstr : "no memory");
        exit(1);
    }
    return context;
}

/* Sends a command whose reply must be this text. */
static void text(redisContext *context, const char *wanted, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    redisReply *reply = redisvCommand(context, format, arguments);
    va_end(arguments);
    if (reply == NULL || reply->str == NULL || strcmp(reply->str, wanted) != 0) fail(format, reply);
    freeReplyObject(reply);
}

/* Sends a command whose reply must be this number. */
static void number(redisContext *context, long long wanted, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    redisReply *reply = redisvCommand(context, format, arguments);
    va_end(arguments);
    if (reply == NULL || reply->type != REDIS_REPLY_INTEGER || reply->integer != wanted) fail(format, reply);
    freeReplyObject(reply);
}

/* The next reply must be an array whose last element is this text. */
static void last(redisContext *context, const char *what, const char *wanted) {
    redisReply *reply = NULL;
    if (redisGetReply(context, (void **)&reply) != REDIS_OK || reply->type != REDIS_REPLY_ARRAY) fail(what, reply);
    const redisReply *element = reply->element[reply->elements - 1];
    if (element->str == NULL || strcmp(element->str, wanted) != 0) fail(what, element);
    freeReplyObject(reply);
}

static void step(const char *name) {
    puts(name);
    fflush(stdout);
}

int main(void) {
    /* A lost connection is an error, not the end. */
    signal(SIGPIPE, SIG_IGN);
    redisContext *cache = connected(), *other = connected();
    text(cache, "PONG", "PING");
    step("connected");

    text(cache, "OK", "SET user:1 Ada EX 600");
    for (int time = 0; time < 3; time++) text(cache, "Ada", "GET user:1");
    step("hit");

    for (int n = 0; n < 100; n++) {
        redisAppendCommand(cache, "SET n:%d %d", n, n);
        redisAppendCommand(cache, "INCR n:%d", n);
    }
    for (int n = 0; n < 100; n++) {
        redisReply *reply = NULL;
        if (redisGetReply(cache, (void **)&reply) != REDIS_OK || reply->type != REDIS_REPLY_STATUS) fail("SET", reply);
        freeReplyObject(reply);
        if (redisGetReply(cache, (void **)&reply) != REDIS_OK || reply->integer != n + 1) fail("INCR", reply);
        freeReplyObject(reply);
    }
    step("pipeline");

    text(cache, "OK", "MULTI");
    text(cache, "QUEUED", "SET a 1");
    text(cache, "QUEUED", "GET a");
    redisAppendCommand(cache, "EXEC");
    last(cache, "EXEC", "1");
    step("transaction");

    text(cache, "OK", "WATCH a");
    text(cache, "1", "GET a");
    text(other, "OK", "SET a other");
    text(cache, "OK", "MULTI");
    text(cache, "QUEUED", "SET a mine");
    redisReply *reply = redisCommand(cache, "EXEC");
    if (reply == NULL || reply->type != REDIS_REPLY_NIL) fail("EXEC", reply);
    freeReplyObject(reply);
    text(cache, "other", "GET a");
    step("conflict");

    redisContext *subscriber = connected();
    reply = redisCommand(subscriber, "SUBSCRIBE news");
    if (reply == NULL || reply->elements != 3 || reply->element[2]->integer != 1) fail("SUBSCRIBE", reply);
    freeReplyObject(reply);
    number(cache, 1, "PUBLISH news hello");
    last(subscriber, "message", "hello");
    redisFree(subscriber);
    step("pubsub");

    text(cache, "OK", "SET s 21");
    text(cache, "21", "GET s");
    number(cache, 42, "EVAL %s 1 s", "local v = redis.call('GET', KEYS[1]) * 2; redis.call('SET', KEYS[1], v); return v");
    text(cache, "42", "GET s");
    step("script");

    redisAppendCommand(other, "BLPOP queue 10");
    int done = 0;
    while (!done) redisBufferWrite(other, &done);
    number(cache, 1, "RPUSH queue job");
    last(other, "BLPOP", "job");
    step("blocking");

    step("restart");
    getchar();
    if (redisCommand(cache, "GET user:1") != NULL) fail("the old connection still answers", NULL);
    if (redisReconnect(cache) != REDIS_OK) fail(cache->errstr, NULL);
    text(cache, "Ada", "GET user:1");
    text(cache, "OK", "SET user:1 Eve");
    text(cache, "Eve", "GET user:1");
    step("reconnected");
    redisFree(cache);
    redisFree(other);
    return 0;
}
