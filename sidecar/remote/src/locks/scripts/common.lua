-- What all scripts about one lock share. A lock's state lies in four keys of one slot with the epoch:
--   H  hash: e (epoch), n (number of holders), x (the exclusive holder), m (the longest lease, us),
--      o:<owner> = <mode>:<counter>:<ticket>
--   Z  sorted set: owners by the end of their lease, us of Redis TIME
--   Q  sorted set: tickets by arrival;  W  hash: <ticket> = <mode>:<owner>
-- Others: E hash of the epoch (e, r, p) and the last counter (c), L live clients by when they count as dead,
-- I names of locks, C names of locks that somebody waits for.
-- If Redis evicts one of the four, the others do not fit any more and the lock is void: it is never half a lock.
local E, H, Z, Q, W, L, I, C = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local TTL = 90000000 -- 25 h, longer than any lease: garbage ends by itself
local clock = redis.call('TIME')
local t = clock[1] * 1000000 + clock[2]
local prefix = string.sub(E, 1, -7)
local name = string.sub(H, #prefix + 4)

local function text(n) return string.format('%.0f', n) end

local function record(r) return string.match(r, '^(.):(%d+):(.*)$') end

local function publish(ticket, message)
  redis.call('PUBLISH', prefix .. ':wake:' .. string.match(ticket, '^(.*)%-'), message)
end

local function drop(owner)
  local r = redis.call('HGET', H, 'o:' .. owner)
  redis.call('ZREM', Z, owner)
  if r then
    redis.call('HDEL', H, 'o:' .. owner)
    redis.call('HINCRBY', H, 'n', -1)
    if string.sub(r, 1, 1) == 'x' then redis.call('HDEL', H, 'x') end
  end
end

local function unqueue(ticket)
  redis.call('HDEL', W, ticket)
  return redis.call('ZREM', Q, ticket) == 1
end

-- Voids what is of another epoch or incomplete, ends leases. Returns the number of holders and the exclusive one.
local function open(epoch)
  local h = redis.call('HMGET', H, 'e', 'n', 'x')
  local n = redis.call('ZCARD', Z)
  if h[1] ~= epoch or tonumber(h[2]) ~= n then
    redis.call('DEL', H, Z, Q, W)
    return 0, false
  end
  if n == 0 then return 0, false end
  local ended = redis.call('ZRANGEBYSCORE', Z, '-inf', t, 'LIMIT', 0, 1024)
  for _, owner in ipairs(ended) do drop(owner) end
  if #ended > 0 then
    return redis.call('ZCARD', Z), redis.call('HGET', H, 'x')
  end
  return n, h[3]
end

-- A lease longer than the longest that was ever asked for is a clock that was set back: it counts from now.
local function clip()
  local last = redis.call('ZREVRANGE', Z, 0, 0, 'WITHSCORES')
  local longest = tonumber(redis.call('HGET', H, 'm') or '0')
  if last[2] and tonumber(last[2]) > t + longest then
    for _, owner in ipairs(redis.call('ZRANGEBYSCORE', Z, '(' .. text(t + longest), '+inf', 'LIMIT', 0, 1024)) do
      redis.call('ZADD', Z, text(t + longest), owner)
    end
  end
end

-- Clients say every second that they live, for three seconds; a promise for longer is a clock that was set back.
local ALIVE = 3000000
local function is_dead(ticket)
  local till = redis.call('ZSCORE', L, string.match(ticket, '^(.*)%-'))
  return not till or tonumber(till) < t or tonumber(till) > t + ALIVE
end

-- Wakes the first live waiter if its turn has come.
local function turn(n, x)
  while true do
    local ticket = redis.call('ZRANGE', Q, 0, 0)[1]
    if not ticket then return end
    local w = redis.call('HGET', W, ticket)
    if w and not is_dead(ticket) then
      local shared = string.sub(w, 1, 1) == 's'
      if n == 0 or (shared and not x) then publish(ticket, 'w' .. ticket) end
      return
    end
    unqueue(ticket)
  end
end

-- Removes what nobody needs any more.
local function tidy(n)
  if redis.call('ZCARD', Q) > 0 then return end
  redis.call('ZREM', C, name)
  if n == 0 then
    redis.call('DEL', H, Z, Q, W)
    redis.call('ZREM', I, name)
  end
end
