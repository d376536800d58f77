-- ARGV: epoch, ticket, cycle
if redis.call('HGET', E, 'e') ~= ARGV[1] then return {'epoch'} end
local n, x = open(ARGV[1])
if not unqueue(ARGV[2]) then return {0} end
publish(ARGV[2], 'd' .. ARGV[2] .. ' ' .. ARGV[3])
turn(n, x)
tidy(n)
return {1}
