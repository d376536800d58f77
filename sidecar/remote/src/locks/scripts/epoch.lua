-- Confirms the epoch, or begins a new one, which voids all locks. KEYS: S. ARGV: the greatest epoch known, run id,
-- replication id (both empty if the server does not tell), and which epoch to begin if this one cannot be confirmed:
-- '' none, 'next' the next one. One that was agreed on waits (w) until that is noted where it was agreed on, which 'begun'
-- says. Returns the epoch and 'confirmed', 'waits' or 'new', or the least next one and 'void'.
local S = KEYS[1]
local mirror = redis.call('HMGET', S, 'e', 'r', 'p', 'c', 'w')
-- Of what is no number nothing is known: it was lost.
local known, epoch, counter = tonumber(ARGV[1]), number(mirror[1]), number(mirror[4])
local same = ARGV[2] == '' or (mirror[2] == ARGV[2] and mirror[3] == ARGV[3])
if epoch and counter and epoch >= known and same then
  if mirror[5] and ARGV[4] ~= 'begun' then return {mirror[1], 'waits'} end
  if mirror[5] then redis.call('HDEL', S, 'w') end
  return {mirror[1], 'confirmed'}
end
epoch = epoch or 0
local function text(n) return string.format('%d', n) end
-- Not below the server's seconds: a later epoch is greater even if nobody is left who knew the last one.
local next_one = math.max(math.max(epoch, known) + 1, tonumber(redis.call('TIME')[1]))
if ARGV[4] ~= 'next' then
  -- The one that was agreed on, unless another went past it meanwhile.
  local agreed = tonumber(ARGV[4]) or 0
  if agreed <= epoch then return {text(next_one), 'void'} end
  next_one = agreed
end
redis.call('DEL', S)
redis.call('HSET', S, 'e', text(next_one), 'r', ARGV[2], 'p', ARGV[3], 'c', text(counter or 0))
if ARGV[4] == 'next' then return {text(next_one), 'new'} end
redis.call('HSET', S, 'w', '1')
return {text(next_one), 'waits'}
