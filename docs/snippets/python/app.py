import os
import redis  # pip install redis

cache = redis.Redis(unix_socket_path=os.environ["CADDY_SOCKET"], decode_responses=True)

cache.set("user:1", "Ada")
print(cache.get("user:1"))  # from Redis the first time, from this pod afterwards
print(cache.get("user:1"))
