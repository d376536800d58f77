// node-redis on the sidecar's socket: a line for each step; a mismatch ends it with an error.

import assert from "node:assert/strict";
import { once } from "node:events";
import { createClient, WatchError } from "redis";

const options = { socket: { path: process.env.CADDY_SOCKET }, RESP: Number(process.env.CADDY_RESP ?? "2") };
const connect = () => createClient(options).on("error", () => {}).connect();
const step = (name, ...checks) => {
  for (const [got, wanted] of checks) assert.deepEqual(got, wanted, name);
  console.log(name);
};

const cache = await connect();
step("connected", [await cache.ping(), "PONG"]);

await cache.set("user:1", "Ada", { EX: 600 });
const first = await cache.get("user:1");
// Sent in one pipeline.
const many = await Promise.all(Array.from({ length: 30 }, () => cache.get("user:1")));
step("hit", [first, "Ada"], [[...new Set(many)], ["Ada"]], [await cache.get("user:2"), null]);

const numbers = Array.from({ length: 100 }, (_, number) => number);
const answers = await Promise.all(
  numbers.flatMap((n) => [cache.set(`n:${n}`, `${n}`), cache.incr(`n:${n}`), cache.get(`n:${n}`)]),
);
step(
  "pipeline",
  [answers.filter((_, at) => at % 3 === 1), numbers.map((n) => n + 1)],
  [answers.filter((_, at) => at % 3 === 2), numbers.map((n) => `${n + 1}`)],
);

const executed = await cache.multi().set("a", "1").incr("a").hSet("h", "f", "v").hGetAll("h").get("a").exec();
step("transaction", [executed.slice(0, 3), ["OK", 2, 1]], [{ ...executed[3] }, { f: "v" }], [executed[4], "2"]);

const watching = await connect();
await watching.watch("a");
const seen = await watching.get("a");
await cache.set("a", "other");
await assert.rejects(watching.multi().set("a", `${seen}!`).exec(), WatchError);
await watching.close();
step("conflict", [await cache.get("a"), "other"]);

const subscriber = await connect();
let heard;
const message = new Promise((resolve) => (heard = resolve));
await subscriber.subscribe("news", heard);
const receivers = await cache.publish("news", "hello");
step("pubsub", [await message, "hello"], [receivers, 1]);
await subscriber.unsubscribe("news");
assert.equal(`${await subscriber.ping()}`, "PONG");
await subscriber.close();

const double = "local v = redis.call('GET', KEYS[1]) * 2; redis.call('SET', KEYS[1], v); return v";
await cache.set("s", "21");
const before = await cache.get("s");
const sha = await cache.scriptLoad(double);
step("script", [before, "21"], [await cache.evalSha(sha, { keys: ["s"] }), 42], [await cache.get("s"), "42"]);

const worker = await connect();
const job = worker.blPop("queue", 10);
await cache.rPush("queue", "job");
step("blocking", [{ ...(await job) }, { key: "queue", element: "job" }]);
await worker.close();

console.log("restart");
const reconnected = new Promise((resolve) => cache.once("ready", resolve));
await once(process.stdin, "data");
await reconnected;
step("reconnected", [await cache.get("user:1"), "Ada"], [await cache.set("user:1", "Eve"), "OK"], [await cache.get("user:1"), "Eve"]);
await cache.close();
process.exit(0);
