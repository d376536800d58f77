-- KEYS: E, then H and Z of each lock. ARGV: epoch, then owner, counter, lease us of each lock.
if redis.call('HGET', KEYS[1], 'e') ~= ARGV[1] then return {'epoch'} end
local clock = redis.call('TIME')
local t = clock[1] * 1000000 + clock[2]
local renewed = {}
for at = 1, (#KEYS - 1) / 2 do
  local H, Z = KEYS[2 * at], KEYS[2 * at + 1]
  local owner, counter, lease = ARGV[3 * at - 1], ARGV[3 * at], tonumber(ARGV[3 * at + 1])
  local h = redis.call('HMGET', H, 'e', 'o:' .. owner, 'm')
  local ends = redis.call('ZSCORE', Z, owner)
  local held = h[1] == ARGV[1] and h[2] and ends and tonumber(ends) > t
    and string.match(h[2], '^.:(%d+):') == counter
  if held then
    redis.call('ZADD', Z, string.format('%.0f', t + lease), owner)
    if lease > tonumber(h[3] or '0') then redis.call('HSET', H, 'm', string.format('%.0f', lease)) end
    redis.call('PEXPIRE', H, 90000000)
    redis.call('PEXPIRE', Z, 90000000)
  end
  renewed[at] = held and 1 or 0
end
return renewed
