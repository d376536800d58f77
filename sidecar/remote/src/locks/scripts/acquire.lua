-- ARGV: epoch, owner, mode (s|x), ticket, lease us, waits (0|1), longest queue
local epoch, owner, mode, ticket, lease = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local mirror = redis.call('HMGET', E, 'e', 'c')
if mirror[1] ~= epoch then return {'epoch'} end
local counter = tonumber(mirror[2] or '0') + 1
if t > counter then counter = t end
local n, x = open(epoch)

if n > 0 then
  local own = redis.call('HGET', H, 'o:' .. owner)
  if own then
    local held, token = record(own)
    if held == 's' and mode == 'x' then return {'upgrade', token} end
    local ends = math.max(t + lease, tonumber(redis.call('ZSCORE', Z, owner)))
    redis.call('ZADD', Z, text(ends), owner)
    redis.call('HSET', H, 'o:' .. owner, held .. ':' .. token .. ':' .. ticket)
    if lease > tonumber(redis.call('HGET', H, 'm') or '0') then redis.call('HSET', H, 'm', text(lease)) end
    redis.call('PEXPIRE', H, TTL)
    redis.call('PEXPIRE', Z, TTL)
    if unqueue(ticket) then tidy(n) end
    return {'granted', token}
  end
end

-- Whether all that wait longer share with this one; dead ones leave the queue.
local function is_next()
  local before = 0
  while before < 256 do
    local queue = redis.call('ZRANGE', Q, before, before + 31)
    if #queue == 0 then return true end
    for _, other in ipairs(queue) do
      if other == ticket then return true end
      local w = redis.call('HGET', W, other)
      if not w or is_dead(other) then
        unqueue(other)
      elseif mode == 'x' or string.sub(w, 1, 1) == 'x' then
        return false
      else
        before = before + 1
      end
    end
  end
  return false
end

if (n == 0 or (mode == 's' and not x)) and is_next() then
  redis.call('HSET', E, 'c', text(counter))
  redis.call('HSET', H, 'e', epoch, 'n', n + 1, 'o:' .. owner, mode .. ':' .. text(counter) .. ':' .. ticket)
  if mode == 'x' then redis.call('HSET', H, 'x', owner, 'm', text(lease)) end
  if mode == 's' and lease > tonumber(redis.call('HGET', H, 'm') or '0') then redis.call('HSET', H, 'm', text(lease)) end
  redis.call('ZADD', Z, text(t + lease), owner)
  redis.call('PEXPIRE', H, TTL)
  redis.call('PEXPIRE', Z, TTL)
  redis.call('ZADD', I, 0, name)
  if unqueue(ticket) then
    if mode == 's' then turn(n + 1, false) end
    tidy(n + 1)
  end
  return {'granted', text(counter)}
end

if ARGV[6] == '0' then return {'busy'} end
clip()
if not redis.call('ZSCORE', Q, ticket) then
  if redis.call('ZCARD', Q) >= tonumber(ARGV[7]) then return {'full'} end
  redis.call('HSET', E, 'c', text(counter))
  redis.call('ZADD', Q, text(counter), ticket)
  redis.call('HSET', W, ticket, mode .. ':' .. owner)
  redis.call('HSET', H, 'e', epoch, 'n', n)
  for _, key in ipairs({H, Q, W}) do redis.call('PEXPIRE', key, TTL) end
  redis.call('ZADD', I, 0, name)
  redis.call('ZADD', C, 0, name)
end
redis.call('ZADD', L, text(t + ALIVE), string.match(ticket, '^(.*)%-'))
turn(n, x)
local first = redis.call('ZRANGE', Z, 0, 0, 'WITHSCORES')
return {'queued', text(first[2] and tonumber(first[2]) - t or ALIVE)}
