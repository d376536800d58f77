"""redis-py's asyncio form on the sidecar's socket: a line for each step; a mismatch ends it with an error."""

import asyncio
import os
import sys

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff


def step(name, *checks):
    for got, wanted in checks:
        assert got == wanted, f"{name}: {got!r} instead of {wanted!r}"
    print(name, flush=True)


async def main():
    resp = int(os.environ.get("CADDY_RESP", "2"))
    cache = redis.Redis(
        unix_socket_path=os.environ["CADDY_SOCKET"],
        protocol=resp,
        decode_responses=True,
        retry=Retry(ExponentialBackoff(), 5),
    )
    step("connected", (await cache.ping(), True))

    await cache.set("user:1", "Ada", ex=600)
    first = await cache.get("user:1")
    # All at once: many connections.
    many = await asyncio.gather(*[cache.get("user:1") for _ in range(30)])
    step("hit", (first, "Ada"), (set(many), {"Ada"}), (await cache.get("user:2"), None))

    async with cache.pipeline(transaction=False) as pipe:
        for number in range(100):
            pipe.set(f"n:{number}", number)
            pipe.incr(f"n:{number}")
            pipe.get(f"n:{number}")
        answers = await pipe.execute()
    step("pipeline", (answers[1::3], list(range(1, 101))), (answers[2::3], [str(n) for n in range(1, 101)]))

    async with cache.pipeline() as pipe:
        answers = await pipe.set("a", 1).incr("a").hset("h", "f", "v").hgetall("h").get("a").execute()
    step("transaction", (answers, [True, 2, 1, {"f": "v"}, "2"]), (await cache.get("a"), "2"))

    async with cache.pipeline() as pipe:
        await pipe.watch("a")
        seen = await pipe.get("a")
        await cache.set("a", "other")
        pipe.multi()
        pipe.set("a", seen + "!")
        try:
            await pipe.execute()
            conflict = False
        except redis.WatchError:
            conflict = True
    step("conflict", (conflict, True), (await cache.get("a"), "other"))

    async with cache.pubsub() as channel:
        await channel.subscribe("news")
        assert (await channel.get_message(timeout=5))["type"] == "subscribe"
        receivers = await cache.publish("news", "hello")
        message = await channel.get_message(timeout=5)
        await channel.unsubscribe("news")
        left = await channel.get_message(timeout=5)
    step("pubsub", (receivers, 1), (message["data"], "hello"), (left["type"], "unsubscribe"))

    double = cache.register_script("local v = redis.call('GET', KEYS[1]) * 2; redis.call('SET', KEYS[1], v); return v")
    await cache.set("s", 21)
    step("script", (await cache.get("s"), "21"), (await double(keys=["s"]), 42), (await cache.get("s"), "42"))

    waiting = asyncio.create_task(cache.blpop(["queue"], timeout=10))
    await asyncio.sleep(0.1)
    await cache.rpush("queue", "job")
    step("blocking", (list(await waiting), ["queue", "job"]))

    print("restart", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    step("reconnected", (await cache.get("user:1"), "Ada"), (await cache.set("user:1", "Eve"), True), (await cache.get("user:1"), "Eve"))
    await cache.aclose()


asyncio.run(main())
