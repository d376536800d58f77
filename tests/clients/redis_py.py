"""redis-py as an app uses it, on the sidecar's socket: a line for each step; a mismatch ends it with an error."""

import os
import threading

import redis
from redis.backoff import ExponentialBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry


def step(name, *checks):
    for got, wanted in checks:
        assert got == wanted, f"{name}: {got!r} instead of {wanted!r}"
    print(name, flush=True)


# redis-py 7 asks for these with RESP3, and then fails on any Unix socket for want of a host.
quiet = MaintNotificationsConfig(enabled=False)
cache = redis.Redis(
    connection_pool=redis.ConnectionPool(
        connection_class=redis.UnixDomainSocketConnection,
        path=os.environ["CADDY_SOCKET"],
        protocol=int(os.environ.get("CADDY_RESP", "2")),
        decode_responses=True,
        retry=Retry(ExponentialBackoff(), 5),
        maint_notifications_config=quiet,
    )
)
# Job queues find their workers by these, and need every field.
me = cache.client_info()["id"]
listed = [client["id"] for client in cache.client_list(client_id=[str(me)])]
step("connected", (cache.ping(), True), (me, cache.client_id()), (listed, [str(me)]))

cache.set("user:1", "Ada", ex=600)
step("hit", *[(cache.get("user:1"), "Ada") for _ in range(3)], (cache.get("user:2"), None))

with cache.pipeline(transaction=False) as pipe:
    for number in range(100):
        pipe.set(f"n:{number}", number)
        pipe.incr(f"n:{number}")
        pipe.get(f"n:{number}")
    answers = pipe.execute()
step("pipeline", (answers[1::3], list(range(1, 101))), (answers[2::3], [str(n) for n in range(1, 101)]))

with cache.pipeline() as pipe:
    answers = pipe.set("a", 1).incr("a").hset("h", "f", "v").hgetall("h").get("a").execute()
step("transaction", (answers, [True, 2, 1, {"f": "v"}, "2"]), (cache.get("a"), "2"))

with cache.pipeline() as pipe:
    pipe.watch("a")
    seen = pipe.get("a")
    cache.set("a", "other")
    pipe.multi()
    pipe.set("a", seen + "!")
    try:
        pipe.execute()
        conflict = False
    except redis.WatchError:
        conflict = True
step("conflict", (conflict, True), (cache.get("a"), "other"))

with cache.pubsub() as channel:
    channel.subscribe("news")
    assert channel.get_message(timeout=5)["type"] == "subscribe"
    receivers = cache.publish("news", "hello")
    message = channel.get_message(timeout=5)
    channel.unsubscribe("news")
    left = channel.get_message(timeout=5)
step("pubsub", (receivers, 1), (message["data"], "hello"), (left["type"], "unsubscribe"))

double = cache.register_script("local v = redis.call('GET', KEYS[1]) * 2; redis.call('SET', KEYS[1], v); return v")
cache.set("s", 21)
step("script", (cache.get("s"), "21"), (double(keys=["s"]), 42), (cache.get("s"), "42"))

threading.Timer(0.1, lambda: cache.rpush("queue", "job")).start()
step("blocking", (list(cache.blpop(["queue"], timeout=10)), ["queue", "job"]))

print("restart", flush=True)
input()
step("reconnected", (cache.get("user:1"), "Ada"), (cache.set("user:1", "Eve"), True), (cache.get("user:1"), "Eve"))
