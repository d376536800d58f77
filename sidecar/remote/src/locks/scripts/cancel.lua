-- ARGV: epoch, owner, ticket
if redis.call('HGET', E, 'e') ~= ARGV[1] then return {'epoch'} end
local n, x = open(ARGV[1])
local own = n > 0 and redis.call('HGET', H, 'o:' .. ARGV[2])
if own then
  local held, _, ticket = record(own)
  if ticket == ARGV[3] then
    drop(ARGV[2])
    n = n - 1
    if held == 'x' then x = false end
  end
end
unqueue(ARGV[3])
turn(n, x)
tidy(n)
return {1}
