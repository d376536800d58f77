-- ARGV: epoch, owner, counter
if redis.call('HGET', E, 'e') ~= ARGV[1] then return {'epoch'} end
local n, x = open(ARGV[1])
local own = n > 0 and redis.call('HGET', H, 'o:' .. ARGV[2])
local held, token
if own then held, token = record(own) end
local is_held = token == ARGV[3]
if is_held then
  drop(ARGV[2])
  n = n - 1
  if held == 'x' then x = false end
end
turn(n, x)
tidy(n)
return {is_held and 1 or 0}
