-- ARGV: epoch, most holders and waiters to tell. Returns owner, mode, counter, us left of each holder; and ticket,
-- arrival, mode, owner of each waiter.
if redis.call('HGET', E, 'e') ~= ARGV[1] then return {'epoch'} end
local n = open(ARGV[1])
local holders, waiters = {}, {}
for _, owner in ipairs(redis.call('ZRANGE', Z, 0, tonumber(ARGV[2]) - 1)) do
  local held, token = record(redis.call('HGET', H, 'o:' .. owner) or '?:0:')
  for _, field in ipairs({owner, held, token, text(tonumber(redis.call('ZSCORE', Z, owner)) - t)}) do
    holders[#holders + 1] = field
  end
end
local queue = redis.call('ZRANGE', Q, 0, tonumber(ARGV[2]) - 1, 'WITHSCORES')
for at = 1, #queue, 2 do
  local w = redis.call('HGET', W, queue[at])
  if w and not is_dead(queue[at]) then
    for _, field in ipairs({queue[at], text(tonumber(queue[at + 1])), string.sub(w, 1, 1), string.sub(w, 3)}) do
      waiters[#waiters + 1] = field
    end
  end
end
tidy(n)
return {'lock', holders, waiters}
