import { createClient } from "redis"; // npm install redis

const cache = await createClient({ socket: { path: process.env.CADDY_SOCKET } }).connect();

await cache.set("user:1", "Ada");
console.log(await cache.get("user:1")); // from Redis the first time, from this pod afterwards
console.log(await cache.get("user:1"));
await cache.close();
