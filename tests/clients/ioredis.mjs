// ioredis on the sidecar's socket: a line for each step; a mismatch ends it with an error.

import assert from "node:assert/strict";
import { once } from "node:events";
import Redis from "ioredis";

const connect = () => new Redis({ path: process.env.CADDY_SOCKET }).on("error", () => {});
const step = (name, ...checks) => {
  for (const [got, wanted] of checks) assert.deepEqual(got, wanted, name);
  console.log(name);
};

const cache = connect();
step("connected", [await cache.ping(), "PONG"]);

await cache.set("user:1", "Ada", "EX", 600);
const first = await cache.get("user:1");
const many = await Promise.all(Array.from({ length: 30 }, () => cache.get("user:1")));
step("hit", [first, "Ada"], [[...new Set(many)], ["Ada"]], [await cache.get("user:2"), null]);

const numbers = Array.from({ length: 100 }, (_, number) => number);
const pipeline = cache.pipeline();
for (const n of numbers) pipeline.set(`n:${n}`, n).incr(`n:${n}`).get(`n:${n}`);
const answers = (await pipeline.exec()).map(([error, answer]) => error ?? answer);
step(
  "pipeline",
  [answers.filter((_, at) => at % 3 === 1), numbers.map((n) => n + 1)],
  [answers.filter((_, at) => at % 3 === 2), numbers.map((n) => `${n + 1}`)],
);

const executed = await cache.multi().set("a", 1).incr("a").hset("h", "f", "v").hgetall("h").get("a").exec();
step("transaction", [executed.map(([error, answer]) => error ?? answer), ["OK", 2, 1, { f: "v" }, "2"]]);

const watching = connect();
await watching.watch("a");
const seen = await watching.get("a");
await cache.set("a", "other");
const conflict = await watching.multi().set("a", `${seen}!`).exec();
watching.disconnect();
step("conflict", [conflict, null], [await cache.get("a"), "other"]);

const subscriber = connect();
await subscriber.subscribe("news");
const message = once(subscriber, "message");
const receivers = await cache.publish("news", "hello");
step("pubsub", [await message, ["news", "hello"]], [receivers, 1]);
await subscriber.unsubscribe("news");
assert.equal(await subscriber.ping(), "PONG");
subscriber.disconnect();

cache.defineCommand("double", {
  numberOfKeys: 1,
  lua: "local v = redis.call('GET', KEYS[1]) * 2; redis.call('SET', KEYS[1], v); return v",
});
await cache.set("s", 21);
step("script", [await cache.get("s"), "21"], [await cache.double("s"), 42], [await cache.get("s"), "42"]);

const worker = connect();
const job = worker.blpop("queue", 10);
await cache.rpush("queue", "job");
step("blocking", [await job, ["queue", "job"]]);
worker.disconnect();

console.log("restart");
const reconnected = new Promise((resolve) => cache.once("ready", resolve));
await once(process.stdin, "data");
await reconnected;
step("reconnected", [await cache.get("user:1"), "Ada"], [await cache.set("user:1", "Eve"), "OK"], [await cache.get("user:1"), "Eve"]);
cache.disconnect();
process.exit(0);
