-- KEYS: S, then H and Z of each lock. ARGV: epoch, then owner, counter, lease us of each lock.
local S = KEYS[1]
if redis.call('HGET', S, 'e') ~= ARGV[1] then return {'epoch'} end
local clock = redis.call('TIME')
local t = clock[1] * 1000000 + clock[2]
local function text(n) return string.format('%d', n) end

-- One that cannot be read is lost, and is in the way of no other.
local function renew_shared(H, Z, name, owner, counter, lease)
  local h = redis.pcall('HMGET', H, 'e', 'm', 'o:' .. owner)
  local longest = number(h[2])
  local is_held = h[1] == ARGV[1] and longest and h[3] and string.match(h[3], '^%d+') == counter
  local ends = is_held and redis.pcall('ZSCORE', Z, owner)
  if type(ends) ~= 'string' or tonumber(ends) <= t then return 0 end
  redis.call('HSET', H, 'm', text(math.max(lease, longest)))
  redis.call('ZADD', Z, text(t + lease), owner)
  redis.call('PEXPIRE', H, 90000000)
  redis.call('PEXPIRE', Z, 90000000)
  redis.call('HSET', S, 'q:' .. name, text(t))
  return 1
end

local renewed = {}
for at = 1, (#KEYS - 1) / 2 do
  local H, Z = KEYS[2 * at], KEYS[2 * at + 1]
  local name = string.sub(H, #S + 4)
  local owner, counter, lease = ARGV[3 * at - 1], ARGV[3 * at], ARGV[3 * at + 1]
  local x = redis.call('HGET', S, 'x:' .. name)
  local token, since, before, ticket, by = string.match(x or '', '^(%d+):(%d+):(%d+):([^:]*):(.*)$')
  if token == counter and by == owner then
    renewed[at] = since + before > t and 1 or 0
    if renewed[at] == 1 then
      local record = token .. ':' .. text(t) .. ':' .. lease .. ':' .. ticket .. ':' .. owner
      redis.call('HSET', S, 'x:' .. name, record)
    end
  else
    renewed[at] = renew_shared(H, Z, name, owner, counter, tonumber(lease))
  end
end
return renewed
